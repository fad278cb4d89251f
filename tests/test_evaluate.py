"""Evaluation on a small COCO file with crowds, unlabelled people and false detections.

What COCO's own library says of the same people, and a plain reading of how published results are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_png
from typer.testing import CliRunner, Result

from hgpose.cli import app
from hgpose.device import choose_device
from hgpose.errors import InputError
from hgpose.estimate import CropEstimator
from hgpose.keypoints import BODY19, COCO17, LSP14, KeypointSet
from hgpose.models import build_model
from hgpose.network import Network
from hgpose.sources.images import read_image
from hgpose.train.archives import load_people
from hgpose.train.datasets import BoxSet, PoseSet
from hgpose.train.evaluate import load_coco_images, load_detections, predict_people
from hgpose.train.metrics import keypoint_ap
from hgpose.train.results import load_results
from hgpose.weights import Card, find_weights, load_weights, read_card, save_weights

IMAGES = 8


def annotation(
    number: int, image: int, points: np.ndarray, kind: int, rng: np.random.Generator
) -> dict[str, Any]:
    low, high = points.min(0) - 5, points.max(0) + 5
    visibility = rng.integers(0, 3, len(points)) * (kind < 2)
    visibility[5] = 2 * (kind < 2)
    table = np.column_stack([points, visibility]) * (visibility > 0)[:, None]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": round(float(np.prod(high - low)) * 0.6, 3),
        "iscrowd": int(kind == 3),
        "keypoints": table.ravel().tolist(),
        "num_keypoints": int((visibility > 0).sum()),
    }


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations of 8 images of 160x120 px, the last without anybody, beside ``images``."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("coco")
    annotations: list[dict[str, Any]] = []
    for image in range(IMAGES):
        noise = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((10, 10, 1))).astype(np.uint8)
        write_png(folder / "images" / f"{image}.png", noise)
        # Two people, one without keypoints and a crowd; nobody but those two on the last image but one.
        for kind in range(4) if image < IMAGES - 2 else (2, 3) if image < IMAGES - 1 else ():
            corner = rng.integers([0, 0], [80, 40])
            points = corner + rng.integers(6, 70, (17, 2))
            annotations.append(annotation(len(annotations) + 1, 10 * image + 7, points, kind, rng))
    images = [{"id": 10 * i + 7, "file_name": f"{i}.png", "width": 160, "height": 120} for i in range(IMAGES)]
    category = {"id": 1, "name": "person", "keypoints": COCO17.names}
    document = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder / "annotations.json"


def official(path: Path, results: list[dict[str, Any]], tmp_path: Path) -> np.ndarray:
    """AP, AP50, AP75, average recall and recall at 0.5 of COCO results by COCO's own library."""
    library = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    (tmp_path / "results.json").write_text(json.dumps(results))
    truth = library.COCO(str(path))
    judge = evaluation.COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "keypoints")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return np.asarray(judge.stats)[[0, 1, 2, 5, 6]]


@pytest.mark.parametrize("keypoints", [COCO17, BODY19], ids=lambda k: k.name)
@pytest.mark.parametrize("seed", range(3))
def test_ap_is_the_official_number(coco: Path, tmp_path: Path, keypoints: KeypointSet, seed: int) -> None:
    rng = np.random.default_rng(seed)
    everybody = json.loads(coco.read_text())["annotations"]
    rows: list[tuple[int, np.ndarray, float]] = []
    for person in everybody:
        x, y, w, h = person["bbox"]
        labels = np.array(person["keypoints"]).reshape(17, 3)
        # On crowds and unlabelled people: some inside, some just beyond twice the box, all confident.
        reach = rng.choice([1.0, 2.5])
        inside = np.array([x, y]) + rng.uniform(0.5 - reach, 0.5 + reach, (17, 2)) * [w, h]
        near = labels[:, :2] + rng.normal(0, rng.uniform(0, 12), (17, 2))
        for _ in range(2):
            rows.append((person["image_id"], np.where(labels[:, 2:] > 0, near, inside), rng.random()))
    rows += [(10 * i + 7, rng.uniform(0, 120, (17, 2)), rng.random()) for i in range(IMAGES)]
    results = [
        {
            "image_id": image,
            "category_id": 1,
            "keypoints": np.column_stack([points, np.ones(17)]).ravel().tolist(),
            "score": score,
        }
        for image, points, score in rows
    ]
    people = load_people(coco, [], keypoints)
    images = load_coco_images(coco, [], people)
    assert images is not None and len(people) == 2 * (IMAGES - 2) and len(images.ignored) == 2 * (IMAGES - 1)
    # What the file does not know says nothing, wherever it is predicted.
    points = np.full((len(rows), len(keypoints), 2), 1e3)
    points[:, :17] = np.stack([row[1] for row in rows])
    ids, scores = np.array([row[0] for row in rows]), np.array([row[2] for row in rows])
    ours = keypoint_ap(people, keypoints.sigmas, ids, points, scores, images)
    ours_numbers = [ours.ap, ours.ap50, ours.ap75, ours.recall, ours.recall50]
    assert 0.05 < ours.ap < ours.ap50 < 1
    np.testing.assert_allclose(ours_numbers, official(coco, results, tmp_path), atol=1e-12)
    # Those of a results file are the same, also on images without anybody.
    read = load_results(tmp_path / "results.json", people, images)
    assert len(read) == len(rows)
    again = keypoint_ap(people, keypoints.sigmas, read.image_ids, read.points, read.scores, images)
    np.testing.assert_allclose([again.ap, again.recall], [ours.ap, ours.recall], atol=1e-12)
    # The people alone, as before, would have said something else.
    assert keypoint_ap(people, keypoints.sigmas, ids, points, scores).ap != pytest.approx(ours.ap)


# ---- given detection boxes ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network for COCO's keypoints whose peaks are its scores."""
    torch.manual_seed(0)
    architecture = {"kind": "stacked_hourglass", "stacks": 1, "width": 16, "outputs": 17}
    statistics = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    card = Card("tiny", "pose", architecture, 64, *statistics, keypoint_set="coco17", decoding="peak")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(build_model(architecture).state_dict(), card, path)
    return path


def write_detections(coco: Path, path: Path) -> list[dict[str, Any]]:
    """Boxes near people twice, so that some poses are alike; boxes on nobody; another category's."""
    rng = np.random.default_rng(4)
    entries = []
    for person in json.loads(coco.read_text())["annotations"]:
        for shift in (0, 0.05, 9):
            box = (np.array(person["bbox"]) + rng.uniform(-shift, shift, 4)).tolist()
            entries.append((person["image_id"], 1, box))
    entries += [(10 * IMAGES - 3, 1, [20.0, 20.0, 50.0, 70.0]), (7, 3, [0.0, 0.0, 50.0, 70.0])]
    entries += [(999, 1, [0.0, 0.0, 50.0, 70.0])]
    rows = [
        {"image_id": image, "category_id": category, "bbox": box, "score": round(float(rng.random()), 3)}
        for image, category, box in entries
    ]
    rng.shuffle(rows)
    path.write_text(json.dumps(rows))
    return rows


def published_results(coco: Path, weights: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """COCO results of those boxes, one box and one pair at a time."""
    model, card = load_weights(str(weights), "pose")
    estimator = CropEstimator(Network(model, card, choose_device("cpu"), False), flip_test=True)
    by_image: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["category_id"] != 1 or entry["image_id"] == 999:
            continue
        x, y, w, h = entry["bbox"]
        image = read_image(coco.parent / "images" / f"{entry['image_id'] // 10}.png")
        box = np.array([x, y, x + w, y + h], np.float32)
        points, scores, _ = estimator([image], [estimator.transform(box)])
        sure = [float(s) for s in scores[0] if s > 0.2]
        score = entry["score"] * (sum(sure) / len(sure) if sure else 0)
        person = {"points": points[0], "score": score, "area": (card.box_padding * max(w, h)) ** 2}
        by_image.setdefault(entry["image_id"], []).append(person)
    results = []
    for image_id, people in by_image.items():
        kept: list[dict[str, Any]] = []
        for person in sorted(people, key=lambda p: -p["score"]):
            fits = []
            for better in kept:
                squared = ((person["points"] - better["points"]) ** 2).sum(1)
                area = (person["area"] + better["area"]) / 2
                fits.append(np.exp(-squared / (2 * (2 * np.array(COCO17.sigmas)) ** 2 * area)).mean())
            if max(fits, default=0) <= 0.9:
                kept.append(person)
        for person in kept:
            triples = np.column_stack([person["points"], np.ones(17)]).astype(float).ravel().tolist()
            results.append(
                {"image_id": image_id, "category_id": 1, "keypoints": triples, "score": person["score"]}
            )
    return results


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["eval", "pose", *map(str, arguments), "--device", "cpu", "--no-half"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_people_in_detected_boxes_are_scored_as_published(coco: Path, weights: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "detections.json"
    entries = write_detections(coco, boxes)
    expected = published_results(coco, weights, entries)
    assert len(expected) < len(entries) - 2  # some were suppressed
    model, card = load_weights(str(weights), "pose")
    people = load_people(coco, [], COCO17)
    images = load_coco_images(coco, [], people)
    assert images is not None
    estimator = CropEstimator(Network(model, card, choose_device("cpu"), False), flip_test=True)
    detections = load_detections(boxes, images)
    found = predict_people(estimator, images, detections, COCO17.names, COCO17.sigmas)
    assert found.known.all() and len(np.unique(found.scores)) > 10

    def rows(ids: Any, scores: Any, points: Any) -> np.ndarray:
        table = np.column_stack([ids, scores, np.reshape(points, (len(ids), -1))])
        return np.asarray(table[np.lexsort((table[:, 1], table[:, 0]))])

    theirs = rows(
        [r["image_id"] for r in expected],
        [r["score"] for r in expected],
        [np.reshape(r["keypoints"], (17, 3))[:, :2] for r in expected],
    )
    # float32, and a batch is not summed in the same order as one crop.
    np.testing.assert_allclose(rows(found.image_ids, found.scores, found.points), theirs, atol=2e-3)

    # An untrained network finds nobody: let the truth be near what it says.
    document, rng = json.loads(coco.read_text()), np.random.default_rng(6)
    for person in document["annotations"]:
        if person["num_keypoints"]:
            ours = [r for r in expected if r["image_id"] == person["image_id"]]
            near = np.reshape(ours[rng.integers(len(ours))]["keypoints"], (17, 3))
            near[:, :2] += rng.normal(0, 3, (17, 2))
            person["keypoints"] = (near * [1, 1, 2]).ravel().tolist()
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(document))
    folder = coco.parent / "images"
    result = run(truth, "--images", folder, "--weights", weights, "--boxes", boxes, "--json")
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    assert scored["boxes"] == "detections.json" and scored["flip_test"]
    ap, ap50, ap75, recall, _ = official(truth, expected, tmp_path)
    assert [scored[key] for key in ("AP", "AP50", "AP75", "recall")] == pytest.approx(
        [ap, ap50, ap75, recall]
    )
    assert 0.05 < ap < recall and scored["pck@0.2"]["mean"] > 0


def test_boxes_that_are_recorded_and_printed(coco: Path, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.safetensors"
    for suffix in (".safetensors", ".json"):
        copy.with_suffix(suffix).write_bytes(weights.with_suffix(suffix).read_bytes())
    boxes = tmp_path / "detections.json"
    write_detections(coco, boxes)
    result = run(coco, "--weights", copy, "--boxes", boxes, "--record", "--markdown", "--no-flip-test")
    assert result.exit_code == 0, result.output
    assert "| boxes" in result.stdout and "left_knee" in result.stdout
    _, card = load_weights(str(copy), "pose")
    assert list(card.scores) == [f"{coco.as_posix()}, detections.json"]


def test_annotated_boxes_and_ignored_people(coco: Path, weights: Path) -> None:
    result = run(coco, "--weights", weights, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["boxes"] == "annotated"


@pytest.mark.parametrize("other", [["--whole-image"], ["--results", "results.json"]])
def test_boxes_go_with_nothing_else(coco: Path, weights: Path, other: list[str]) -> None:
    result = run(coco, "--weights", weights, "--boxes", "detections.json", *other)
    assert result.exit_code == 2 and "goes neither with" in result.stderr


def test_boxes_need_coco_annotations(tmp_path: Path, weights: Path) -> None:
    write_png(tmp_path / "images" / "a.png", np.zeros((40, 40, 3), np.uint8))
    person = {"image": "a.png", "joints": [[10, 9]] * 15 + [[20, 25]], "joints_vis": [1] * 16}
    (tmp_path / "valid.json").write_text(json.dumps([person]))
    result = run(tmp_path / "valid.json", "--weights", weights, "--boxes", "detections.json")
    assert result.exit_code == 2 and "needs COCO-style" in result.stderr
    people = load_people(tmp_path / "valid.json", [], LSP14)
    assert load_coco_images(tmp_path / "valid.json", [], people) is None


GOOD = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"annotations": []}, "not COCO detection results"),
        ([GOOD, {"image_id": 7}], "entry 2 lacks a good"),
        ([GOOD, 5], "entry 2 lacks a good"),
        ([GOOD, GOOD | {"image_id": float("inf")}], "entry 2 lacks a good"),
        ([GOOD | {"bbox": [1, 2, 3]}], "entry 1 lacks a good"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], "entry 1: .* is not a box"),
        ([GOOD | {"bbox": [1e30, 1, 5e30, 5]}], "entry 1: .* is not a box within 16777216 px"),
        ([GOOD | {"bbox": [float("inf"), 1, 5, 5]}], "entry 1: .* is not a box"),
        ([GOOD | {"score": float("nan")}], "entry 1: .* is not a box"),
        ([GOOD | {"category_id": 2}, GOOD | {"image_id": 8}], "no person on the annotated images"),
        ([], "no person on the annotated images"),
    ],
)
def test_bad_detections(coco: Path, tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(content))
    images = load_coco_images(coco, [], load_people(coco, [], COCO17))
    assert images is not None
    with pytest.raises(InputError, match=said) as error:
        load_detections(path, images)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"bbox": [1, 2, 3]}, {"bbox": [1, 2, -3, 4]}, {"keypoints": [1, 2, 0]}, {"area": "big"}, {"area": -1}],
)
def test_a_malformed_crowd_is_named(coco: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    document = json.loads(coco.read_text())
    crowd = next(a for a in document["annotations"] if a["iscrowd"])
    crowd |= change
    (tmp_path / "bad.json").write_text(json.dumps(document))
    people = load_people(tmp_path / "bad.json", [coco.parent / "images"], COCO17)
    with pytest.raises(InputError, match=rf"bad\.json: annotation {crowd['id']} "):
        load_coco_images(tmp_path / "bad.json", [coco.parent / "images"], people)


def test_crowds_without_a_box_are_left_out(coco: Path, tmp_path: Path) -> None:
    document = json.loads(coco.read_text())
    crowds = [a for a in document["annotations"] if a["iscrowd"]]
    crowds[0]["bbox"], crowds[1]["bbox"] = None, [5, 5, 0, 0]
    (tmp_path / "some.json").write_text(json.dumps(document))
    people = load_people(coco, [], COCO17)
    before = load_coco_images(coco, [], people)
    after = load_coco_images(tmp_path / "some.json", [coco.parent / "images"], people)
    assert before is not None and after is not None and len(after.ignored) == len(before.ignored) - 2


# ---- results of other networks ----


@pytest.fixture
def lsp_results(people: Callable[[int], PoseSet], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Annotations of two people with neck and head top, and COCO results, which have neither."""
    names = [*COCO17.names, "neck", "head_top"]
    made, rng = people(2), np.random.default_rng(8)
    annotations, results = [], []
    for i, points in enumerate(made.points):
        extra = [[50, 40], [50, 20]]
        table = np.column_stack([np.concatenate([points, extra]), np.full(19, 2)])
        entry = {"id": i + 1, "image_id": i + 1, "category_id": 1}
        annotations.append(entry | {"bbox": [5, 5, 90, 110], "keypoints": table.ravel().tolist()})
        near = np.column_stack([points + rng.normal(0, 4, (17, 2)), np.ones(17)])
        # Beyond half the head, 20 px.
        near[0, :2] = points[0] + [11, 0]
        results.append(entry | {"keypoints": near.ravel().tolist(), "score": 0.5})
    images = [
        {"id": i + 1, "file_name": file.name, "width": 100, "height": 120}
        for i, file in enumerate(made.files)
    ]
    category = {"id": 1, "name": "person", "keypoints": names}
    document = {"images": images, "annotations": annotations, "categories": [category]}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path / "truth.json", made.files[0].parent, tmp_path / "results.json"


def test_heads_are_measured_though_the_results_have_none(
    lsp_results: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    truth, folder, results = lsp_results
    worst = tmp_path / "worst"
    result = run(truth, "--images", folder, "--results", results, "--json", "--worst", 2, worst)
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    per_joint = scored["pckh@0.5"]["per_joint"]
    assert (scored["people"], scored["people_without_result"]) == (2, 0)
    # Joints that the results cannot have are not held against them.
    assert list(per_joint) == list(COCO17.names) == list(scored["pck@0.2"]["per_joint"])
    assert per_joint["nose"] == 0 and scored["pck@0.2"]["per_joint"]["nose"] == 100
    assert sorted(file.name.split("_")[1] for file in worst.iterdir()) == ["0", "0"]


def test_people_without_a_result_are_counted(lsp_results: tuple[Path, Path, Path]) -> None:
    truth, folder, results = lsp_results
    results.write_text(json.dumps(json.loads(results.read_text())[:1]))
    result = run(truth, "--images", folder, "--results", results, "--json")
    assert json.loads(result.stdout)["people_without_result"] == 1


def test_what_cannot_be_scored_is_null(lsp_results: tuple[Path, Path, Path], tmp_path: Path) -> None:
    truth, folder, results = lsp_results
    # Every joint is right, so that no score can tell right from wrong.
    document = json.loads(truth.read_text())
    for entry, person in zip(json.loads(results.read_text()), document["annotations"], strict=True):
        table = np.reshape(entry["keypoints"], (17, 3)) * [1, 1, 2]
        person["keypoints"] = [*table.ravel().tolist(), *person["keypoints"][51:]]
    truth.write_text(json.dumps(document))
    result = run(truth, "--images", folder, "--results", results, "--json")
    assert "NaN" not in result.stdout and json.loads(result.stdout)["auc"] is None
    assert "nan" not in run(truth, "--images", folder, "--results", results).stdout.lower()


def test_results_do_not_go_with_the_whole_image(coco: Path) -> None:
    result = run(coco, "--results", "results.json", "--whole-image")
    assert result.exit_code == 2 and "goes not with --whole-image" in result.stderr


@pytest.mark.parametrize("count", [-1, 0])
def test_how_many_worst_people(coco: Path, tmp_path: Path, count: int) -> None:
    result = run(coco, "--worst", count, tmp_path / "worst")
    assert result.exit_code == 2 and "N must be 1 or more" in result.stderr


@pytest.mark.parametrize("place", ["file", "file/below", "full"])
def test_worst_people_who_cannot_be_written(
    lsp_results: tuple[Path, Path, Path], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, folder, results = lsp_results
    (tmp_path / "file").write_text("in the way")

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = run(truth, "--images", folder, "--results", results, "--worst", 1, tmp_path / place)
    assert result.exit_code == 1 and "cannot write" in result.stderr
    # The scores are there all the same.
    assert "pck@0.2" in result.stdout


# ---- the person finder ----


@pytest.fixture
def crowded(boxes: Callable[..., BoxSet], tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Annotations of a person and of a small one on an image each, 100x80 px."""
    made = boxes([[(20, 10, 50, 70)], [(5, 5, 9, 12)]])
    document = {
        "images": [
            {"id": i, "file_name": file.name, "width": 100, "height": 80} for i, file in enumerate(made.files)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for i, (((x1, y1, x2, y2),)) in enumerate(box.tolist() for box in made.boxes)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    return tmp_path / "boxes.json", made.files[0].parent, document


def run_person(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["eval", "person", *map(str, arguments), "--device", "cpu", "--no-half"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_scores_of_a_set_without_empty_images(
    crowded: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, folder, _ = crowded
    shipped, copy = find_weights("person"), tmp_path / "finder.safetensors"
    for suffix in (".safetensors", ".json"):
        copy.with_suffix(suffix).write_bytes(shipped.with_suffix(suffix).read_bytes())
    result = run_person(path, "--images", folder, "--weights", copy, "--record", "--json")
    assert result.exit_code == 0, result.output
    assert "NaN" not in result.stdout and json.loads(result.stdout)["false_per_100_empty"] is None
    assert "NaN" not in copy.with_suffix(".json").read_text()
    assert read_card(copy).scores[path.as_posix()]["false_per_100_empty"] is None


@pytest.mark.parametrize("change", ["crowd", "small", "nobody"])
def test_a_finder_needs_somebody_to_find(crowded: tuple[Path, Path, dict[str, Any]], change: str) -> None:
    path, folder, document = crowded
    tall = document["annotations"][0]
    if change == "crowd":
        tall["iscrowd"] = 1
    elif change == "small":
        tall["bbox"][3] = 7.9
    else:
        document["annotations"] = []
    path.write_text(json.dumps(document))
    result = run_person(path, "--images", folder)
    assert result.exit_code == 1 and "nobody in it to be found" in result.stderr


def test_help_of_the_finder_names_what_it_reads() -> None:
    shown = CliRunner().invoke(app, ["eval", "person", "--help"]).stdout
    assert "LSP" not in shown and "MPII" not in shown and "box for each person" in shown
