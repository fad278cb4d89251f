"""Keypoints as one JSON document, schema ``hgpose/1``, a line a frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hgpose.atomic import atomic_text, output_errors
from hgpose.sinks.file import FileSink
from hgpose.sinks.record import people, seconds
from hgpose.types import Frame, Poses

#: Digits kept free for the count of frames, which is known last and stands first.
_COUNT_WIDTH = 12


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class JsonSink(FileSink):
    """Writes ``{"schema", "source", "model", "keypoint_set", "keypoints", "skeleton", "frames"}``.

    ``source`` has ``name``, ``width``, ``height``, ``fps``, the exact ``fps_exact`` ("30000/1001") and
    ``frames``, the number of frames written; of an image set only ``name`` and ``frames``, and each
    frame says its own ``name``, ``width`` and ``height``. Every frame is present, also one with nobody.
    Numbers are those of :func:`hgpose.sinks.record.people`, as in the CSV; one that is not finite is null.
    """

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with atomic_text(self.path, self._run.overwrite) as file:
            self._file = file
            self._frames = 0
            with output_errors(self.path):
                file.write('{"schema":"hgpose/1","source":' + self._source() + '"frames":')
                count_at = file.tell()
                file.write(" " * _COUNT_WIDTH + "},\n" + self._head() + ',\n"frames":[')
            yield
            with output_errors(self.path):
                file.write("\n]}\n")
                file.seek(count_at)
                file.write(str(self._frames).rjust(_COUNT_WIDTH))

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds the line of one frame; see :meth:`FileSink.write`."""
        record: dict[str, Any] = {"frame": frame.index, "time_s": seconds(frame)}
        if self._run.is_image_set:
            height, width = frame.image.shape[:2]
            record |= {"name": frame.name, "width": width, "height": height}
        record["people"] = people(poses)
        with output_errors(self.path):
            self._file.write((",\n" if self._frames else "\n") + _dumps(record))
        self._frames += 1

    def _source(self) -> str:
        """The description of the source, open for its last entry."""
        info = self._run.info
        source: dict[str, Any] = {"name": info.name}
        if info.fps is not None:
            source |= {"width": info.width, "height": info.height}
            source |= {"fps": float(info.fps), "fps_exact": f"{info.fps.numerator}/{info.fps.denominator}"}
        return _dumps(source).removesuffix("}") + ","

    def _head(self) -> str:
        """What stands between the source and the frames, without braces."""
        run = self._run
        return _dumps(
            {
                "model": {"name": run.model.name, "sha256": run.model.sha256},
                "keypoint_set": run.keypoint_set.name,
                "keypoints": run.keypoint_set.names,
                "skeleton": run.keypoint_set.edges,
            }
        )[1:-1]
