"""Where results go. One file a kind; all follow :class:`Sink` and pass one contract suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hgpose.sinks.csv import CsvSink
from hgpose.sinks.json import JsonSink
from hgpose.sinks.overlay import overlay_sink
from hgpose.sinks.record import Run
from hgpose.types import Frame, Poses

__all__ = ["SINKS", "Run", "Sink"]


class Sink(Protocol):
    """Takes every frame with its people, in order, and keeps nothing of it in memory.

    A context manager. Files are written under a temporary name beside their place; leaving the
    context without an error completes and renames them, leaving with an error removes them, so that
    what stands under a final name is always whole.
    """

    @property
    def path(self) -> Path:
        """The file, or the folder of files, that it writes."""
        ...

    def __enter__(self) -> Self: ...

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds one frame; ``poses`` may be empty, the frame is recorded all the same."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


#: Kinds by name: each makes a sink of a folder, the file name without its suffix, and the run.
SINKS: dict[str, Callable[[Path, str, Run], Sink]] = {
    "overlay": overlay_sink,
    "csv": lambda folder, stem, run: CsvSink(folder / f"{stem}.csv", run),
    "json": lambda folder, stem, run: JsonSink(folder / f"{stem}.json", run),
}
