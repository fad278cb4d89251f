"""Where results go. One file a kind; all follow :class:`Sink` and pass one contract suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hgpose.sinks.csv import CsvSink
from hgpose.sinks.csv_long import CsvLongSink
from hgpose.sinks.dlc import DlcSink
from hgpose.sinks.json import JsonSink
from hgpose.sinks.jsonl import JsonlSink
from hgpose.sinks.lists import AlphaPoseSink, CocoSink, MmposeSink
from hgpose.sinks.npz import NpzSink
from hgpose.sinks.openpose import OpenPoseSink
from hgpose.sinks.overlay import overlay_sink
from hgpose.sinks.parquet import ParquetSink
from hgpose.sinks.record import Run
from hgpose.sinks.trc import TrcSink
from hgpose.sinks.yolo import YoloSink
from hgpose.types import Frame, Poses

__all__ = ["SINKS", "Run", "Sink"]


class Sink(Protocol):
    """Takes every frame with its people, in order, and keeps nothing of it in memory.

    A context manager. Files are written under a temporary name beside their place; leaving the
    context without an error completes and renames them, leaving with an error removes them, so that
    what stands under a final name is always whole.
    """

    @property
    def path(self) -> Path | None:
        """The file, or the folder of files, that it writes, if it does."""
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
    "csv-long": lambda folder, stem, run: CsvLongSink(folder / f"{stem}_long.csv", run),
    "json": lambda folder, stem, run: JsonSink(folder / f"{stem}.json", run),
    "jsonl": lambda folder, stem, run: JsonlSink(folder / f"{stem}.jsonl", run),
    "parquet": lambda folder, stem, run: ParquetSink(folder / f"{stem}.parquet", run),
    "npz": lambda folder, stem, run: NpzSink(folder / f"{stem}.npz", run),
    "coco": lambda folder, stem, run: CocoSink(folder / f"{stem}_coco.json", run),
    "openpose": lambda folder, stem, run: OpenPoseSink(folder / f"{stem}_openpose", stem, run),
    "alphapose": lambda folder, stem, run: AlphaPoseSink(folder / f"{stem}_alphapose.json", run),
    "mmpose": lambda folder, stem, run: MmposeSink(folder / f"{stem}_mmpose.json", run),
    "yolo": lambda folder, stem, run: YoloSink(folder / f"{stem}_yolo", stem, run),
    "dlc": lambda folder, stem, run: DlcSink(folder / f"{stem}_dlc.csv", run),
    "trc": lambda folder, stem, run: TrcSink(folder / f"{stem}_trc", stem, run),
}
