"""The parts of the schema ``hgpose/1`` that JSON, JSON lines and Parquet share: its header and its frames."""

from __future__ import annotations

from typing import Any

from hgpose.sinks.record import Run, people, seconds
from hgpose.types import Frame, Poses


def document_header(run: Run) -> dict[str, Any]:
    """All that is known before the first frame: schema, source, model, keypoints, skeleton."""
    info, keypoint_set = run.info, run.keypoint_set
    source: dict[str, Any] = {"name": info.name}
    if info.fps is not None:
        source |= {"width": info.width, "height": info.height}
        source |= {"fps": float(info.fps), "fps_exact": f"{info.fps.numerator}/{info.fps.denominator}"}
    return {
        "schema": "hgpose/1",
        "source": source,
        "model": {"name": run.model.name, "sha256": run.model.sha256},
        "keypoint_set": keypoint_set.name,
        "keypoints": keypoint_set.names,
        "skeleton": keypoint_set.edges,
    }


def frame_record(frame: Frame, poses: Poses, run: Run) -> dict[str, Any]:
    """One frame with its people; of an image set also its name and size."""
    record: dict[str, Any] = {"frame": frame.index, "time_s": seconds(frame)}
    if run.is_image_set:
        height, width = frame.image.shape[:2]
        record |= {"name": frame.name, "width": width, "height": height}
    return record | {"people": people(poses)}
