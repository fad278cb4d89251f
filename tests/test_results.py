"""A user's own keypoints files: our JSON and CSV, and COCO results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgpose.errors import InputError
from hgpose.keypoints import BODY19, COCO17, LSP14, KeypointSet
from hgpose.train.datasets import PoseSet
from hgpose.train.results import load_results, match_people

#: Three annotated people, two of them on one image; all 14 joints labelled.
TRUTH = PoseSet(
    LSP14.names,
    (Path("/data/set/a/1.jpg"), Path("/data/set/a/1.jpg"), Path("/data/set/b/ü 2.jpg")),
    np.array([5, 5, 6]),
    np.array([1, 2, 3]),
    np.zeros((3, 4), np.float32),
    np.random.default_rng(0).uniform(0, 100, (3, 14, 2)).astype(np.float32),
    np.full((3, 14), 2, np.int8),
    np.ones((3, 14), np.float32),
    np.zeros((3, 14), np.bool_),
    np.full(3, 1e4, np.float32),
)

Image = tuple[str, list[tuple[np.ndarray, float]]]


def person(row: int, keypoints: KeypointSet, shift: float = 0.0) -> np.ndarray:
    """Annotated person ``row`` as x, y, score of another keypoint set; other joints are elsewhere."""
    joints = np.full((len(keypoints), 3), [-7.0, -7.0, 0.25])
    for i, name in enumerate(keypoints.names):
        if name in LSP14.names:
            joints[i] = *(TRUTH.points[row, LSP14.index(name)] + shift), 0.75
    return joints


def images(keypoints: KeypointSet) -> list[Image]:
    """The second person of the first image, a stranger's image, the third person, an empty image."""
    return [
        ("a/1.jpg", [(person(1, keypoints, 2.0), 0.9)]),
        ("a/other.jpg", [(person(0, keypoints), 0.8)]),
        ("ü 2.jpg", [(person(2, keypoints, 1.0), 0.7)]),
        ("a/3.jpg", []),
    ]


def write_json(folder: Path, keypoints: KeypointSet) -> Path:
    frames = [
        {
            "frame": i,
            "time_s": 0.0,
            "name": name,
            "people": [
                {
                    "id": -1,
                    "score": s,
                    "box": [0, 0, 1, 1],
                    "keypoints": [[None if np.isnan(v) else v for v in row] for row in j],
                }
                for j, s in found
            ],
        }
        for i, (name, found) in enumerate(images(keypoints))
    ]
    document = {
        "schema": "hgpose/1",
        "keypoint_set": keypoints.name,
        "keypoints": keypoints.names,
        "frames": frames,
    }
    (folder / "keypoints.json").write_text(json.dumps(document), encoding="utf-8")
    return folder / "keypoints.json"


def write_csv(folder: Path, keypoints: KeypointSet) -> Path:
    columns = [f"{name}_{v}" for name in keypoints.names for v in ("x", "y", "score")]
    with (folder / "keypoints.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "name", "time_s", "person", "score", "x1", "y1", "x2", "y2", *columns])
        for i, (name, found) in enumerate(images(keypoints)):
            for joints, score in found:
                # Nobody follows people through images, so they have no id; what is not finite is empty.
                numbers = ["" if np.isnan(v) else v for v in joints.ravel()]
                writer.writerow([i, name, 0, "", score, 0, 0, 1, 1, *numbers])
            if not found:
                writer.writerow([i, name, 0, *[""] * (6 + len(columns))])
    return folder / "keypoints.csv"


def write_coco(folder: Path, keypoints: KeypointSet) -> Path:
    ids = {"a/1.jpg": 5, "a/other.jpg": 99, "ü 2.jpg": 6}
    rows = [
        {"image_id": ids[name], "category_id": 1, "keypoints": joints.ravel().tolist(), "score": score}
        for name, found in images(keypoints)
        for joints, score in found
    ]
    (folder / "results.json").write_text(json.dumps(rows))
    return folder / "results.json"


@pytest.mark.parametrize("write", [write_json, write_csv, write_coco])
@pytest.mark.parametrize("keypoints", [BODY19, COCO17, LSP14], ids=lambda k: k.name)
def test_every_format(tmp_path: Path, write: Any, keypoints: KeypointSet) -> None:
    results = load_results(write(tmp_path, keypoints), TRUTH)
    assert results.image_ids.tolist() == [5, 6]
    np.testing.assert_allclose(results.scores, [0.9, 0.7])
    known = np.array([name in keypoints.names for name in LSP14.names])
    assert known.sum() == {"body19": 14, "coco17": 12, "lsp14": 14}[keypoints.name]
    assert np.array_equal(results.known, known)
    np.testing.assert_allclose(
        results.points[:, known], (TRUTH.points[1:] + np.array([[[2]], [[1]]]))[:, known], rtol=1e-6
    )
    assert np.isnan(results.points[:, ~known]).all()
    assert np.array_equal(results.joint_scores, np.where(known, 0.75, 0)[None].repeat(2, 0))

    points, scores = match_people(results, TRUTH, LSP14.sigmas)
    assert np.isnan(points[0]).all() and not scores[0].any()
    np.testing.assert_array_equal(points[1:], results.points)
    np.testing.assert_array_equal(scores[1:], results.joint_scores)


def test_nobody_found(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    results = load_results(tmp_path / "results.json", TRUTH)
    assert len(results) == 0
    points, scores = match_people(results, TRUTH, LSP14.sigmas)
    assert np.isnan(points).all() and not scores.any()


@pytest.mark.parametrize("write", [write_json, write_csv])
def test_a_joint_that_is_not_finite_is_missing(tmp_path: Path, write: Any, monkeypatch: Any) -> None:
    joints = person(2, LSP14)
    joints[4] = np.nan
    monkeypatch.setitem(globals(), "images", lambda keypoints: [("ü 2.jpg", [(joints, 0.5)])])
    results = load_results(write(tmp_path, LSP14), TRUTH)
    assert np.flatnonzero(np.isnan(results.points[0]).any(1)).tolist() == [4]
    assert np.flatnonzero(results.joint_scores[0] == 0).tolist() == [4]


def test_the_best_pairs_are_taken_first_and_once(tmp_path: Path) -> None:
    # Two predictions near person 1 and none near person 0: the nearer is person 1's, the other,
    # though nearer to person 1, is all that is left for person 0.
    rows = [
        {"image_id": 5, "keypoints": person(1, LSP14, shift).ravel().tolist(), "score": 0.5}
        for shift in (3.0, 0.5, 900.0)
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    results = load_results(tmp_path / "results.json", TRUTH)
    points, _ = match_people(results, TRUTH, LSP14.sigmas)
    np.testing.assert_array_equal(points[1], results.points[1])
    np.testing.assert_array_equal(points[0], results.points[0])
    assert np.isnan(points[2]).all()


def test_names_may_be_relative_to_any_folder(tmp_path: Path) -> None:
    rows = [
        {"image_id": name, "keypoints": person(2, LSP14).ravel().tolist(), "score": 0.5}
        for name in ("ü 2.jpg", "b/ü 2.jpg", "set\\b\\ü 2.jpg", "c/ü 2.jpg")
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert load_results(tmp_path / "results.json", TRUTH).image_ids.tolist() == [6, 6, 6]
    # The same name in two folders is nobody's.
    twins = PoseSet(
        **(vars(TRUTH) | {"files": (Path("/d/a/1.jpg"), Path("/d/b/1.jpg"), Path("/d/2.jpg"))})
        | {"image_ids": np.array([1, 2, 3])}
    )
    for row, name in zip(rows, ("1.jpg", "b/1.jpg", "2.jpg", "a/1.jpg"), strict=True):
        row["image_id"] = name
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert load_results(tmp_path / "results.json", twins).image_ids.tolist() == [2, 3, 1]


def test_an_image_under_two_ids_has_no_name(tmp_path: Path) -> None:
    twice = PoseSet(**(vars(TRUTH) | {"image_ids": np.array([5, 8, 6])}))
    row = {"keypoints": person(0, LSP14).ravel().tolist(), "score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps([row | {"image_id": 8}, row | {"image_id": "ü 2.jpg"}]))
    assert load_results(tmp_path / "results.json", twice).image_ids.tolist() == [8, 6]
    (tmp_path / "results.json").write_text(json.dumps([row | {"image_id": "a/1.jpg"}]))
    with pytest.raises(InputError, match=r"a.1\.jpg: the annotations have it under the ids \d and \d"):
        load_results(tmp_path / "results.json", twice)


def test_ids_may_be_text(tmp_path: Path) -> None:
    row = {"keypoints": person(0, LSP14).ravel().tolist(), "score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps([row | {"image_id": i} for i in ("6", "7", "five")]))
    assert load_results(tmp_path / "results.json", TRUTH).image_ids.tolist() == [6]


FRAME = {"frame": 0, "time_s": 0.0, "name": "a/1.jpg", "people": []}
CSV = "frame,time_s,{name}person,score,x1,y1,x2,y2,neck_x,neck_y,neck_score\n"
BROKEN: list[tuple[str, Any, str]] = [
    ("r.json", "{", "cannot be read as JSON"),
    ("r.json", {"schema": "other"}, "neither hgpose JSON"),
    ("r.json", [{"id": 1}], "neither hgpose JSON"),
    ("r.json", {"schema": "hgpose/1"}, "malformed"),
    (
        "r.json",
        {"schema": "hgpose/1", "keypoints": ["neck"], "frames": [{"frame": 0, "time_s": 0.0, "people": []}]},
        "no image names",
    ),
    (
        "r.json",
        {"schema": "hgpose/1", "keypoints": ["tail"], "frames": [FRAME]},
        "none of the keypoints right_ankle",
    ),
    (
        "r.json",
        {
            "schema": "hgpose/1",
            "keypoints": ["neck"],
            "frames": [FRAME | {"people": [{"keypoints": [[1, 2]]}]}],
        },
        "malformed",
    ),
    (
        "r.json",
        [{"image_id": 5, "keypoints": [1, 2, 3] * 5, "score": 1}],
        r"have \[5\] keypoints; known are 19",
    ),
    ("r.json", [{"image_id": 5, "keypoints": [1, 2, 3] * 14}], "malformed"),
    ("r.json", [{"image_id": 8, "keypoints": [1, 2, 3] * 14, "score": 1}], "none of its images, such as 8"),
    ("r.csv", "frame,time_s,person,keypoint,x,y,score\n0,0,1,neck,1,2,3\n", "no image names"),
    ("r.csv", "", "neither hgpose's CSV"),
    ("r.csv", CSV.format(name="") + "0,0,1,1,0,0,1,1,2,3,4\n", "no image names"),
    ("r.csv", CSV.format(name="name,") + "0,0,a/1.jpg,1,1,2\n", "line 2 is malformed"),
    (
        "r.csv",
        CSV.format(name="name,") + "0,0,else.jpg,1,1,0,0,1,1,2,3,4\n",
        "none of its images, such as",
    ),
    ("r.csv", b"\xff\xfe\x00\n", "neither hgpose's CSV"),
    ("r.csv", CSV.format(name="name,") + "0,0,a/1.jpg,1,1,0,0,1,1,2,3,4", "was cut short"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_results(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        load_results(path, TRUTH)
    assert name in str(error.value)


def test_who_has_no_score_has_the_mean_of_the_keypoints(tmp_path: Path) -> None:
    rows = "0,0,a/1.jpg,,neck,1,2,0.5\n0,0,a/1.jpg,,head_top,3,4,1\n"
    (tmp_path / "r_long.csv").write_text(f"frame,time_s,name,person,keypoint,x,y,score\n{rows}")
    results = load_results(tmp_path / "r_long.csv", TRUTH)
    assert results.scores.tolist() == [0.75] and results.image_ids.tolist() == [5]
    assert results.points[0, LSP14.index("head_top")].tolist() == [3, 4]


def test_shares_of_a_picture_are_no_predictions(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with pytest.raises(InputError, match="shares of the pictures; give the JSON"):
        load_results(tmp_path, TRUTH)


@pytest.mark.parametrize("name", ["none.json", "none.csv"])
def test_missing_results(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_results(tmp_path / name, TRUTH)
