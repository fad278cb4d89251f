"""``hgpose train pose`` and ``hgpose train person``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgpose.cli.process import plain_console
from hgpose.options import TrainOptions

if TYPE_CHECKING:
    from hgpose.train.loop import Task

train_app = typer.Typer(help="Train the pose network or the person finder.", no_args_is_help=True)

_D = TrainOptions(out=Path("runs"), minutes=1)


def _multiple_of_8(value: int) -> int:
    if value % 8:
        raise typer.BadParameter(f"{value} is no multiple of 8")
    return value


Annotations = Annotated[list[Path], typer.Argument(help="Annotation files to train on.", show_default=False)]
Images = Annotated[
    list[Path] | None,
    typer.Option("--images", help="Folder of the images; repeat for several.", show_default=False),
]
Val = Annotated[
    Path, typer.Option("--val", help="Annotations to choose the best weights on.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
Stacks = Annotated[int, typer.Option("--stacks", min=1, help="Hourglasses.")]
Width = Annotated[
    int, typer.Option("--width", min=8, help="Channels of an hourglass.", callback=_multiple_of_8)
]
Size = Annotated[int, typer.Option("--size", help="Side of the training crops, px, a multiple of 64.")]
Batch = Annotated[int, typer.Option("--batch", help="Samples a step.")]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Length in passes over the data.")]
Minutes = Annotated[float | None, typer.Option("--minutes", help="Length in minutes instead.")]
Rate = Annotated[float, typer.Option("--lr", help="Highest learning rate.")]
Decay = Annotated[
    float, typer.Option("--decay", help="Last share of the training, over which the rate falls to 0.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of initialisation, order and augmentation.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")]
Init = Annotated[str | None, typer.Option("--init", help="Weights to begin with: a name or a path.")]
Freeze = Annotated[
    bool, typer.Option("--freeze-stem", help="Leave the stem as --init has it: a good deal faster.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:0 or mps.")]
Half = Annotated[
    bool | None, typer.Option("--half/--no-half", help="bfloat16 arithmetic; by default where it is fast.")
]
Workers = Annotated[int, typer.Option("--workers", help="Processes that prepare crops.")]
Cache = Annotated[Path, typer.Option("--cache", help="Folder for decoded images, shared by runs.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data-note", help="A line on the data and its terms for the model card; repeat.", show_default=False
    ),
]
Licence = Annotated[str, typer.Option("--licence", help="Of the weights, for the model card.")]


def _description(notes: list[str] | None, annotations: list[Path], licence: str, seed: int) -> dict[str, Any]:
    command = shlex.join(["hgpose", *sys.argv[1:]])
    return {
        "data": tuple(notes or map(str, annotations)),
        "licence": licence,
        "training": {"command": command, "seed": seed},
    }


@train_app.command("pose")
def train_pose(
    annotations: Annotations,
    val: Val,
    images: Images = None,
    out: Out = Path("runs/pose"),
    keypoints: Annotated[str, typer.Option("--keypoints", help="Keypoint set to predict.")] = "body19",
    stacks: Stacks = 4,
    width: Width = 128,
    empty: Annotated[
        Path | None,
        typer.Option("--empty", help="Box annotations whose images without people serve as backgrounds."),
    ] = None,
    size: Size = _D.size_px,
    batch: Batch = _D.batch,
    epochs: Epochs = None,
    minutes: Minutes = None,
    lr: Rate = _D.learning_rate,
    decay: Decay = _D.decay,
    seed: Seed = _D.seed,
    resume: Resume = False,
    init: Init = None,
    freeze_stem: Freeze = False,
    device: Device = _D.device,
    half: Half = None,
    workers: Workers = _D.workers,
    cache: Cache = Path("runs/cache"),
    data_note: Data = None,
    licence: Licence = "",
) -> None:
    """Train the stacked hourglass on people with keypoints."""
    options = TrainOptions(
        out=out, size_px=size, batch=batch, epochs=epochs, minutes=minutes, learning_rate=lr, decay=decay,
        seed=seed, resume=resume, init=init, freeze_stem=freeze_stem, device=device, half=half,
        workers=workers,
    )  # fmt: skip
    from hgpose.keypoints import KEYPOINT_SETS, keypoint_set
    from hgpose.train.archives import load_people
    from hgpose.train.datasets import concatenate_people, load_box_set
    from hgpose.train.loop import check_run
    from hgpose.train.pose import PoseTask

    check_run(options)
    if keypoints not in KEYPOINT_SETS:
        raise typer.BadParameter(f"must be one of {', '.join(KEYPOINT_SETS)}", param_hint="--keypoints")
    wanted = keypoint_set(keypoints)
    folders = images or []
    people = concatenate_people([load_people(path, folders, wanted) for path in annotations])
    empty_files: list[Path] = []
    if empty is not None:
        scenes = load_box_set(empty, folders)
        empty_files = [file for file, boxes in zip(scenes.files, scenes.boxes, strict=True) if not len(boxes)]
    task = PoseTask(
        people,
        load_people(val, folders, wanted),
        empty_files,
        wanted,
        {"stacks": stacks, "width": width},
        options,
        cache,
        _description(data_note, annotations, licence, seed),
    )
    _run(task, options)


@train_app.command("person")
def train_person(
    annotations: Annotations,
    val: Val,
    images: Images = None,
    out: Out = Path("runs/person"),
    stacks: Stacks = 2,
    width: Width = 128,
    size: Size = 256,
    input_px: Annotated[
        int,
        typer.Option(
            "--input", min=64, help="Side of a square as large as the input when the model is used, px."
        ),
    ] = 256,
    mosaic: Annotated[
        float,
        typer.Option("--mosaic", min=0, max=1, help="Share of views of four images; best 0 in a last run."),
    ] = 0.5,
    batch: Batch = _D.batch,
    epochs: Epochs = None,
    minutes: Minutes = None,
    lr: Rate = _D.learning_rate,
    decay: Decay = _D.decay,
    seed: Seed = _D.seed,
    resume: Resume = False,
    init: Init = None,
    freeze_stem: Freeze = False,
    device: Device = _D.device,
    half: Half = None,
    workers: Workers = _D.workers,
    cache: Cache = Path("runs/cache"),
    data_note: Data = None,
    licence: Licence = "",
) -> None:
    """Train the person finder on boxes (COCO-style JSON)."""
    options = TrainOptions(
        out=out, size_px=size, batch=batch, epochs=epochs, minutes=minutes, learning_rate=lr, decay=decay,
        seed=seed, resume=resume, init=init, freeze_stem=freeze_stem, device=device, half=half,
        workers=workers,
    )  # fmt: skip
    from hgpose.train.datasets import concatenate_boxes, load_box_set
    from hgpose.train.loop import check_run
    from hgpose.train.person import PersonTask

    check_run(options)
    folders = images or []
    task = PersonTask(
        concatenate_boxes([load_box_set(path, folders) for path in annotations]),
        load_box_set(val, folders),
        {"stacks": stacks, "width": width},
        options,
        cache,
        _description(data_note, annotations, licence, seed),
        input_px,
        mosaic,
    )
    _run(task, options)


def _run(task: Task, options: TrainOptions) -> None:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from hgpose.train.loop import Progress as State
    from hgpose.train.loop import Trainer

    console = plain_console(stderr=False)
    trainer = Trainer(task, options)
    parameters = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    console.print(
        f"{task.card().name}: {parameters:.2f} M parameters, {len(task.dataset)} samples, "
        f"device {trainer.device}, {'bfloat16' if trainer.half else 'float32'}, run in {options.out}",
        soft_wrap=True,
    )
    columns = (
        TextColumn("step {task.fields[step]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} img/s  {task.fields[scores]}"),
        TimeRemainingColumn(),
    )
    if len(set(task.data())) == 1:
        console.print("note: --val is what is trained on: its score says nothing of other images")
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("training", total=1.0, step=trainer.step, loss=float("nan"), rate=0.0, scores="")
        bar.update(line, completed=trainer.done)

        def report(state: State) -> None:
            scores = "  ".join(f"{key} {value:.1f}" for key, value in state.scores.items())
            bar.update(
                line,
                completed=state.done,
                step=state.step,
                loss=state.loss,
                rate=state.samples_per_s,
                scores=scores,
            )

        best = trainer.run(report)
    console.print(f"best weights: {best}", soft_wrap=True)
