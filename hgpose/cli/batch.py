"""``hgpose batch``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hgpose.cli.process import (
    SAVE,
    Backend,
    Batch,
    Black,
    Boxes,
    DetectEvery,
    DetectorName,
    Device,
    Every,
    FixSides,
    FlipTest,
    Half,
    KeepRaw,
    Labels,
    LineWidth,
    Lost,
    MaxPeople,
    Person,
    Save,
    Smooth,
    Threshold,
    Track,
    Weights,
    plain_console,
    print_error,
    printable,
)
from hgpose.options import BatchOptions, EstimatorOptions, Style, VideoOptions

if TYPE_CHECKING:
    from rich.console import Console

    from hgpose.batch import BatchProgress, BatchSummary

_E, _V, _S, _B = EstimatorOptions(), VideoOptions(), Style(), BatchOptions()


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Folders, files, globs, text files with an input a line, or URIs (s3://...).",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder or URI for the results.", show_default=False)
    ],
    save: Save = SAVE,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Processes at work.", show_default="one a GPU, else one a core"),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help=r"local, or ray (pip install 'hgpose\[ray]').")
    ] = _B.engine,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Of the Ray cluster.", show_default="one is begun on this machine"),
    ] = None,
    every: Every = _V.every,
    person: Person = _E.person,
    max_people: MaxPeople = None,
    detector: DetectorName = _E.detector,
    detect_every: DetectEvery = _V.detect_every,
    track: Track = _E.track,
    lost: Lost = _E.lost_s,
    smooth: Smooth = None,
    fix_sides: FixSides = _E.fix_sides,
    keep_raw: KeepRaw = False,
    weights: Weights = _E.weights,
    flip_test: FlipTest = False,
    batch: Batch = _E.batch,
    device: Device = _E.device,
    half: Half = None,
    backend: Backend = _E.backend,
    threshold: Threshold = _S.threshold,
    line_width: LineWidth = None,
    black: Black = False,
    boxes: Boxes = True,
    labels: Labels = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are not of an earlier batch, too.")
    ] = False,
) -> None:
    """Find the people in all videos and images of folders; a rerun does what is not done yet."""
    how = EstimatorOptions(
        weights=weights, detector=detector, person=person, max_people=max_people, flip_test=flip_test,
        batch=batch, device=device, half=half, backend=backend,
        track=track, lost_s=lost, smooth=smooth, fix_sides=fix_sides, keep_raw=keep_raw,
    )  # fmt: skip
    what = VideoOptions(
        save=tuple(save.split(",")), every=every, detect_every=detect_every, overwrite=overwrite,
        style=Style(line_width, black, boxes, labels, threshold),
    )  # fmt: skip
    who = BatchOptions(workers, engine, address)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from hgpose.batch import process_batch

    console = plain_console()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[inputs]} inputs, {task.fields[rate]:.1f} frames/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("", total=None, inputs="0", rate=0.0)

        def report(progress: BatchProgress) -> None:
            for note in progress.notes:
                bar.console.print(Text(printable(note)), soft_wrap=True)
            progress.notes.clear()
            passed_s = bar.tasks[0].elapsed or 0
            bar.update(
                row,
                total=progress.tasks or None,
                completed=progress.tasks_done,
                inputs=f"{progress.done} of {progress.inputs}",
                rate=progress.frames / max(passed_s, 1e-9),
            )

        summary = process_batch(inputs, out, how, what, who, report)
    _print_summary(console, summary, out)
    if summary.failures:
        raise typer.Exit(1)


def _print_summary(console: Console, summary: BatchSummary, out: str) -> None:
    """What was done, and a table of what was not."""
    from rich.table import Column, Table
    from rich.text import Text

    from hgpose.places import shown

    done = [s for s in summary.summaries if s.error is None]
    frames, people = sum(s.frames for s in done), sum(s.frames_with_people for s in done)
    console.print(
        f"inputs: {len(done)} done, {summary.kept} done before; failed or damaged: {len(summary.failures)}; "
        f"{frames} frames, {people} of them with people",
    )
    console.print(Text(f"results in {printable(shown(out))}"), soft_wrap=True)
    if summary.failures:
        table = Table(Column("input", overflow="fold"), Column("reason", overflow="fold"))
        for name, reason in summary.failures:
            table.add_row(Text(printable(name)), Text(printable(reason)))
        console.print(table)
        print_error(console, f"not all went well; see {shown(out).rstrip('/')}/failures.json")
