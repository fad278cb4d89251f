"""Every kind of keypoints file, read back by programs that are not ours.

Run as a program, ``python tests/test_formats.py FRAMES [KIND...]`` measures how the memory of sinks grows.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from hypothesis import given, settings
from hypothesis import strategies as st
from trc import TRCData

from hgpose.errors import OptionsError
from hgpose.keypoints import BODY19, COCO17, LSP14, MPII16, KeypointSet
from hgpose.results import open_results
from hgpose.sinks import SINKS, Run
from hgpose.sinks.openpose import BODY_25
from hgpose.sinks.order import Order
from hgpose.sinks.record import people
from hgpose.types import Frame, ModelInfo, Poses, SourceInfo

VIDEO = SourceInfo("clip.mp4", 640, 480, Fraction(30000, 1001), None, Fraction(1001, 30000))
IMAGES = SourceInfo("pictures", 0, 0, None)
MODEL = ModelInfo("tiny", "0" * 64)
KINDS = [kind for kind in SINKS if kind != "overlay"]
IMAGE = np.broadcast_to(np.zeros(3, np.uint8), (480, 640, 3))


def make_poses(
    n: int, seed: int = 0, keypoints: KeypointSet = BODY19, ids: Sequence[int] | None = None
) -> Poses:
    """People inside the picture, with numbers as files hold them."""
    rng = np.random.default_rng(seed)
    k = len(keypoints)
    corners = np.sort(rng.uniform(0, 479, (n, 2, 2)), axis=1).reshape(n, 4)
    return Poses(
        rng.uniform(0, 479, (n, k, 2)).round(2).astype(np.float32),
        rng.uniform(0.1, 1, (n, k)).round(4).astype(np.float32),
        corners.round(2).astype(np.float32),
        np.ones(n, np.float32),
        np.array(range(1, n + 1) if ids is None else ids, np.int64),
        keypoints,
    )


def write(folder: Path, kind: str, each: Sequence[Poses], info: SourceInfo = VIDEO, every: int = 1) -> Path:
    keypoints = each[0].keypoint_set if each else BODY19
    with SINKS[kind](folder, "k", Run(info, MODEL, keypoints, overwrite=True)) as sink:
        for i, poses in enumerate(each):
            if info.fps:
                sink.write(Frame(IMAGE, i * every, float(i * every / info.fps)), poses)
            else:
                sink.write(Frame(IMAGE, i, 0.0, f"a/{i}.jpg"), poses)
    return sink.path


def strict_json(text: str) -> Any:
    """As JSON is defined, without the NaN that Python takes."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


#: Nobody, one, nobody, two, of whom one is new.
EACH = [
    make_poses(0),
    make_poses(1, 1, ids=[7]),
    make_poses(0),
    make_poses(2, 2, ids=[9, 7]),
    make_poses(1, 3, ids=[9]),
]


def test_kinds_do_not_collide(tmp_path: Path) -> None:
    paths = [write(tmp_path, kind, EACH) for kind in KINDS]
    assert len(set(paths)) == len(KINDS) == 13
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in paths}


# Orders.


def test_openpose_order() -> None:
    """Spot checks against OpenPose's documentation of BODY_25."""
    assert len(BODY_25) == 25
    documented = {0: "nose", 1: "neck", 2: "right_shoulder", 8: "pelvis", 14: "left_ankle", 18: "left_ear"}
    assert {i: BODY_25[i] for i in documented} == documented
    assert BODY_25[19:] == (
        "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel"
    )  # fmt: skip


@pytest.mark.parametrize("keypoints", [BODY19, COCO17, LSP14, MPII16], ids=lambda k: k.name)
@pytest.mark.parametrize("names", [BODY_25, COCO17.names], ids=["openpose", "coco"])
def test_order_by_name(keypoints: KeypointSet, names: tuple[str, ...]) -> None:
    given = [[float(i), 2.0 * i, 0.5 + i / 100] for i in range(len(keypoints))]
    ordered = dict(zip(names, Order(names, keypoints)(given), strict=True))
    for name, point in ordered.items():
        if name in keypoints.names:
            assert point == given[keypoints.index(name)]
        elif name == "pelvis":
            left, right = (given[keypoints.index(f"{side}_hip")] for side in ("left", "right"))
            assert point == [(left[0] + right[0]) / 2, (left[1] + right[1]) / 2, min(left[2], right[2])]
        elif name == "neck":
            assert keypoints is COCO17 and point[0] == 5.5
        else:
            assert point == [0, 0, 0]


def test_order_of_what_is_not_finite() -> None:
    given: list[list[float | None]] = [[1.0, 1.0, 0.5] for _ in BODY19.names]
    given[BODY19.index("nose")] = [None, 3.0, 0.5]
    given[BODY19.index("left_hip")] = [1.0, 1.0, None]
    found = dict(zip(BODY_25, Order(BODY_25, BODY19)(given), strict=True))
    assert [name for name, point in found.items() if point == [0, 0, 0]][:3] == ["nose", "pelvis", "left_hip"]


# Each format.


def test_coco_by_the_coco_library(tmp_path: Path) -> None:
    each = [make_poses(n, n) for n in (0, 1, 3, 2)]
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for i, poses in enumerate(each):
        truth["images"].append({"id": i, "width": 640, "height": 480})
        for points in poses.keypoints[:, :17]:
            flat = np.concatenate([points, np.full((17, 1), 2)], axis=1).ravel().tolist()
            x, y, w, h = (*points.min(0).tolist(), *np.ptp(points, axis=0).tolist())
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": i, "category_id": 1, "keypoints": flat,
                 "num_keypoints": 17, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )  # fmt: skip
    coco = COCO(truth)
    found = coco.loadRes(str(write(tmp_path, "coco", each)))
    assert len(found.anns) == 6
    evaluation = COCOeval_faster(coco, found, "keypoints", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_coco_of_images_and_of_nobody(tmp_path: Path) -> None:
    elements = strict_json(write(tmp_path, "coco", EACH, IMAGES).read_text())
    assert [(e["image_id"], e["file_name"]) for e in elements] == [(i, f"a/{i}.jpg") for i in (1, 3, 3, 4)]
    assert strict_json(write(tmp_path, "coco", EACH[:1]).read_text()) == []


def test_alphapose(tmp_path: Path) -> None:
    elements = strict_json(write(tmp_path, "alphapose", EACH).read_text())
    assert [(e["image_id"], e["idx"]) for e in elements] == [
        ("1.jpg", 7),
        ("3.jpg", 9),
        ("3.jpg", 7),
        ("4.jpg", 9),
    ]
    x, y, w, h = elements[0]["box"]
    np.testing.assert_allclose([x, y, x + w, y + h], EACH[1].boxes[0], atol=0.011)
    np.testing.assert_allclose(
        np.reshape(elements[0]["keypoints"], (17, 3))[:, :2], EACH[1].keypoints[0, :17]
    )
    unfollowed = strict_json(write(tmp_path, "alphapose", [make_poses(1, ids=[-1])], IMAGES).read_text())
    assert unfollowed[0]["image_id"] == "a/0.jpg" and "idx" not in unfollowed[0]


def test_mmpose(tmp_path: Path) -> None:
    frames = strict_json(write(tmp_path, "mmpose", EACH).read_text())
    assert [frame["frame_id"] for frame in frames] == [0, 1, 2, 3, 4]
    assert [len(frame["instances"]) for frame in frames] == [0, 1, 0, 2, 1]
    first = frames[3]["instances"][0]
    assert list(first) == ["keypoints", "keypoint_scores", "bbox", "bbox_score", "track_id"]
    assert np.shape(first["keypoints"]) == (17, 2) and np.shape(first["bbox"]) == (1, 4)
    np.testing.assert_allclose(first["keypoint_scores"], EACH[3].scores[0, :17], atol=1e-6)


#: As OpenPose's documentation of its output describes a file.
_FLAT = {"type": "array", "items": {"type": "number"}}
OPENPOSE = {
    "type": "object",
    "required": ["version", "people"],
    "properties": {
        "version": {"const": 1.3},
        "people": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["person_id", "pose_keypoints_2d", "hand_left_keypoints_2d", "pose_keypoints_3d"],
                "properties": {
                    "person_id": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "minItems": 1,
                        "maxItems": 1,
                    },
                    "pose_keypoints_2d": _FLAT | {"minItems": 75, "maxItems": 75},
                },
                "patternProperties": {"^(face|hand_left|hand_right)_keypoints_[23]d$": _FLAT},
            },
        },
    },
}


def test_openpose_by_its_schema(tmp_path: Path) -> None:
    folder = write(tmp_path, "openpose", EACH)
    made = sorted(p.name for p in folder.iterdir())
    assert made == [f"k_{i:012d}_keypoints.json" for i in range(5)]
    for name, poses in zip(made, EACH, strict=True):
        document = strict_json((folder / name).read_text())
        jsonschema.validate(document, OPENPOSE)
        assert [person["person_id"] for person in document["people"]] == [[i] for i in poses.ids]
        for person, points in zip(document["people"], poses.keypoints, strict=True):
            body = np.reshape(person["pose_keypoints_2d"], (25, 3))
            np.testing.assert_allclose(body[1, :2], points[BODY19.index("neck")], rtol=1e-6)
            np.testing.assert_allclose(body[8, :2], points[[11, 12]].mean(axis=0), atol=1e-3)
            assert not body[19:].any()
    folder = write(tmp_path, "openpose", EACH, IMAGES)
    assert (folder / "a" / "4_keypoints.json").exists()


def test_images_of_one_stem_have_files_of_their_own(tmp_path: Path) -> None:
    for kind in ("openpose", "yolo"):
        with SINKS[kind](tmp_path, "k", Run(IMAGES, MODEL, BODY19)) as sink:
            for i, name in enumerate(("a.jpg", "a.png")):
                sink.write(Frame(IMAGE, i, 0.0, name), EACH[1])
        assert len([p for p in sink.path.rglob("a*") if p.is_file()]) == 2


def test_yolo_by_pandas(tmp_path: Path) -> None:
    folder = write(tmp_path, "yolo", EACH)
    labels = sorted((folder / "labels").iterdir())
    assert [p.name for p in labels] == [f"k_{i}.txt" for i in range(1, 6)]
    assert labels[0].read_text() == ""
    table = pd.read_csv(labels[3], sep=" ", header=None).to_numpy(np.float64)
    assert table.shape == (2, 5 + 57 + 1)
    assert table[:, 0].tolist() == [0, 0] and table[:, -1].tolist() == [9, 7]
    size = np.array([640, 480])
    points = table[:, 5:-1].reshape(2, 19, 3)
    np.testing.assert_allclose(points[..., :2] * size - 0.5, EACH[3].keypoints, atol=0.005)
    np.testing.assert_allclose(points[..., 2], EACH[3].scores, atol=1e-6)
    centre, wh = table[:, 1:3] * size - 0.5, table[:, 3:5] * size
    np.testing.assert_allclose(
        np.concatenate([centre - wh / 2, centre + wh / 2], 1), EACH[3].boxes, atol=0.01
    )
    data = dict(line.split(": ", 1) for line in (folder / "data.yaml").read_text().splitlines())
    assert json.loads(data["kpt_shape"]) == [19, 3]
    assert json.loads(data["flip_idx"]) == list(BODY19.flip_order)


def test_yolo_never_leaves_the_picture(tmp_path: Path) -> None:
    poses = make_poses(4)
    poses.keypoints[0] += 400
    poses.keypoints[1, 0] = np.nan
    poses.boxes[1] = -20, -20, 700, 500
    poses.boxes[2] = 650, 0, 700, 20
    poses.boxes[3] = np.nan
    poses.keypoints[3] = np.nan
    label = write(tmp_path, "yolo", [poses]) / "labels" / "k_1.txt"
    table = pd.read_csv(label, sep=" ", header=None).to_numpy(np.float64)
    assert table[:, -1].tolist() == [1, 2]
    assert table[1, 1:5].tolist() == [0.5, 0.5, 1, 1]
    assert table[1, 5:8].tolist() == [0, 0, 0]
    assert table[:, 1:-1].min() >= 0 and table[:, 1:-1].max() <= 1
    outside = (poses.keypoints[0] > [639.5, 479.5]).any(axis=1)
    assert outside.any() and np.array_equal((table[0, 5:-1].reshape(19, 3) == 0).all(axis=1), outside)


def test_dlc_by_pandas(tmp_path: Path) -> None:
    table = pd.read_csv(write(tmp_path, "dlc", EACH, every=3), header=[0, 1, 2, 3], index_col=0)
    assert table.columns.names == ["scorer", "individuals", "bodyparts", "coords"]
    assert table.index.tolist() == [0, 3, 6, 9, 12]
    assert table.shape == (5, 2 * 19 * 3)
    seven, nine = (table["hgpose_tiny"][f"individual{i}"] for i in (7, 9))
    np.testing.assert_allclose(
        seven["neck"]["x"].to_numpy()[[1, 3]], [EACH[1].keypoints[0, 17, 0], EACH[3].keypoints[1, 17, 0]]
    )
    assert seven["neck"]["x"].isna().tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(nine["nose"]["likelihood"].to_numpy()[4], EACH[4].scores[0, 0], rtol=1e-6)
    of_images = pd.read_csv(write(tmp_path, "dlc", EACH, IMAGES), header=[0, 1, 2, 3], index_col=0)
    assert of_images.index.tolist() == [f"a/{i}.jpg" for i in range(5)]
    nobody = pd.read_csv(write(tmp_path, "dlc", EACH[:1]), header=[0, 1, 2, 3], index_col=0)
    assert nobody.shape == (1, 57) and nobody.isna().all(axis=None)


def read_trc(path: Path) -> TRCData:
    data = TRCData()
    data.load(str(path))
    return data


def test_trc_by_an_independent_parser(tmp_path: Path) -> None:
    each = [*deepcopy(EACH), make_poses(0)]
    each[3].keypoints[1, 4, 1] = np.nan
    folder = write(tmp_path, "trc", each)
    assert sorted(p.name for p in folder.iterdir()) == ["k_person07.trc", "k_person09.trc"]
    seven, nine = (read_trc(folder / f"k_person{i:02d}.trc") for i in (7, 9))
    assert seven["Markers"] == list(BODY19.names) and seven["NumMarkers"] == 19
    assert seven["DataRate"] == pytest.approx(30000 / 1001) and seven["Units"] == "px"
    assert seven["NumFrames"] == 3 and seven["Frame#"] == [2, 3, 4]
    assert nine["NumFrames"] == 2 and nine["Frame#"] == [4, 5]
    np.testing.assert_allclose(seven["Time"], np.arange(1, 4) * 1001 / 30000, atol=1e-6)
    points = np.array([seven[name] for name in BODY19.names])
    assert points.shape == (19, 3, 3)
    np.testing.assert_allclose(points[:, 0, :2], each[1].keypoints[0], rtol=1e-6)
    assert not points[:, 0, 2].any()
    assert np.isnan(points[:, 1]).all()
    assert np.isnan(points[4, 2]).all() and np.isfinite(np.delete(points[:, 2], 4, axis=0)).all()


def test_trc_of_every_third_frame(tmp_path: Path) -> None:
    (path,) = write(tmp_path, "trc", [make_poses(1, 1, ids=[1])] * 3, every=3).iterdir()
    trc = read_trc(path)
    assert trc["DataRate"] == pytest.approx(10000 / 1001) and trc["OrigDataRate"] == pytest.approx(
        30000 / 1001
    )
    assert trc["Time"][1] - trc["Time"][0] == pytest.approx(1 / trc["DataRate"], abs=1e-5)


def test_people_without_ids_are_told_apart_by_their_place(tmp_path: Path) -> None:
    each = [make_poses(n, n, ids=[-1] * n) for n in (2, 1)]
    assert len(list(write(tmp_path, "trc", each).iterdir())) == 2
    table = pd.read_csv(write(tmp_path, "dlc", each), header=[0, 1, 2, 3], index_col=0)
    assert table.columns.get_level_values("individuals").unique().tolist() == ["individual1", "individual2"]
    np.testing.assert_allclose(
        table.iloc[1, :57].to_numpy(np.float64).reshape(19, 3)[:, :2], each[1].keypoints[0], rtol=1e-6
    )


def test_parquet_by_pyarrow_and_duckdb(tmp_path: Path) -> None:
    each = [*EACH, make_poses(1, 5, ids=[-1])]
    path = write(tmp_path, "parquet", each)
    table = pq.read_table(path)
    wide = pd.read_csv(write(tmp_path, "csv", each))
    assert table.column_names == list(wide.columns)
    pd.testing.assert_frame_equal(table.to_pandas(), wide, check_dtype=False)
    header = json.loads(table.schema.metadata[b"hgpose"])
    assert header["keypoints"] == list(BODY19.names) and header["source"]["fps_exact"] == "30000/1001"
    query = f"select count(distinct frame), count(person), count(nose_x), max(nose_x) from '{path}'"
    frames, persons, noses, largest = duckdb.sql(query).fetchall()[0]
    assert (frames, persons, noses) == (6, 4, 5)
    assert largest == pytest.approx(max(p.keypoints[:, 0, 0].max() for p in each if len(p)), abs=0.005)
    of_images = pq.read_table(write(tmp_path, "parquet", EACH, IMAGES)).to_pylist()
    assert (of_images[0]["name"], of_images[0]["width"], of_images[0]["height"]) == ("a/0.jpg", 640, 480)


def test_parquet_of_more_than_one_row_group(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", [make_poses(60, 1)] * 140)
    assert pq.ParquetFile(path).num_row_groups == 2
    assert pq.read_table(path)["frame"].to_pylist() == [i for i in range(140) for _ in range(60)]


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionsError, match=r"pip install 'hgpose\[parquet\]'"):
        write(tmp_path, "parquet", EACH)
    assert not list(tmp_path.iterdir())


def test_npz_by_numpy(tmp_path: Path) -> None:
    with np.load(write(tmp_path, "npz", EACH, IMAGES), allow_pickle=False) as data:
        assert data["frame"].tolist() == [0, 1, 2, 3, 4]
        assert data["people"].tolist() == [0, 1, 0, 2, 1]
        assert data["row"].tolist() == [1, 3, 3, 4] and data["id"].tolist() == [7, 9, 7, 9]
        assert data["name"].tolist() == [f"a/{i}.jpg" for i in range(5)]
        assert data["keypoint_names"].tolist() == list(BODY19.names)
        points = np.concatenate([p.keypoints for p in EACH])
        np.testing.assert_allclose(data["keypoints"][..., :2], points, rtol=1e-6)
        np.testing.assert_allclose(data["box"], np.concatenate([p.boxes for p in EACH]), rtol=1e-6)
    with np.load(write(tmp_path, "npz", EACH[:1])) as data:
        assert data["keypoints"].shape == (0, 19, 3) and "name" not in data


def test_long_csv_is_the_wide_one_turned(tmp_path: Path) -> None:
    long = pd.read_csv(write(tmp_path, "csv-long", EACH))
    wide = pd.read_csv(write(tmp_path, "csv", EACH))
    assert list(long.columns) == ["frame", "time_s", "person", "keypoint", "x", "y", "score"]
    assert sorted(set(long["frame"])) == [0, 1, 2, 3, 4] and len(long) == 2 + 4 * 19
    turned = long.dropna().pivot(index=["frame", "person"], columns="keypoint", values=["x", "y", "score"])
    there = wide.dropna().set_index(["frame", "person"]).sort_index()
    for name in BODY19.names:
        for value in ("x", "y", "score"):
            assert turned[value][name].tolist() == there[f"{name}_{value}"].tolist()


# Properties.


@st.composite
def videos(draw: st.DrawFn) -> list[Poses]:
    """Frames with nobody, some or 50 people, with or without ids, with numbers that are none."""
    each = []
    for _ in range(draw(st.integers(0, 3))):
        n = draw(st.sampled_from([0, 1, 2, 50]))
        poses = make_poses(n, draw(st.integers(0, 99)), ids=draw(st.sampled_from([None, [-1] * n])))
        for array in (poses.keypoints, poses.scores, poses.boxes) if n else ():
            wild = [] if array is poses.scores else [np.inf, -np.inf, -0.0, 3e38]
            values = st.sampled_from([np.nan, 0.004999, *wild])
            for place in draw(st.lists(st.integers(1, array.size - 1), max_size=4)):
                array.flat[place] = draw(values)
        each.append(poses)
    return each


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "npz"])
@pytest.mark.parametrize("info", [VIDEO, IMAGES], ids=["video", "images"])
@settings(max_examples=15)
@given(each=videos())
def test_round_trip(kind: str, info: SourceInfo, each: list[Poses]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), kind, each, info)
        with open_results(path) as results:
            frames = list(results.frames)
    assert results.keypoint_set is BODY19
    assert [frame.index for frame in frames] == list(range(len(each)))
    assert [people(frame.poses) for frame in frames] == [people(poses) for poses in each]
    for i, frame in enumerate(frames):
        assert frame.name == ("" if info is VIDEO else f"a/{i}.jpg")
        assert frame.time_s == (round(i * 1001 / 30000, 6) if info is VIDEO else 0)
        assert frame.size_wh == (None if info is VIDEO or kind in ("csv", "npz") else (640, 480))
    if kind not in ("csv", "npz"):
        assert results.info is not None and results.info.fps == info.fps and results.model == MODEL


@pytest.mark.parametrize("info", [VIDEO, IMAGES], ids=["video", "images"])
@settings(max_examples=15)
@given(each=videos())
def test_round_trip_of_long_tables_keeps_all_but_boxes(info: SourceInfo, each: list[Poses]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_results(write(Path(folder), "csv-long", each, info)) as results,
    ):
        frames = list(results.frames)
    assert results.keypoint_set is BODY19
    assert [(frame.index, frame.name) for frame in frames] == [
        (i, "" if info is VIDEO else f"a/{i}.jpg") for i in range(len(each))
    ]
    for frame, poses in zip(frames, each, strict=True):
        without = [person | {"box": [None] * 4} for person in people(poses)]
        assert people(frame.poses) == without


@settings(max_examples=15)
@given(each=videos())
def test_round_trip_of_dlc_keeps_points_and_ids(each: list[Poses]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_results(write(Path(folder), "dlc", each)) as results,
    ):
        frames = list(results.frames)
    assert results.keypoint_set is BODY19 and [frame.index for frame in frames] == list(range(len(each)))
    for frame, poses in zip(frames, each, strict=True):
        # Who is followed by nobody is called by the place.
        ids = [i if person["id"] is None else person["id"] for i, person in enumerate(people(poses), 1)]
        found = people(frame.poses)
        assert [person["id"] for person in found] == ids
        assert [p["keypoints"] for p in found] == [p["keypoints"] for p in people(poses)]


def test_dlc_of_one_animal(tmp_path: Path) -> None:
    head = "scorer,net,net,net,net,net,net\nbodyparts,nose,nose,nose,tail,tail,tail\n"
    table = tmp_path / "mouse.csv"
    table.write_text(f"{head}coords,{','.join(['x,y,likelihood'] * 2)}\n0,1,2,0.5,3,4,1\n1,,,,,,\n")
    with open_results(table) as results:
        frames = list(results.frames)
    assert results.keypoint_set.names == ("nose", "tail") and [len(f.poses) for f in frames] == [1, 0]
    assert frames[0].poses.ids.tolist() == [-1] and frames[0].poses.keypoints.tolist() == [[[1, 2], [3, 4]]]


def test_round_trip_of_yolo(tmp_path: Path) -> None:
    with open_results(write(tmp_path, "yolo", EACH)) as results:
        frames = list(results.frames)
    assert results.is_relative and results.keypoint_set is BODY19
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    for frame, poses in zip(frames, EACH, strict=True):
        assert frame.poses.ids.tolist() == poses.ids.tolist()
        size = np.array([640, 480])
        np.testing.assert_allclose(frame.poses.keypoints * size - 0.5, poses.keypoints, atol=0.01)
        np.testing.assert_allclose(frame.poses.boxes * np.tile(size, 2) - 0.5, poses.boxes, atol=0.01)
        np.testing.assert_allclose(frame.poses.scores, poses.scores, atol=6e-5)


@pytest.mark.parametrize(("more", "identity"), [("", -1), (" 0.9", -1), (" 7", 7), (" 0.9 7", 7)])
def test_yolo_of_ultralytics(tmp_path: Path, more: str, identity: int) -> None:
    points = " ".join(["0 0 0", *["0.25 0.5 0.75"] * 16])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "run_12.txt").write_text(f"0 0.5 0.5 0.2 0.4 {points}{more}\n")
    with open_results(tmp_path) as results:
        (frame,) = results.frames
    assert results.keypoint_set is COCO17 and frame.index == 11 and frame.poses.ids.tolist() == [identity]
    np.testing.assert_allclose(frame.poses.boxes, [[0.4, 0.3, 0.6, 0.7]], rtol=1e-6)
    assert np.isnan(frame.poses.keypoints[0, 0]).all() and frame.poses.keypoints[0, 1].tolist() == [0.25, 0.5]


@pytest.mark.parametrize("kind", ["coco", "alphapose", "mmpose", "openpose"])
@settings(max_examples=15)
@given(each=videos())
def test_round_trip_through_other_tools_formats(kind: str, each: list[Poses]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), kind, each)
        for file in [path] if path.is_file() else path.iterdir():
            strict_json(file.read_text())
        if path.is_dir() and not each:
            return
        with open_results(path) as results:
            frames = {frame.index: frame.poses for frame in results.frames}
    names = [name for name in results.keypoint_set.names if name in BODY19.names]
    there = [i for i, poses in enumerate(each) if len(poses) or results.has_empty_frames]
    assert list(frames) == there
    for i in there:
        wanted, found = each[i], frames[i]
        if kind != "coco":
            assert np.array_equal(found.ids, wanted.ids)
        for name in names:
            old, new = BODY19.index(name), results.keypoint_set.index(name)
            finite = np.isfinite(wanted.keypoints[:, old]).all(axis=1) & np.isfinite(wanted.scores[:, old])
            np.testing.assert_allclose(
                found.keypoints[finite, new], wanted.keypoints[finite, old], atol=0.006
            )
            np.testing.assert_allclose(found.scores[finite, new], wanted.scores[finite, old], atol=6e-5)
            assert np.isnan(found.keypoints[~finite, new]).all() and not found.scores[~finite, new].any()


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("json", "jsonl", "csv", "parquet")])
@settings(max_examples=5)
@given(each=videos())
def test_whatever_comes_is_written(kind: str, each: list[Poses]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert write(Path(folder), kind, each).exists()


# Memory.


def memory_growth_kb(kind: str, frames: int) -> int:
    """How much higher the most memory of a process is after so many frames than after few."""

    def write_all(count: int) -> int:
        poses = make_poses(2)
        with tempfile.TemporaryDirectory() as folder:
            with SINKS[kind](Path(folder), "k", Run(VIDEO, MODEL, BODY19)) as sink:
                for i in range(count):
                    sink.write(Frame(IMAGE, i, i / 30), poses)
            # Before the folder is removed, which takes memory for each file.
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    few = write_all(100)
    return write_all(frames) - few


def main(frames: int, kinds: Sequence[str]) -> None:
    """Prints kind and growth, kB, each measured in a process of its own."""
    for kind in kinds or KINDS:
        child = os.fork()
        if not child:
            print(kind, memory_growth_kb(kind, frames), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


def test_memory_is_constant() -> None:
    done = subprocess.run([sys.executable, __file__, "1000"], capture_output=True, text=True, check=True)
    growth = {kind: int(kb) for kind, kb in map(str.split, done.stdout.splitlines())}
    assert list(growth) == KINDS
    # A Parquet file's rows wait until there are 8192, of 0.5 kB each.
    limits = {kind: 6000 if kind == "parquet" else 2500 for kind in KINDS}
    # 1800 people that were kept as lists would be 6 MB.
    assert {kind: kb for kind, kb in growth.items() if kb > limits[kind]} == {}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
