"""Keypoints that were saved before, by hgpose or by other tools, read frame by frame.

hgpose's JSON, JSON lines, CSV (wide and long), Parquet and npz; COCO results, AlphaPose, MMPose (its
inferencer on a video), OpenPose, Ultralytics' YOLO labels and DeepLabCut's CSV. Not TRC: it has no scores,
and those of other programs are points in space. Memory does not depend on their length. What was cut short
is refused, unless it was cut between two lines or files: nothing tells that more should follow.
Symbols: N people, K keypoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hgpose.errors import InputError
from hgpose.results.json_stream import JsonStream
from hgpose.results.others import open_list, open_openpose, open_yolo
from hgpose.results.own import open_csv, open_hgpose, open_npz, open_parquet
from hgpose.results.record import ResultFrame, Results, reading
from hgpose.sources.images import IMAGE_SUFFIXES
from hgpose.sources.video import VIDEO_SUFFIXES

__all__ = ["ResultFrame", "Results", "open_results"]

_NO_TRC = (
    "{path}: TRC cannot be read: it has no scores, and other programs' points are in space, not on pictures; "
    "give the JSON, CSV or Parquet of the same"
)


@contextmanager
def open_results(path: Path) -> Iterator[Results]:
    """Opens results, whose kind is told by the file itself.

    Raises:
        InputError: missing, unreadable, malformed, or of no known kind.
    """
    with ExitStack() as stack:
        with reading(path):
            results = _open(path, stack)
        yield Results(
            path,
            results.kind,
            results.keypoint_set,
            _checked(path, results.frames),
            results.info,
            results.model,
        )


def _open(path: Path, stack: ExitStack) -> Results:
    if path.is_dir():
        return _open_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".trc":
        raise InputError(_NO_TRC.format(path=path))
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InputError(f"{path}: pictures, not keypoints; find people on them with hgpose video or images")
    if suffix == ".parquet":
        return open_parquet(path, stack)
    if suffix == ".npz":
        return open_npz(path, stack)
    file = stack.enter_context(path.open(encoding="utf-8", errors="surrogateescape", newline=""))
    if suffix == ".csv":
        return open_csv(path, file)
    stream = JsonStream(file)
    if suffix == ".jsonl":
        return open_hgpose(path, stream.value(), stream.values())
    if stream.peek() == "{":
        header = stream.members_before("frames")
        return open_hgpose(path, header, stream.last_elements(in_object=True))
    return open_list(path, stream.last_elements())


def _open_folder(path: Path) -> Results:
    if (path / "labels").is_dir():
        return open_yolo(path)
    if any(path.glob("*.trc")):
        raise InputError(_NO_TRC.format(path=path))
    if (part := next(path.rglob("part-*.parquet"), None)) is not None:
        raise InputError(f"{path}: a data set of many inputs; give the part of one, such as {part}")
    return open_openpose(path)


def _checked(path: Path, frames: Iterator[ResultFrame]) -> Iterator[ResultFrame]:
    while True:
        # Only the reading: what the caller does with a frame is not the file's fault.
        with reading(path):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame
