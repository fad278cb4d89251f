"""``hgpose weights`` and ``hgpose export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hgpose.cli.process import plain_console, print_table

weights_app = typer.Typer(help="List, fetch and convert weights.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="As 'hgpose weights list' has it.", show_default=False)]
AnyWeights = Annotated[str, typer.Argument(help="A name or a .safetensors file.", show_default=False)]
#: The narrowest terminal that leaves names whole beside the other columns.
_NARROW = 60


@weights_app.command("list")
def list_weights() -> None:
    """Show the weights that are here and those that can be fetched."""
    from rich.table import Column, Table

    from hgpose.errors import WeightsError
    from hgpose.registry import PUBLISHED
    from hgpose.weights import cache_folder, read_card, weights_folder

    console = plain_console(stderr=False)
    whole = console.width >= _NARROW or not console.is_terminal
    table = Table(Column("name", no_wrap=whole, overflow="fold"), box=None, pad_edge=False)
    for header in ("where", "keypoints", "input px", "score", "licence"):
        table.add_column(header, overflow="fold")
    bad = []
    for folder, where in ((weights_folder(), "shipped"), (cache_folder(), "fetched")):
        for path in sorted(folder.glob("*.safetensors")):
            try:
                card = read_card(path)
            except WeightsError as error:
                bad.append(str(error))
                continue
            score = _score(path.stem) if where == "fetched" else ""
            table.add_row(path.stem, where, card.keypoint_set, str(card.input_px), score, card.licence)
    for name, weights in PUBLISHED.items():
        if not (cache_folder() / f"{name}.safetensors").is_file():
            side = str(weights.input_px)
            table.add_row(name, "to fetch", weights.keypoint_set, side, _score(name), weights.licence)
    print_table(table)
    if bad:
        raise WeightsError("; ".join(bad))


def _score(name: str) -> str:
    """As the authors report it; empty where they do not."""
    from hgpose.registry import PUBLISHED

    weights = PUBLISHED.get(name)
    if weights is None or weights.score is None:
        return ""
    return f"{weights.score} {weights.metric.partition(',')[0]}"


def _check_name(name: str) -> None:
    """Without a name the answer is those there are."""
    from hgpose.errors import OptionsError
    from hgpose.registry import PUBLISHED
    from hgpose.weights import available

    if not name:
        raise OptionsError(
            f"NAME is missing; shipped: {', '.join(available())}; to fetch: {', '.join(PUBLISHED)}"
        )


@weights_app.command("info")
def info(name: AnyWeights = "") -> None:
    """Show all that is known of weights."""
    from dataclasses import asdict

    from hgpose.errors import WeightsError
    from hgpose.registry import PUBLISHED
    from hgpose.weights import find_weights, read_card

    _check_name(name)
    fields = asdict(PUBLISHED[name]) if name in PUBLISHED else {}
    try:
        path = find_weights(name)
    except WeightsError:
        if not fields:
            raise
        _print(fields | {"file": f"not here: hgpose weights fetch {name}"})
    else:
        _print(fields | {"file": path} | asdict(read_card(path)))


@weights_app.command("fetch")
def fetch_weights(name: Name = "") -> None:
    """Fetch published weights; afterwards --weights NAME finds them."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    from hgpose.registry import fetch

    _check_name(name)
    console = plain_console()
    with Progress(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task(name, total=None)
        path = fetch(name, lambda here, total: bar.update(task, completed=here, total=total))
    typer.echo(path)


@weights_app.command("convert")
def convert_checkpoint(
    file: Annotated[Path, typer.Argument(help="A PyTorch checkpoint.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="NAME.safetensors.", show_default=False)],
    size: Annotated[int, typer.Option("--size", help="Side of the network's input, px.")] = 256,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout", help="bearpaw or fpd, which look the same at width 256 (then bearpaw is taken)."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file and its card.")] = False,
) -> None:
    """Convert a public hourglass checkpoint: bearpaw, anibali, princeton-vl, FPD or MMPose hourglass52."""
    from dataclasses import asdict

    from hgpose.checkpoints import convert
    from hgpose.errors import OptionsError

    if out.suffix != ".safetensors":
        raise OptionsError(f"-o {out}: the name must end in .safetensors")
    card = convert(file, out, size, layout, overwrite=overwrite)
    _print({"file": out} | asdict(card))
    if layout is None and card.training["layout"] == "bearpaw" and card.architecture["width"] == 256:
        typer.echo(
            "taken as bearpaw's or anibali's; FPD's look the same at this width: if it is FPD's, convert it "
            "again with --layout fpd --overwrite",
            err=True,
        )


@weights_app.command("path")
def path_of(name: AnyWeights = "") -> None:
    """Print where the file of weights is."""
    from hgpose.weights import find_weights

    _check_name(name)
    typer.echo(find_weights(name))


def export(
    weights: AnyWeights,
    to: Annotated[str, typer.Option("--to", help="onnx or torchscript.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file; by default NAME.onnx or NAME.pt.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a network for another runtime, and check that it computes the same there."""
    from hgpose.export import export as write

    file = out or Path(f"{Path(weights).stem}.{'onnx' if to == 'onnx' else 'pt'}")
    difference = write(weights, to, file, overwrite)
    typer.echo(f"{file}: agrees to {difference:.1e}")


def _print(fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        if value not in ("", None, {}, ()):
            typer.echo(f"{key}: {value}")
