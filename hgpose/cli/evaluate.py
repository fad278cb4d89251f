"""``hgpose eval pose``, ``hgpose eval person`` and ``hgpose eval track``."""

from __future__ import annotations

import glob
import json
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgpose.cli.process import print_table
from hgpose.options import EstimatorOptions, VideoOptions

if TYPE_CHECKING:
    from rich.table import Table

_E, _V = EstimatorOptions(), VideoOptions()

eval_app = typer.Typer(help="Score a model, or a keypoints file, on an annotated set.", no_args_is_help=True)

Images = Annotated[
    list[Path] | None,
    typer.Option("--images", help="Folder of the images; repeat for several.", show_default=False),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:0 or mps.")]
Half = Annotated[
    bool | None, typer.Option("--half/--no-half", help="Half precision; by default where it is faster.")
]
Record = Annotated[
    bool, typer.Option("--record", help="Also write the scores and this command into the model card.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")]


@eval_app.command("pose")
def eval_pose(
    annotations: Annotated[
        Path,
        typer.Argument(help="COCO-style JSON, LSP joints.mat or MPII annotations.", show_default=False),
    ],
    images: Images = None,
    weights: Annotated[str, typer.Option("--weights", help="A name or a .safetensors file.")] = "pose-body19",
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            help="Score this file instead: hgpose JSON or CSV, or COCO results.",
            show_default=False,
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            "--boxes",
            help="Look into these boxes instead of the annotated ones: COCO detection results.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of an archive: train, test or (MPII) valid.")
    ] = None,
    heads: Annotated[
        Path | None,
        typer.Option(
            "--heads",
            help="Head boxes for MPII's valid.json: gt_valid.mat, or MPII's own .mat.",
            show_default=False,
        ),
    ] = None,
    whole_image: Annotated[
        bool, typer.Option("--whole-image", help="Look at the whole image instead of the annotated box.")
    ] = False,
    flip_test: Annotated[
        bool, typer.Option("--flip-test/--no-flip-test", help="Average with the mirrored crop.")
    ] = True,
    device: Device = "auto",
    half: Half = None,
    worst: Annotated[
        tuple[int, Path] | None,
        typer.Option(
            "--worst", help="Write the overlays of the N worst people to a folder.", metavar="N DIR"
        ),
    ] = None,
    record: Record = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Score keypoints: PCK@0.2, PCKh@0.5, OKS AP, and how well scores tell right from wrong.

    On a COCO file AP is COCO's own; with --boxes people are found and scored as for published results.
    """
    from hgpose.device import choose_device
    from hgpose.estimate import CropEstimator
    from hgpose.keypoints import keypoint_set
    from hgpose.network import Network
    from hgpose.train.archives import load_people
    from hgpose.train.evaluate import (
        load_coco_images,
        load_detections,
        pose_scores,
        predict_keypoints,
        predict_people,
        write_worst,
    )
    from hgpose.train.results import load_results, match_people
    from hgpose.weights import load_weights

    if boxes is not None and (results is not None or whole_image):
        raise typer.BadParameter("goes neither with --results nor with --whole-image", param_hint="--boxes")
    if results is not None and record:
        raise typer.BadParameter(
            "scores of a results file do not belong in a model card", param_hint="--record"
        )
    if results is not None and whole_image:
        raise typer.BadParameter("goes not with --whole-image", param_hint="--results")
    if worst is not None and worst[0] < 1:
        raise typer.BadParameter("N must be 1 or more", param_hint="--worst")
    model, card = load_weights(weights, "pose")
    keypoints = keypoint_set(card.keypoint_set)
    people = load_people(annotations, images or [], keypoints, split, heads)
    coco = load_coco_images(annotations, images or [], people)
    found = None
    if results is not None:
        shown = "results"
        found = load_results(results, people, coco)
    else:
        estimator = CropEstimator(Network(model, card, choose_device(device), half), flip_test)
        if boxes is not None:
            if coco is None:
                raise typer.BadParameter(
                    f"needs COCO-style annotations, which {annotations} is not", param_hint="--boxes"
                )
            shown = boxes.name
            detections = load_detections(boxes, coco)
            found = predict_people(estimator, coco, detections, people.names, keypoints.sigmas)
        else:
            shown = "whole image" if whole_image else "annotated"
            points, scores = predict_keypoints(estimator, people, whole_image)
    if found is not None:
        points, scores = match_people(found, people, keypoints.sigmas)
    scored = {
        "annotations": annotations.name,
        "model": card.name if results is None else results.name,
        "boxes": shown,
        "flip_test": flip_test and results is None,
    } | pose_scores(people, points, scores, keypoints.sigmas, found, coco)
    scored = _without_nan(scored)
    _print(scored, as_json, as_markdown)
    if record:
        _record(weights, annotations, scored)
    if worst is not None:
        write_worst(worst[1], worst[0], people, points, scores, keypoints, found)


@eval_app.command("person")
def eval_person(
    annotations: Annotated[
        Path, typer.Argument(help="COCO-style JSON with a box for each person.", show_default=False)
    ],
    images: Images = None,
    weights: Annotated[str, typer.Option("--weights", help="A name or a .safetensors file.")] = "person",
    device: Device = "auto",
    half: Half = None,
    record: Record = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Score the person finder: AP, and recall and false boxes at its threshold.

    People shorter than a tenth of their image do not count, whether found or not.
    """
    from hgpose.detect import PersonDetector
    from hgpose.device import choose_device
    from hgpose.errors import InputError
    from hgpose.network import Network
    from hgpose.train.datasets import load_box_set
    from hgpose.train.evaluate import box_scores, predict_boxes
    from hgpose.train.metrics import COUNTED_HEIGHT, count_people
    from hgpose.weights import load_weights

    model, card = load_weights(weights, "person")
    boxes = load_box_set(annotations, images or [])
    if not count_people(boxes):
        raise InputError(
            f"{annotations}: nobody in it to be found; crowds and people shorter than "
            f"{COUNTED_HEIGHT:.0%} of their image do not count"
        )
    detector = PersonDetector(Network(model, card, choose_device(device), half), threshold=0.02)
    scored = {"annotations": annotations.name, "model": card.name}
    scored = _without_nan(scored | box_scores(boxes, predict_boxes(detector, boxes), card.threshold))
    _print(scored, as_json, as_markdown)
    if record:
        _record(weights, annotations, scored)


@eval_app.command("track")
def eval_track(
    clips: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Videos, or the COCO JSON (with track_id) beside a video of its name; by default clips "
            "of rendered people, which are made on the first run.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Keypoints from the truth, with noise, instead of the network."),
    ] = False,
    weights: Annotated[str, typer.Option("--weights", help="A name or a .safetensors file.")] = _E.weights,
    detector: Annotated[
        str, typer.Option("--detector", help="Of videos without truth: person, whole-frame or boxes:FILE.")
    ] = _E.detector,
    detect_every: Annotated[
        int, typer.Option("--detect-every", help="Look for people anew on every n-th frame at least.")
    ] = _V.detect_every,
    start: Annotated[
        float, typer.Option("--start", help="Of videos without truth: seconds to leave out.")
    ] = 0.0,
    end: Annotated[
        float | None, typer.Option("--end", help="Of videos without truth: seconds at which to stop.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder of the rendered clips.", show_default=False)
    ] = None,
    device: Device = "auto",
    half: Half = None,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Score how people are followed: IDF1, MOTA, lag and jitter; of any video, what following gains.

    With truth, detections are its boxes, jittered, a fifth of them missed, one in twenty invented. Without,
    detecting on every frame is compared with --detect-every, and keypoints with and without smoothing.
    """
    from hgpose.estimate import load_estimator
    from hgpose.keypoints import BODY19
    from hgpose.train.tracking import check_packages, id_scores, load_truth, score_clip, score_video

    if exact and (videos := [c for c in clips or [] if c.suffix != ".json"]):
        raise typer.BadParameter(f"needs truth, which {videos[0]} has none of", param_hint="--exact")
    options = EstimatorOptions(weights=weights, detector=detector, device=device, half=half)
    VideoOptions(start_s=start, end_s=end, detect_every=detect_every)
    named = {str(clip): (_video_of(clip), clip) for clip in clips or [] if clip.suffix == ".json"}
    if named or not clips:
        check_packages()
    if not clips:
        from hgpose.demo.scenes import rendered
        from hgpose.weights import cache_folder

        # Warp, which the body model computes with, greets on stdout, where only the scores belong.
        with redirect_stdout(sys.stderr):
            named = rendered(cache or cache_folder(), lambda name: typer.echo(f"rendering {name}", err=True))
    estimator = None if exact else load_estimator(options)
    scored: dict[str, Any] = {}
    if named:
        events, motions = {}, {}
        keypoints = BODY19 if estimator is None else estimator.keypoint_set
        for name, (video, truth) in named.items():
            events[name], motions[name] = score_clip(
                video,
                load_truth(truth, keypoints),
                None if estimator is None else estimator.crops,
                keypoints,
                options,
                detect_every,
                seeds=3 if exact else 1,
            )
        scored = {name: ids | motions.get(name, {}) for name, ids in id_scores(events).items()}
    if estimator is not None:
        for video in (clip for clip in clips or [] if clip.suffix != ".json"):
            scored[str(video)] = score_video(video, estimator, detect_every, start, end)
    _print_clips(_without_nan(scored), as_json, as_markdown)


def _video_of(truth: Path) -> Path:
    """The video that lies beside its truth."""
    from hgpose.errors import InputError
    from hgpose.sources.video import VIDEO_SUFFIXES

    beside = sorted(truth.parent.glob(f"{glob.escape(truth.stem)}.*"))
    videos = [path for path in beside if path.suffix.lower() in VIDEO_SUFFIXES]
    if len(videos) != 1:
        found = ", ".join(path.name for path in videos) or "none"
        raise InputError(
            f"{truth}: of videos called {truth.stem} there must be one beside it; there: {found}"
        )
    return videos[0]


def _without_nan(scored: dict[str, Any]) -> dict[str, Any]:
    """The scores with ``None`` for NaN, which JSON has not, where there is nothing to score."""
    return {
        key: _without_nan(value) if isinstance(value, dict) else None if value != value else value
        for key, value in scored.items()
    }


def _record(weights: str, annotations: Path, scored: dict[str, Any]) -> None:
    """Writes scores, and the command that reproduces them, into the card of a model."""
    from dataclasses import replace

    from hgpose.weights import find_weights, read_card, write_card

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(v) for key, v in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    path = find_weights(weights)
    card = read_card(path)
    command = shlex.join(
        ["hgpose", *(a for a in sys.argv[1:] if a not in {"--record", "--json", "--markdown"})]
    )
    # Whole, since sets for several tasks are all called val.
    key = annotations.as_posix() + (f", {scored['boxes']}" if "boxes" in scored else "")
    write_card(replace(card, scores={**card.scores, key: {"command": command, **rounded(scored)}}), path)


def _print(scored: dict[str, Any], as_json: bool, as_markdown: bool) -> None:
    """One JSON object, or a table of single numbers and one with a row a joint."""
    if as_json:
        typer.echo(json.dumps(scored))
        return
    from rich.table import Table

    tables = {key: value for key, value in scored.items() if isinstance(value, dict)}
    summary = Table("what", "value")
    for key, value in scored.items():
        if key not in tables:
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            summary.add_row(key, "" if value is None else shown)
    _show(summary, as_markdown)
    if not tables:
        return
    joints = list(dict.fromkeys(joint for table in tables.values() for joint in table["per_joint"]))
    by_joint = Table("joint", *(f"{key} [%]" for key in tables))
    for joint in joints:
        by_joint.add_row(joint, *(_percent(table["per_joint"].get(joint)) for table in tables.values()))
    for row in ("mean", "weighted_mean", "limbs"):
        by_joint.add_row(row, *(_percent(table[row]) for table in tables.values()))
    _show(by_joint, as_markdown)


def _print_clips(scored: dict[str, dict[str, Any]], as_json: bool, as_markdown: bool) -> None:
    """One JSON object, or tables with a column a clip."""
    if as_json:
        typer.echo(json.dumps(scored))
        return
    from rich.table import Table

    table = Table("clip", *scored)
    for key in dict.fromkeys(key for scores in scored.values() for key in scores):
        values = (scores.get(key) for scores in scored.values())
        table.add_row(key, *("" if v is None else f"{v:.4g}" for v in values))
    _show(table, as_markdown)


def _show(table: Table, as_markdown: bool) -> None:
    from rich.box import MARKDOWN

    if as_markdown:
        table.box = MARKDOWN
    print_table(table, whole=as_markdown)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
