"""COCO-style annotations: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hgpose.errors import InputError
from hgpose.keypoints import BODY19, COCO17, LSP14
from hgpose.train.datasets import concatenate, keep_joints, load_box_set, load_pose_set

JOINTS = ("left_shoulder", "right_hip", "neck")


def coco(**changes: Any) -> dict[str, Any]:
    """Two images of 40x30 px: one with a person of three joints, one without anybody."""
    person = {
        "id": 7,
        "image_id": 1,
        "category_id": 1,
        "bbox": [4, 2, 20, 25],
        "area": 300.0,
        "iscrowd": 0,
        "keypoints": [10, 5, 2, 20, 25, 1, 0, 0, 0],
    }
    return {
        "images": [
            {"id": 1, "file_name": "a b.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "leer.png", "width": 40, "height": 30},
        ],
        "annotations": [person | changes],
        "categories": [{"id": 1, "name": "person", "keypoints": list(JOINTS)}],
    }


def write(folder: Path, document: Any) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a b.png", "leer.png"):
        cv2.imwrite(str(folder / "images" / name), np.zeros((30, 40, 3), np.uint8))
    path = folder / "set.json"
    path.write_text(json.dumps(document))
    return path


def test_joints_are_matched_by_name(tmp_path: Path) -> None:
    people = load_pose_set(write(tmp_path, coco()), [], BODY19)
    assert people.names == BODY19.names and len(people) == 1
    shoulder, hip = BODY19.index("left_shoulder"), BODY19.index("right_hip")
    assert people.points[0, shoulder].tolist() == [10, 5]
    assert people.points[0, hip].tolist() == [20, 25]
    visibility = np.zeros(19)
    visibility[[shoulder, hip]] = 2, 1
    assert people.visibility[0].tolist() == visibility.tolist()
    assert people.weights[0].tolist() == (visibility > 0).tolist()
    assert people.boxes[0].tolist() == [4, 2, 24, 27]
    assert people.areas.tolist() == [300] and people.annotation_ids.tolist() == [7]
    assert people.files == (tmp_path / "images" / "a b.png",)
    assert people.empty_files == (tmp_path / "images" / "leer.png",)
    assert people.head_sizes is None


def test_without_a_box_it_is_drawn_around_the_joints(tmp_path: Path) -> None:
    document = coco()
    del document["annotations"][0]["bbox"], document["annotations"][0]["area"]
    people = load_pose_set(write(tmp_path, document), [], LSP14)
    assert people.boxes[0].tolist() == [8, 3, 22, 27]
    assert people.areas.tolist() == [14 * 24]


def test_disputed_joints_weigh_less(tmp_path: Path) -> None:
    people = load_pose_set(write(tmp_path, coco(keypoint_source=[4, 5, 0])), [], LSP14)
    weights = people.weights[0]
    assert 0 < weights[LSP14.index("left_shoulder")] < weights[LSP14.index("right_hip")] == 1


def test_crowds_and_people_without_a_wanted_joint_are_left_out(tmp_path: Path) -> None:
    document = coco()
    document["annotations"] += [
        coco(id=8, iscrowd=1)["annotations"][0],
        coco(id=9, keypoints=[0] * 9)["annotations"][0],
    ]
    assert load_pose_set(write(tmp_path, document), [], LSP14).annotation_ids.tolist() == [7]


def test_concatenate_and_keep_joints(tmp_path: Path) -> None:
    plain = load_pose_set(write(tmp_path, coco()), [], LSP14)
    headed = load_pose_set(write(tmp_path, coco(head_size=6.5)), [], LSP14)
    both = concatenate([plain, headed])
    assert len(both) == 2 and both.head_sizes is not None
    assert np.isnan(both.head_sizes[0]) and both.head_sizes[1] == 6.5
    assert concatenate([plain, plain]).head_sizes is None

    kept = keep_joints(both, np.array([name == "right_hip" for name in both.names]))
    assert (kept.visibility > 0).sum(0)[LSP14.index("right_hip")] == 2
    assert (kept.visibility > 0).sum() == 2 == (kept.weights > 0).sum()


BROKEN: list[tuple[Any, str]] = [
    ([], "not COCO-style"),
    (coco(image_id=5), "annotation 7 names image 5"),
    (coco(keypoints=[1, 2]), "annotation 7 has 2 keypoint values"),
    (coco(keypoints=[float("nan"), 1, 2] * 3), "annotation 7 has a keypoint that is not a number"),
    (coco(keypoints=["x"] * 9), "annotation 7 is malformed"),
    (coco(keypoint_source=[1]), "annotation 7 has 1 keypoint sources"),
    (coco(keypoint_source=[1, 99, 1]), "annotation 7 is malformed"),
    (coco(bbox=[4, 2, 0, 25]), "annotation 7 has an empty box"),
    (coco(bbox=[90, 2, 10, 10]), "annotation 7 lies outside its image 'a b.png' "),
    (coco(bbox=[4, 2, 10]), "annotation 7 is malformed"),
    (coco() | {"annotations": []}, "no person with keypoints of lsp14"),
    (coco(id="\ud800"), "is malformed"),
    (coco() | {"annotations": [{}]}, "annotation number 1 is malformed"),
    (coco() | {"images": [{}]}, "list of images is malformed"),
]


@pytest.mark.parametrize(("document", "message"), BROKEN)
def test_broken_pose_sets(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_pose_set(write(tmp_path, document), [], LSP14)
    assert "set.json" in str(error.value)


def test_broken_files(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    (tmp_path / "images" / "a b.png").unlink()
    with pytest.raises(InputError, match=r"set\.json: image 'a b\.png' is not in .*images.*--images"):
        load_pose_set(path, [], LSP14)
    with pytest.raises(InputError, match="elsewhere: no such folder"):
        load_pose_set(path, [tmp_path / "elsewhere"], LSP14)
    path.write_bytes(b"\xff\xd8 no JSON")
    with pytest.raises(InputError, match=r"set\.json: cannot be read as JSON"):
        load_pose_set(path, [], LSP14)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        load_box_set(tmp_path / "none.json", [])


def test_box_set(tmp_path: Path) -> None:
    document = coco()
    document["categories"].append({"id": 2, "name": "dog"})
    document["annotations"] += [
        coco(id=8, category_id=2)["annotations"][0],
        coco(id=9, iscrowd=1, bbox=[0, 0, 40, 30])["annotations"][0],
        coco(id=10, bbox=[3, 3, 0, 4])["annotations"][0],
    ]
    boxes = load_box_set(write(tmp_path, document), [])
    assert [b.tolist() for b in boxes.boxes] == [[[4, 2, 24, 27], [0, 0, 40, 30]], []]
    assert [c.tolist() for c in boxes.crowd] == [[False, True], []]
    assert boxes.sizes_wh.tolist() == [[40, 30], [40, 30]] and boxes.image_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (coco(image_id=5), "annotation 7 names image 5"),
        (coco(bbox=[90, 2, 10, 10]), "annotation 7 lies outside"),
        (coco(bbox="box"), "annotation 7 is malformed"),
        (coco() | {"images": []}, "no images"),
    ],
)
def test_broken_box_sets(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_box_set(write(tmp_path, document), [])


def test_real_sets_of_this_kind() -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("needs the shared photographs")
    people = load_pose_set(data / "pose" / "lsp_test.json", [], COCO17)
    assert len(people) == 1000 and (people.visibility > 0).sum() == 12 * 1000
    assert len(load_box_set(data / "person" / "val.json", [])) == 702
