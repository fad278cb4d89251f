"""Keypoints as JSON lines, for programs that read along while they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hgpose.atomic import atomic_text, output_errors
from hgpose.sinks.document import document_header, frame_record
from hgpose.sinks.file import FileSink
from hgpose.types import Frame, Poses


class JsonlSink(FileSink):
    """Writes the JSON document's header (without ``frames``) as the first line, then a line a frame."""

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with atomic_text(self.path, self._run.overwrite) as file:
            self._file = file
            self._line(document_header(self._run))
            yield

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds the line of one frame; see :meth:`FileSink.write`."""
        self._line(frame_record(frame, poses, self._run))

    def _line(self, value: dict[str, Any]) -> None:
        with output_errors(self.path):
            self._file.write(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")
