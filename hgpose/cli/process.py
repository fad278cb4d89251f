"""``hgpose video`` and ``hgpose images``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgpose.options import EstimatorOptions, Style, VideoOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hgpose.estimate import Estimator
    from hgpose.pipeline import Summary
    from hgpose.process import Report

_E, _V, _S = EstimatorOptions(), VideoOptions(), Style()
SAVE = ",".join(_V.save)
#: What a file's name may hold but a terminal must not get: control characters, bytes that are no text.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _check_save(save: str) -> str:
    """The option's value without blanks; an unknown kind ends the program before anything is loaded."""
    from hgpose.process import check_kinds

    kinds = [kind.strip() for kind in save.split(",")]
    check_kinds(kinds)
    return ",".join(kinds)


def folder(given: str) -> Path:
    """Where results go; an empty name, such as that of a variable which is not set, is no folder."""
    if given in ("", "-"):
        raise typer.BadParameter("must be a folder; results are files")
    return Path(given)


Inputs = Annotated[list[str], typer.Argument(help="What to read.", show_default=False)]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="Folder for the results.", show_default=False, parser=folder, metavar="<path>"
    ),
]
Save = Annotated[
    str, typer.Option("--save", help="Kinds of output, separated by commas.", callback=_check_save)
]
Every = Annotated[int, typer.Option("--every", help="Take every n-th frame.")]
DetectEvery = Annotated[
    int, typer.Option("--detect-every", help="Look for people anew on every n-th frame at least.")
]
Person = Annotated[
    str, typer.Option("--person", help="all, largest, center or, where people are followed, id:N.")
]
MaxPeople = Annotated[
    int | None, typer.Option("--max-people", help="At most so many a frame, the surest first.")
]
DetectorName = Annotated[
    str, typer.Option("--detector", help="person, whole-frame or boxes:FILE (CSV or COCO JSON).")
]
Track = Annotated[
    bool, typer.Option("--track/--no-track", help="Follow people, or take every frame by itself.")
]
Lost = Annotated[
    float, typer.Option("--lost", help="Seconds out of sight after which a person gets a new id.")
]
Smooth = Annotated[
    str | None, typer.Option("--smooth", help="none, live, or full (looks ahead).", show_default="full")
]
FixSides = Annotated[
    bool,
    typer.Option(
        "--fix-sides/--no-fix-sides",
        help="Put right left and right where the network exchanges them for up to half a second.",
    ),
]
KeepRaw = Annotated[bool, typer.Option("--keep-raw", help="Add the keypoints before smoothing to the JSON.")]
Weights = Annotated[str, typer.Option("--weights", help="Pose weights: a name or a .safetensors file.")]
FlipTest = Annotated[
    bool, typer.Option("--flip-test", help="Average with the mirrored crop: slower, more accurate.")
]
Batch = Annotated[
    int, typer.Option("--batch", help="Frames and crops that go through a network at once, at most.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:0 or mps.")]
Half = Annotated[
    bool | None, typer.Option("--half/--no-half", help="Half precision; by default where it is faster.")
]
Backend = Annotated[
    str,
    typer.Option("--backend", help=r"torch, onnx or openvino (pip install 'hgpose\[openvino]')."),
]
Threshold = Annotated[float, typer.Option("--threshold", help="Keypoints that score lower are not drawn.")]
LineWidth = Annotated[
    int | None, typer.Option("--line-width", help="Of limbs, px; by default from the person's size.")
]
Black = Annotated[bool, typer.Option("--black", help="Draw on black instead of on the picture.")]
Heatmaps = Annotated[bool, typer.Option("--heatmaps", help="Draw the probability maps, too.")]
Boxes = Annotated[bool, typer.Option("--boxes/--no-boxes", help="Draw each person's box.")]
Labels = Annotated[bool, typer.Option("--labels", help="Write each person's id and score.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where a run of the same videos was interrupted.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files of an earlier run.")]


def video(
    inputs: Annotated[
        list[str], typer.Argument(help="Files, globs, - for stdin, http or rtsp URLs.", show_default=False)
    ],
    out: Out,
    save: Save = SAVE,
    start: Annotated[
        float, typer.Option("--start", help="Seconds to leave out at the beginning.")
    ] = _V.start_s,
    end: Annotated[float | None, typer.Option("--end", help="Seconds at which to stop.")] = None,
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
    heatmaps: Heatmaps = False,
    boxes: Boxes = True,
    labels: Labels = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Find the people in videos: an overlay, a CSV and a JSON for each."""
    how = EstimatorOptions(
        weights=weights, detector=detector, person=person, max_people=max_people, flip_test=flip_test,
        batch=batch, device=device, half=half, backend=backend, heatmaps=heatmaps,
        track=track, lost_s=lost, smooth=smooth, fix_sides=fix_sides, keep_raw=keep_raw,
    )  # fmt: skip
    what = VideoOptions(
        save=tuple(save.split(",")), start_s=start, end_s=end, every=every, detect_every=detect_every,
        overwrite=overwrite, resume=resume, style=Style(line_width, black, boxes, labels, threshold),
    )  # fmt: skip
    from hgpose.process import find_videos, process_videos

    videos = find_videos(inputs)
    _process(how, lambda estimator, report: process_videos(videos, out, estimator, what, report))


def images(
    inputs: Annotated[list[str], typer.Argument(help="Folders, files, globs.", show_default=False)],
    out: Out,
    save: Save = SAVE,
    person: Person = _E.person,
    max_people: MaxPeople = None,
    detector: DetectorName = _E.detector,
    weights: Weights = _E.weights,
    flip_test: FlipTest = False,
    batch: Batch = _E.batch,
    device: Device = _E.device,
    half: Half = None,
    backend: Backend = _E.backend,
    threshold: Threshold = _S.threshold,
    line_width: LineWidth = None,
    black: Black = False,
    heatmaps: Heatmaps = False,
    boxes: Boxes = True,
    labels: Labels = False,
    overwrite: Overwrite = False,
) -> None:
    """Find the people on images: an overlay each, one keypoints.csv and keypoints.json for all."""
    how = EstimatorOptions(
        weights=weights, detector=detector, person=person, max_people=max_people, flip_test=flip_test,
        batch=batch, device=device, half=half, backend=backend, heatmaps=heatmaps,
    )  # fmt: skip
    what = VideoOptions(
        save=tuple(save.split(",")),
        overwrite=overwrite,
        style=Style(line_width, black, boxes, labels, threshold),
    )
    from hgpose.process import process_images

    _process(how, lambda estimator, report: [process_images(inputs, out, estimator, what, report)])


def _process(how: EstimatorOptions, work: Callable[[Estimator, Report], Sequence[Summary]]) -> None:
    """Loads the networks, does the work under a progress bar, prints the table; exit 1 if anything failed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hgpose.device import leave_a_core
    from hgpose.estimate import load_estimator

    console = plain_console()
    leave_a_core()
    estimator = load_estimator(how)
    print_start(console, estimator)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        current: Summary | None = None

        def report(summary: Summary, frame_count: int | None) -> None:
            nonlocal current
            if summary is not current:
                # One line, that of the input at work, however many there are.
                for task in bar.task_ids:
                    bar.remove_task(task)
                bar.add_task(printable(summary.name), total=frame_count, rate=0.0)
                current = summary
            rate = summary.frames / max(summary.seconds, 1e-9)
            bar.update(bar.task_ids[0], completed=summary.frames, rate=rate)

        summaries = work(estimator, report)
    print_summaries(console, estimator, summaries)
    if any(s.error or s.damage for s in summaries):
        raise typer.Exit(1)


def plain_console(stderr: bool = True, width: int | None = None) -> Console:
    """A terminal on which names stand as they are, whatever brackets and colons they hold."""
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def print_table(table: Table, whole: bool = False) -> None:
    """Prints a table on standard output, with whole rows where that is no terminal, or if they must be."""
    console = plain_console(stderr=False)
    if whole or not console.is_terminal:
        width = console.measure(table, options=console.options.update(width=10_000)).maximum
        console = plain_console(stderr=False, width=width)
    console.print(table)


def print_start(console: Console, estimator: Estimator) -> None:
    """One line: device, model, detector."""
    precision = "half precision" if estimator.crops.network.half else "float32"
    console.print(
        f"device {estimator.device} ({precision}), model {estimator.model.name}, "
        f"detector {estimator.options.detector}",
    )


def print_summaries(console: Console, estimator: Estimator, summaries: Sequence[Summary]) -> None:
    """The closing table, what went wrong, and the order of the keypoints."""
    from rich.table import Column, Table
    from rich.text import Text

    from hgpose.sources.images import FAILURES_NAMED

    # All of them, however many: a folder is mended file by file. Before the table, which stays in sight.
    for s in summaries:
        for _, reason in s.problems if len(s.problems) > FAILURES_NAMED else ():
            console.print(Text.assemble(("unreadable: ", "bold yellow"), printable(reason)), soft_wrap=True)
    headers = ("input", "frames", "with people", "most people", "seconds", "frames/s", "state")
    # Numbers, too, stay whole in a narrow terminal.
    table = Table(*(Column(header, overflow="fold") for header in headers))
    for s in summaries:
        name = Text(printable(s.name))
        if s.error is not None:
            table.add_row(name, *("",) * 5, Text("failed", "bold red"))
            continue
        if s.kept:
            table.add_row(name, *("",) * 5, Text("done before"))
            continue
        numbers = (
            s.frames,
            s.frames_with_people,
            s.people,
            f"{s.seconds:.1f}",
            f"{s.frames / s.seconds:.1f}",
        )
        state = Text("ok") if s.damage is None else Text("damaged", "bold yellow")
        table.add_row(name, *map(str, numbers), state)
    console.print(table)
    for file in (file for s in summaries if not s.kept for file in s.files):
        console.print(Text(f"wrote {printable(file)}"), soft_wrap=True)
    if sides := sum(s.sides_corrected for s in summaries):
        console.print(f"left and right were exchanged, and put right, in {sides} poses")
    for s in summaries:
        if s.warning is not None:
            warning = printable(f"{s.name}: {s.warning}")
            console.print(Text.assemble(("warning: ", "bold yellow"), warning), soft_wrap=True)
        if s.error is not None:
            print_error(console, s.error)
        elif s.damage is not None:
            damage = printable(f"{s.name}: {s.damage}")
            console.print(Text.assemble(("damaged: ", "bold yellow"), damage), soft_wrap=True)
    if any(s.files for s in summaries):
        names = ", ".join(f"{i} {name}" for i, name in enumerate(estimator.keypoint_set.names))
        console.print(f"keypoints: {names}", soft_wrap=True)


def print_error(console: Console, message: str) -> None:
    """One line, whatever the names in it hold."""
    from rich.text import Text

    console.print(Text.assemble(("error: ", "bold red"), printable(message)), soft_wrap=True)


def printable(text: str) -> str:
    """Text for a terminal, whatever the names in it hold."""
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)
