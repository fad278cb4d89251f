"""``hgpose convert``, ``hgpose draw`` and ``hgpose schema``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from hgpose.cli.process import (
    Black,
    Boxes,
    Labels,
    LineWidth,
    Out,
    Overwrite,
    Threshold,
    folder,
    plain_console,
    printable,
)
from hgpose.options import Style

_S = Style()
Results = Annotated[
    Path,
    typer.Argument(
        help="Keypoints of any kind but overlay and trc: the file, or the folder of openpose or yolo.",
        show_default=False,
    ),
]


def convert(
    results: Results,
    out: Annotated[
        Path, typer.Argument(help="Folder for the files.", show_default=False, parser=folder, metavar="OUT")
    ],
    to: Annotated[
        str,
        typer.Option("--to", help="Kinds of output, separated by commas, as of --save.", show_default=False),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", help="Video or images the results are of, if they do not tell size and rate."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write saved keypoints as another kind of file."""
    from hgpose.convert import convert

    kinds = [kind.strip() for kind in to.split(",")]
    _print_written(convert(results, out, kinds, source, overwrite=overwrite))


def draw(
    results: Results,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="VIDEO", help="The video or folder of images they are of.", show_default=False
        ),
    ],
    out: Out,
    threshold: Threshold = _S.threshold,
    line_width: LineWidth = None,
    black: Black = False,
    boxes: Boxes = True,
    labels: Labels = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw saved keypoints onto their video, without the network."""
    from hgpose.convert import convert

    style = Style(line_width, black, boxes, labels, threshold)
    _print_written(convert(results, out, ["overlay"], source, style, overwrite))


def schema() -> None:
    """Print the JSON schema of the JSON that hgpose writes."""
    typer.echo(Path(__file__).parents[1].joinpath("schema.json").read_text(encoding="utf-8"), nl=False)


def _print_written(files: Iterable[Path]) -> None:
    console = plain_console()
    for file in files:
        console.print(f"wrote {printable(str(file))}", soft_wrap=True)
