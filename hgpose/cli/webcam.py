"""``hgpose webcam``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgpose.cli.process import (
    Backend,
    Black,
    Boxes,
    DetectorName,
    Device,
    FlipTest,
    Half,
    Heatmaps,
    KeepRaw,
    Labels,
    LineWidth,
    Lost,
    MaxPeople,
    Person,
    Save,
    Threshold,
    Track,
    Weights,
    plain_console,
    print_start,
    print_summaries,
)
from hgpose.options import CameraOptions, EstimatorOptions, Style

if TYPE_CHECKING:
    from rich.console import Console

    from hgpose.live import LiveStatus

_E, _C, _S = EstimatorOptions(), CameraOptions(), Style()
_SAVE = ",".join(_C.save)


def webcam(
    camera: Annotated[
        str, typer.Option("--camera", help="Number of a camera, or an http or rtsp URL.")
    ] = "0",
    record: Annotated[
        Path | None, typer.Option("--record", help="Folder for the same files as of a video.")
    ] = None,
    save: Save = _SAVE,
    serve: Annotated[
        int | None, typer.Option("--serve", help="Port of a preview in the browser; 0: any free one.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address of that preview; 0.0.0.0 lets the whole network watch.")
    ] = _C.host,
    window: Annotated[
        bool, typer.Option("--window/--no-window", help="Show a window where there is a display.")
    ] = _C.window,
    mirror: Annotated[bool, typer.Option("--mirror", help="Swap left and right, as a mirror does.")] = False,
    person: Person = _E.person,
    max_people: MaxPeople = None,
    detector: DetectorName = _E.detector,
    detect_every: Annotated[
        int, typer.Option("--detect-every", help="Look for people anew on every n-th frame only.")
    ] = _C.detect_every,
    track: Track = _E.track,
    lost: Lost = _E.lost_s,
    smooth: Annotated[str | None, typer.Option("--smooth", help="none or live (the default).")] = None,
    keep_raw: KeepRaw = False,
    weights: Weights = _E.weights,
    flip_test: FlipTest = False,
    device: Device = _E.device,
    half: Half = None,
    backend: Backend = _E.backend,
    threshold: Threshold = _S.threshold,
    line_width: LineWidth = None,
    black: Black = False,
    heatmaps: Heatmaps = False,
    boxes: Boxes = True,
    labels: Labels = False,
) -> None:
    """Find the people in front of a camera, live. End with q or Ctrl-C.

    Exit code 0 if it was asked to end, 1 if the camera ended by itself; files are whole either way.
    """
    how = EstimatorOptions(
        weights=weights, detector=detector, person=person, max_people=max_people, flip_test=flip_test,
        device=device, half=half, backend=backend, heatmaps=heatmaps, track=track, lost_s=lost, smooth=smooth,
        keep_raw=keep_raw,
    )  # fmt: skip
    what = CameraOptions(
        mirror=mirror, record=record, save=tuple(save.split(",")), detect_every=detect_every, window=window,
        serve=serve, host=host, style=Style(line_width, black, boxes, labels, threshold),
    )  # fmt: skip
    from rich.live import Live
    from rich.text import Text

    from hgpose.device import leave_a_core
    from hgpose.errors import InputError
    from hgpose.estimate import load_estimator
    from hgpose.live import watch_camera

    console = plain_console()
    leave_a_core()
    estimator = load_estimator(how)
    print_start(console, estimator)
    last: LiveStatus | None = None
    with Live(Text("opening the camera"), console=console, transient=True) as line:

        def report(status: LiveStatus) -> None:
            nonlocal last
            if last is None:
                _print_views(console, what, status)
            if status.frames:
                line.update(Text(str(status)))
            last = status

        summary = watch_camera(camera, estimator, what, report)
    console.print(str(last))
    print_summaries(console, estimator, [replace(summary, damage=None)])
    if summary.damage is not None:
        raise InputError(f"camera ended: {summary.damage}; files hold what came before")


def _print_views(console: Console, what: CameraOptions, status: LiveStatus) -> None:
    """Where there is something to see, and advice if there is nothing."""
    if what.window and status.no_window is not None:
        console.print(f"no window: {status.no_window}")
    if status.url is not None:
        console.print(f"preview at {status.url}")
    if status.no_window is not None and status.url is None and what.record is None:
        console.print("nothing is shown or recorded; add --serve 8000 to watch in a browser, or --record OUT")
    console.print("Ctrl-C ends" if status.no_window is not None else "q in the window, or Ctrl-C, ends")
