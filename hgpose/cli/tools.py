"""``hgpose demo``, ``hgpose doctor`` and ``hgpose bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hgpose.cli.process import (
    SAVE,
    Backend,
    Device,
    Half,
    Save,
    Weights,
    plain_console,
    print_start,
    print_summaries,
    print_table,
)
from hgpose.options import EstimatorOptions, VideoOptions

_E, _V = EstimatorOptions(), VideoOptions()


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("hgpose-demo"),
    weights: Weights = _E.weights,
    device: Device = _E.device,
) -> None:
    """Run everything on the clip that ships with the package, and score it against the exact truth."""
    from hgpose.demo import CLIP, score_demo
    from hgpose.estimate import load_estimator
    from hgpose.process import process_video

    console = plain_console()
    estimator = load_estimator(EstimatorOptions(weights=weights, device=device))
    print_start(console, estimator)
    with console.status("the demo clip: two people, rendered"):
        summary = process_video(CLIP, out, estimator, VideoOptions(overwrite=True))
    print_summaries(console, estimator, [summary])
    score = score_demo(out / f"{CLIP.stem}.json")
    console.print(
        f"found {score.found:.0%} of the people, PCK@0.2 {score.pck:.1f} % against the exact joints\n"
        f"look at {out / CLIP.name}, then try: hgpose video YOUR.mp4 -o results",
        soft_wrap=True,
    )


def doctor(device: Device = _E.device) -> None:
    """Say what is installed, which device is used, and whether it works."""
    from rich.table import Column, Table
    from rich.text import Text

    from hgpose.doctor import examine

    table = Table("", "what", Column("found", overflow="fold"))
    bad = 0
    for finding in examine(device):
        mark = Text("ok", "green") if finding.good else Text("bad", "bold red")
        table.add_row(mark, finding.what, Text(finding.found))
        bad += not finding.good
    print_table(table)
    if bad:
        sys.exit(1)


def bench(
    video: Annotated[
        Path | None, typer.Argument(help="A video; by default the demo clip.", show_default=False)
    ] = None,
    save: Save = SAVE,
    weights: Weights = _E.weights,
    device: Device = _E.device,
    half: Half = None,
    backend: Backend = _E.backend,
    detect_every: Annotated[
        int, typer.Option("--detect-every", help="In the pipeline, detect on every n-th frame.")
    ] = _V.detect_every,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=3600, help="About so long a stage.")
    ] = 15.0,
) -> None:
    """Measure each stage alone and the pipeline, in frames a second."""
    from rich.table import Table

    from hgpose.bench import benchmark
    from hgpose.demo import CLIP
    from hgpose.device import leave_a_core
    from hgpose.estimate import load_estimator

    console = plain_console(stderr=False)
    leave_a_core()
    estimator = load_estimator(EstimatorOptions(weights=weights, device=device, half=half, backend=backend))
    print_start(console, estimator)
    options = VideoOptions(save=tuple(save.split(",")), detect_every=detect_every)
    result = benchmark(video or CLIP, estimator, options, seconds)
    table = Table("stage", "frames/s")
    for name, rate in result.stages.items():
        table.add_row(f"{name} alone", f"{rate:.1f}")
    table.add_row("all together", f"{result.pipeline:.1f}", style="bold")
    console.print(table)
    console.print(
        f"{result.people:.1f} people a frame; of the time to find and follow people the detector takes "
        f"{result.detector:.0%}, crops and the pose network {result.pose:.0%}\n"
        f"all together reach {result.ratio:.0%} of {result.slowest} alone",
    )
