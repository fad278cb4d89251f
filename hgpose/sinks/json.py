"""Keypoints as one JSON document, schema ``hgpose/1``, a line a frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hgpose.atomic import atomic_text, output_errors
from hgpose.sinks.document import document_header, frame_record
from hgpose.sinks.file import FileSink
from hgpose.types import Frame, Poses

_MAX_DIGITS = 12


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
        width = len(self._header(0)) + _MAX_DIGITS
        with atomic_text(self.path, self._run.overwrite) as file:
            self._file = file
            self._frames = 0
            with output_errors(self.path):
                file.write(self._header(0).ljust(width))
            yield
            with output_errors(self.path):
                file.write("\n]}\n")
                # The count stands first and is known last: blanks between tokens leave room for it.
                file.seek(0)
                file.write(self._header(self._frames).ljust(width))

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds the line of one frame; see :meth:`FileSink.write`."""
        line = _dumps(frame_record(frame, poses, self._run))
        with output_errors(self.path):
            self._file.write((",\n" if self._frames else "\n") + line)
        self._frames += 1

    def _header(self, frames: int) -> str:
        """All that stands before the first frame."""
        header = document_header(self._run)
        header["source"]["frames"] = frames
        return _dumps(header | {"frames": []}).removesuffix("]}")
