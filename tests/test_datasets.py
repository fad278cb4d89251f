"""COCO-style annotations: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from hgpose.errors import InputError
from hgpose.keypoints import BODY19, COCO17, LSP14
from hgpose.train.datasets import concatenate_people, keep_joints, load_box_set, load_pose_set

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


def test_disputed_joints_weigh_less_and_confirmed_ones_are_known(tmp_path: Path) -> None:
    people = load_pose_set(write(tmp_path, coco(keypoint_source=[4, 5, 0])), [], LSP14)
    weights = people.weights[0]
    assert 0 < weights[LSP14.index("left_shoulder")] < weights[LSP14.index("right_hip")] == 1
    confirmed = {LSP14.names[i] for i in np.flatnonzero(people.confirmed[0])}
    assert confirmed == {"right_hip"}
    assert not load_pose_set(write(tmp_path, coco()), [], LSP14).confirmed.any()


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
    both = concatenate_people([plain, headed])
    assert len(both) == 2 and both.head_sizes is not None
    assert np.isnan(both.head_sizes[0]) and both.head_sizes[1] == 6.5
    assert concatenate_people([plain, plain]).head_sizes is None

    kept = keep_joints(both, np.array([name == "right_hip" for name in both.names]))
    assert (kept.visibility > 0).sum(0)[LSP14.index("right_hip")] == 2
    assert (kept.visibility > 0).sum() == 2 == (kept.weights > 0).sum()


def test_ids_may_be_text(tmp_path: Path) -> None:
    document = coco(id="7", image_id="1", category_id="1")
    for image in document["images"]:
        image["id"] = str(image["id"])
    path = write(tmp_path, document)
    people = load_pose_set(path, [], LSP14)
    assert people.image_ids.tolist() == [1] and people.annotation_ids.tolist() == [7]
    assert people.empty_files == (tmp_path / "images" / "leer.png",)
    assert [len(boxes) for boxes in load_box_set(path, []).boxes] == [1, 0]


@pytest.mark.parametrize("bbox", [None, [5, 5, 0, 0], [5, 5, 1e-30, 1e-30], [4, 2, 0, 25]])
def test_a_box_without_extent_is_none(tmp_path: Path, bbox: Any) -> None:
    document = coco(bbox=bbox, area=0)
    # A single joint says nothing of the size of a person either.
    document["annotations"] += coco(id=8, bbox=bbox, keypoints=[10, 5, 2, *[0] * 6])["annotations"]
    people = load_pose_set(write(tmp_path, document), [], LSP14)
    assert people.annotation_ids.tolist() == [7]
    assert people.boxes[0].tolist() == [8, 3, 22, 27] and people.areas.tolist() == [14 * 24]


def test_joints_near_the_image_and_what_is_not_labelled(tmp_path: Path) -> None:
    # Up to the longer side, 40 px, beyond the edge; where there is no label the numbers mean nothing.
    document = coco(keypoints=[-40, 5, 2, 80, 70, 1, float("nan"), 1e300, 0])
    people = load_pose_set(write(tmp_path, document), [], LSP14)
    assert people.points[0, LSP14.index("left_shoulder")].tolist() == [-40, 5]
    assert people.points[0, LSP14.index("right_hip")].tolist() == [80, 70]
    assert people.points[0, LSP14.index("neck")].tolist() == [0, 0]


def changed(key: str, index: int, **changes: Any) -> dict[str, Any]:
    """The two images with an entry of a list changed; ``None`` takes a key away."""
    document = coco()
    entry = document[key][index] | changes
    document[key][index] = {k: v for k, v in entry.items() if v is not None}
    return document


HUGE = 2**63
#: Wrong for people with keypoints and for people with boxes.
BROKEN_ANYWAY: list[tuple[Any, str]] = [
    ([], "not COCO-style"),
    (coco() | {"annotations": None}, "not COCO-style"),
    (coco() | {"annotations": {"7": {}}}, "not COCO-style"),
    (coco() | {"images": None}, "not COCO-style"),
    (coco() | {"categories": [1]}, "list of categories is malformed"),
    (coco() | {"categories": [{"id": 1, "keypoints": [["nose"]]}]}, "list of categories is malformed"),
    (coco() | {"categories": [{"id": 1, "keypoints": ["nose"] * 3}]}, "two keypoints have one name"),
    (coco(iscrowd="no"), "annotation 7 has the iscrowd 'no', which must be 0 or 1"),
    (coco(category_id=None), "annotation number 1 is malformed"),
    (coco() | {"annotations": [{}]}, "annotation number 1 is malformed"),
    (coco() | {"annotations": ["text"]}, "annotation number 1 is malformed"),
    (coco() | {"images": [{}]}, "image number 1 is malformed"),
    (changed("images", 1, file_name=None), "image number 2 is malformed"),
    (changed("images", 1, file_name=5), "image number 2 is malformed .*file_name 5 is not text"),
    (changed("images", 0, file_name="a" * 300), "image 'a+' cannot be looked for"),
    (changed("images", 0, file_name="a\0"), "is not in .*images"),
    (changed("images", 1, id=HUGE), "image number 2 is malformed .*not a whole number below"),
    (changed("images", 1, id=float("inf")), "image number 2 is malformed"),
    (changed("images", 1, id=1.5), "image number 2 is malformed .*1.5 is not a whole number"),
    (changed("images", 1, id="two"), "image number 2 is malformed"),
    (changed("images", 1, id=1), "two images have the id 1"),
    (changed("images", 1, width="wide"), "image number 2 is malformed"),
    (changed("images", 1, width=30, height=40), "image 'leer.png' is annotated as 30x40 px, but .* is 40x30"),
    (changed("images", 0, width=41), "image 'a b.png' is annotated as 41x30 px, but .*a b.png is 40x30 px"),
    (coco(id="\ud800"), "annotation number 1 is malformed"),
    (coco(id=HUGE), "annotation number 1 is malformed"),
    (coco() | {"annotations": coco()["annotations"] * 2}, "two annotations have the id 7"),
    (coco(image_id=5), "annotation 7 names image 5"),
    (coco(image_id=[1]), "annotation number 1 is malformed"),
    (coco(bbox=[90, 2, 10, 10]), r"annotation 7 lies outside its image 'a b.png' \(40x30 px\)"),
    (coco(bbox=[4, 2, 10]), "annotation 7 is malformed"),
    (coco(bbox="box"), "annotation 7 is malformed"),
    (coco(bbox="1234"), "annotation 7 is malformed"),
    (coco(bbox=[float("nan")] * 4), "annotation 7 has the box"),
    (coco(bbox=[0, 0, float("inf"), 5]), "annotation 7 has the box"),
    (coco(bbox=[0, 0, 1e30, 1e30]), "annotation 7 has the box .*within 16777216 px"),
    (coco(bbox=[20, 20, -10, -10]), "annotation 7 has the box"),
]
BROKEN: list[tuple[Any, str]] = [
    (coco(keypoints=[1, 2]), "annotation 7 has 2 keypoint values"),
    (coco(keypoints=["x"] * 9), "annotation 7 is malformed"),
    (coco(keypoints=[[1, 2], [3]]), "annotation 7 is malformed"),
    (coco(keypoints=[float("nan"), 1, 2] * 3), r"annotation 7 has its left_shoulder at \(nan, 1\), nowhere"),
    (
        coco(keypoints=[5, 5, 2, 81, 5, 1, 0, 0, 0]),
        r"its right_hip at \(81, 5\), nowhere near its image 'a b",
    ),
    (coco(keypoints=[5, -41, 2] * 3), r"its left_shoulder at \(5, -41\), nowhere near"),
    (coco(keypoints=[5, 1e30, 2] * 3), "nowhere near"),
    (coco(keypoints=[5, float("inf"), 2] * 3), "nowhere near"),
    (coco(keypoints=[10**400, 1, 2] * 3), "annotation 7 is malformed"),
    (coco(keypoints=[9, 9, 2, 9, 9, 0.87, 0, 0, 0]), "annotation 7 has a keypoint of visibility 0.87"),
    (coco(keypoints=[9, 9, 3] * 3), "annotation 7 has a keypoint of visibility 3"),
    (coco(keypoints=[9, 9, float("nan")] * 3), "annotation 7 has a keypoint of visibility nan"),
    (coco(keypoint_source=[1]), "annotation 7 has 1 keypoint sources"),
    (coco(keypoint_source=[1, 99, 1]), "annotation 7 has keypoint sources beside 0 to 5"),
    (coco(keypoint_source=[1, -1, 1]), "annotation 7 has keypoint sources beside 0 to 5"),
    (coco(keypoints={}), "annotation 7 is malformed"),
    (coco(area="big"), "annotation 7 is malformed"),
    (coco(area=[1, 2]), "annotation 7 is malformed"),
    (coco(area=float("nan")), "annotation 7 has the area nan"),
    (coco(area=-100), "annotation 7 has the area -100"),
    (coco(area=1e300), r"annotation 7 has the area 1e\+300"),
    (coco(head_size="x"), "annotation 7 is malformed"),
    (coco(head_size=-3), "annotation 7 has the head_size -3"),
    (coco() | {"annotations": []}, "no person with keypoints of lsp14"),
    (coco() | {"categories": None}, r"name none of the joints of lsp14 \(right_ankle, .* but none at all"),
    (coco() | {"categories": [{"id": 1, "name": "person"}]}, "but none at all"),
    (coco() | {"categories": [{"id": 1, "keypoints": ["tail", "fin", "gill"]}]}, "but tail, fin, gill; name"),
]


@pytest.mark.parametrize(("document", "message"), BROKEN_ANYWAY + BROKEN)
def test_broken_pose_sets(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_pose_set(write(tmp_path, document), [], LSP14)
    assert "set.json" in str(error.value)


def test_an_image_of_another_size_is_another_image(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    for name, (height, width) in {"other": (40, 30), "wanted": (30, 40)}.items():
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a b.png"), np.zeros((height, width, 3), np.uint8))
    folders = [tmp_path / "other", tmp_path / "wanted", tmp_path / "images"]
    assert load_pose_set(path, folders, LSP14).files == (tmp_path / "wanted" / "a b.png",)
    assert load_box_set(path, folders).files[0] == tmp_path / "wanted" / "a b.png"
    with pytest.raises(InputError, match=r"set\.json: .* 40x30 px, but .*other.a b\.png is 30x40 px as disp"):
        load_pose_set(path, folders[:1], LSP14)


def test_two_pictures_of_one_name_and_size(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    (tmp_path / "other").mkdir()
    cv2.imwrite(str(tmp_path / "other" / "a b.png"), np.full((30, 40, 3), 255, np.uint8))
    for load in (load_box_set, lambda *a: load_pose_set(*a, LSP14)):
        with pytest.raises(InputError, match=r"'a b\.png' may be .*images.a b\.png or .*other.a b"):
            load(path, [tmp_path / "images", tmp_path / "other"])


def test_boxes_of_several_categories_need_people(tmp_path: Path) -> None:
    cat, dog = {"id": 1, "name": "cat", "keypoints": [*JOINTS]}, {"id": 2, "name": "dog"}
    path = write(tmp_path, coco() | {"categories": [cat, dog]})
    with pytest.raises(InputError, match="none of its categories cat, dog is called 'person'"):
        load_box_set(path, [])
    # Joints say by themselves whose they are, and a single category what it is about.
    assert len(load_pose_set(path, [], LSP14)) == 1
    assert len(load_box_set(write(tmp_path, coco() | {"categories": [cat]}), []).boxes[0]) == 1


def test_a_picture_that_is_listed_twice(tmp_path: Path) -> None:
    document = coco()
    document["images"].append({"id": 3, "file_name": "a b.png", "width": 40, "height": 30})
    path = write(tmp_path, document)
    # Of the second one nothing is said, but the picture shows somebody.
    assert load_pose_set(path, [], LSP14).empty_files == (tmp_path / "images" / "leer.png",)
    with pytest.raises(InputError, match=r"image 'a b\.png' is listed twice"):
        load_box_set(path, [])


def test_a_mark_of_the_byte_order_is_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(load_pose_set(path, [], LSP14)) == 1


def test_the_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(tmp_path / "images" / "a b.png", exif=exif)
    assert len(load_pose_set(path, [], LSP14)) == 1
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a b.png", exif=exif)
    with pytest.raises(InputError, match=r"a b\.png is 30x40 px as displayed"):
        load_pose_set(path, [], LSP14)


def test_broken_files(tmp_path: Path) -> None:
    path = write(tmp_path, coco())
    (tmp_path / "images" / "a b.png").unlink()
    with pytest.raises(InputError, match=r"set\.json: image 'a b\.png' is not in .*images.*--images"):
        load_pose_set(path, [], LSP14)
    with pytest.raises(InputError, match="elsewhere: no such folder"):
        load_pose_set(path, [tmp_path / "elsewhere"], LSP14)
    for content in (b"\xff\xd8 no JSON", b"[" * 100_000, b'{"images": ' + b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"set\.json: cannot be read as JSON"):
            load_pose_set(path, [], LSP14)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        load_box_set(tmp_path / "none.json", [])


def test_box_set(tmp_path: Path) -> None:
    document = coco()
    document["categories"].append({"id": 2, "name": "dog"})
    document["annotations"] += [
        coco(id=8, category_id=2)["annotations"][0],
        coco(id=9, iscrowd=1, bbox=[0, 0, 40, 30], score=0.25)["annotations"][0],
        coco(id=10, bbox=[3, 3, 0, 4])["annotations"][0],
    ]
    boxes = load_box_set(write(tmp_path, document), [])
    assert [b.tolist() for b in boxes.boxes] == [[[4, 2, 24, 27], [0, 0, 40, 30]], []]
    assert [c.tolist() for c in boxes.crowd] == [[False, True], []]
    assert [s.tolist() for s in boxes.scores] == [[1, 0.25], []]
    assert boxes.sizes_wh.tolist() == [[40, 30], [40, 30]] and boxes.image_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        *BROKEN_ANYWAY,
        (coco() | {"images": []}, "no images"),
        (coco(score=1.5), "annotation 7 has the score 1.5, which must lie between 0 and 1"),
        (coco(score="high"), "annotation 7 is malformed"),
    ],
)
def test_broken_box_sets(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_box_set(write(tmp_path, document), [])
    assert "set.json" in str(error.value)


def test_an_archive_of_poses_is_no_box_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"joints\.mat: archives of poses do not say where everybody"):
        load_box_set(tmp_path / "joints.mat", [])


def test_real_sets_of_this_kind() -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("needs the shared photographs")
    people = load_pose_set(data / "pose" / "lsp_test.json", [], COCO17)
    assert len(people) == 1000 and (people.visibility > 0).sum() == 12 * 1000
    assert len(load_box_set(data / "person" / "val.json", [])) == 702
