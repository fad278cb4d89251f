"""Keypoints as TRC marker files, a file a person, as OpenSim and Sports2D use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from hgpose.atomic import output_errors
from hgpose.sinks.folder import FolderSink
from hgpose.sinks.spool import Spool
from hgpose.types import Frame, Poses

_ORIGINAL = ("OrigDataRate", "OrigDataStartFrame", "OrigNumFrames")


@dataclass
class _Span:
    """The rows, counted over all frames, in which a person is first and last seen."""

    first: int
    last: int


class TrcSink(FolderSink):
    """Writes ``<stem>_person<NN>.trc`` from the first to the last frame on which that person is seen.

    Markers are the keypoints in px, x right, y *down*, z 0; between, where the person is not seen, and for
    what is not finite, NaN. ``Frame#`` counts from 1. NN is the id, or the place in the frame, from 1,
    where nobody follows people. An image set counts as one frame a second.
    DataRate is that of the rows, OrigDataRate that of the source.
    """

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with super()._opened(), Spool(self.path, len(self._run.keypoint_set)) as self._spool:
            self._spans: dict[int, _Span] = {}
            self._index: int | None = None
            self._every: int | None = None
            yield
            with output_errors(self.path), ExitStack() as files:
                self._write_people(files)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds one frame; see :meth:`FileSink.write`."""
        row = self._spool.frame_count
        # Of an image set, a gap is an image that could not be read.
        if self._index is not None and not self._run.is_image_set:
            step = max(frame.index - self._index, 1)
            self._every = min(self._every or step, step)
        self._index = frame.index
        for number in self._spool.add(frame, poses):
            self._spans.setdefault(number, _Span(row, row)).last = row

    def _write_people(self, files: ExitStack) -> None:
        """Side by side, so that the spool is read once however many people there are."""
        names = self._run.keypoint_set.names
        absent = np.full((len(names), 3), np.nan)
        present: dict[int, TextIO] = {}
        for frame in self._spool:
            seen = dict(zip(frame.numbers, frame.people["keypoints"], strict=True))
            for number in seen.keys() - present.keys():
                file = self._folder / f"{self._stem}_person{number:02d}.trc"
                present[number] = files.enter_context(
                    file.open("x", encoding="utf-8", errors="surrogateescape", newline="")
                )
                present[number].write(self._header(file.name, self._spans[number]))
            for number, opened in list(present.items()):
                points = seen.get(number, absent).copy()
                points[np.isnan(points).any(axis=1)] = np.nan
                points[:, 2] *= 0
                cells = ("NaN" if np.isnan(v) else str(v) for v in points.ravel().tolist())
                time_s = float(frame.index) if self._run.is_image_set else frame.time_s
                opened.write("\t".join([str(frame.index + 1), str(time_s), *cells]) + "\n")
                if frame.row == self._spans[number].last:
                    present.pop(number).close()

    def _header(self, name: str, span: _Span) -> str:
        names = self._run.keypoint_set.names
        original = self._run.info.fps or 1
        rate = str(float(original / (self._every or 1)))
        rows = str(span.last - span.first + 1)
        values = [rate, rate, rows, str(len(names)), "px", str(float(original)), "1", rows]
        lines = [
            # A line's end inside a file's name would end the line.
            ["PathFileType", "4", "(X/Y/Z)", " ".join(name.split())],
            ["DataRate", "CameraRate", "NumFrames", "NumMarkers", "Units", *_ORIGINAL],
            values,
            ["Frame#", "Time", *(cell for name in names for cell in (name, "", ""))],
            ["", "", *(f"{axis}{i}" for i in range(1, len(names) + 1) for axis in "XYZ")],
            [],
        ]
        return "".join("\t".join(line) + "\n" for line in lines)
