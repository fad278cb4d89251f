"""The public archives, each as a small file of that format that the test writes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from hgpose.errors import InputError, OptionsError
from hgpose.keypoints import BODY19, LSP14, MPII16
from hgpose.train.archives import load_people
from hgpose.train.evaluate import pose_scores
from hgpose.train.metrics import head_px

rng = np.random.default_rng(0)


def images(folder: Path, *names: str) -> None:
    (folder / "images").mkdir(exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / "images" / name), np.zeros((90, 120, 3), np.uint8))


def lsp(folder: Path, people: int = 3) -> tuple[Path, np.ndarray]:
    joints = np.concatenate([rng.uniform(1, 90, (2, 14, people)), rng.integers(0, 2, (1, 14, people))])
    savemat(folder / "joints.mat", {"joints": joints})
    images(folder, *(f"im{i + 1:04d}.jpg" for i in range(people)))
    return folder / "joints.mat", joints


@pytest.mark.parametrize("people", [1, 3])
def test_lsp(tmp_path: Path, people: int) -> None:
    path, joints = lsp(tmp_path, people)
    found = load_people(path, [], LSP14)
    np.testing.assert_allclose(found.points, joints[:2].transpose(2, 1, 0) - 1, rtol=1e-6)
    # A third row of 1 is an occluded joint, which is labelled all the same.
    assert np.array_equal(found.visibility, 2 - joints[2].T)
    assert [f.name for f in found.files] == [f"im{i + 1:04d}.jpg" for i in range(people)]
    assert found.empty_files == ()


def test_lsp_splits(tmp_path: Path) -> None:
    joints = np.zeros((3, 14, 1002))
    joints[:2] = np.linspace(5, 60, 14)[:, None]
    joints[0] += np.arange(1002) / 100
    savemat(tmp_path / "joints.mat", {"joints": joints})
    images(tmp_path, "im0001.jpg")
    one = (tmp_path / "images" / "im0001.jpg").read_bytes()
    for i in range(1002):
        (tmp_path / "images" / f"im{i + 1:04d}.jpg").write_bytes(one)
    for split, first, count in ((None, 1, 1000), ("train", 1, 1000), ("test", 1001, 2)):
        found = load_people(tmp_path / "joints.mat", [], LSP14, split)
        assert len(found) == count and found.files[0].name == f"im{first:04d}.jpg"
        np.testing.assert_allclose(found.points[0], joints[:2, :, first - 1].T - 1, rtol=1e-6)
    with pytest.raises(OptionsError, match="no split 'val': it has train and test"):
        load_people(tmp_path / "joints.mat", [], LSP14, "val")


def test_lsp_extended(tmp_path: Path) -> None:
    joints = np.concatenate([rng.uniform(1, 90, (14, 2, 2)), np.ones((14, 1, 2))], axis=1)
    # A third column of 0 is a joint that is not labelled; its place means nothing.
    joints[3, :, 0] = -40, np.nan, 0
    savemat(tmp_path / "joints.mat", {"joints": joints})
    images(tmp_path, "im00001.jpg", "im00002.jpg")
    found = load_people(tmp_path / "joints.mat", [], BODY19)
    order = [BODY19.index(name) for name in LSP14.names]
    expected = np.full((2, 14), 2)
    expected[0, 3] = 0
    assert np.array_equal(found.visibility[:, order], expected)
    assert (found.visibility > 0).sum() == 27
    labelled = expected > 0
    np.testing.assert_allclose(
        found.points[:, order][labelled], joints[:, :2].transpose(2, 0, 1)[labelled] - 1, rtol=1e-6
    )
    with pytest.raises(OptionsError, match="it is not split"):
        load_people(tmp_path / "joints.mat", [], LSP14, "train")


def struct(*rows: dict[str, Any]) -> np.ndarray:
    """A MATLAB struct array, as the archive nests them."""
    table = np.zeros((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        for key, value in row.items():
            table[0, i][key] = value
    return table


EMPTY = np.zeros((0, 0))


def mpii_person(joints: dict[int, tuple[float, float, Any]], **changes: Any) -> dict[str, Any]:
    points = [{"x": x, "y": y, "id": i, "is_visible": v} for i, (x, y, v) in joints.items()]
    person = {
        "x1": 40, "y1": 10, "x2": 43, "y2": 14,
        "annopoints": struct({"point": struct(*points)}) if points else EMPTY,
        "scale": 0.4,
        "objpos": struct({"x": 51, "y": 41}),
    }  # fmt: skip
    return person | changes


def mpii(folder: Path, *per_image: list[dict[str, Any]], training: list[int] | None = None) -> Path:
    annolist = struct(
        *(
            {"image": struct({"name": f"{i:09d}.jpg"}), "annorect": struct(*people) if people else EMPTY}
            for i, people in enumerate(per_image)
        )
    )
    release = struct(
        {"annolist": annolist, "img_train": np.array([training or [1] * len(per_image)], np.uint8)}
    )
    savemat(folder / "mpii.mat", {"RELEASE": release})
    images(folder, *(f"{i:09d}.jpg" for i in range(len(per_image))))
    return folder / "mpii.mat"


def test_mpii_mat(tmp_path: Path) -> None:
    joints = {
        0: (30.0, 80.5, 0),
        9: (42.0, 11.0, EMPTY),
        8: (43.0, 21.0, EMPTY),
        12: (50, 30, "1"),
        2: (51, 50, "0"),
    }
    path = mpii(
        tmp_path,
        [
            mpii_person(joints),
            mpii_person({6: (60.0, 60.0, 1), 7: (60.0, 40.0, 1)}, objpos=EMPTY, scale=EMPTY),
        ],
        [],
        [mpii_person({}), mpii_person({}, x1=EMPTY)],
        [mpii_person(joints)],
        training=[1, 1, 1, 0],
    )
    found = load_people(path, [], MPII16)
    assert [f.name for f in found.files] == ["000000000.jpg"] * 2
    assert len(set(found.image_ids.tolist())) == 1
    visibility = np.zeros((2, 16), int)
    for i, (_, _, visible) in joints.items():
        visibility[0, i] = 1 if str(visible) == "0" else 2
    visibility[1, 6:8] = 2
    assert found.visibility.tolist() == visibility.tolist()
    for i, (x, y, _) in joints.items():
        assert found.points[0, i].tolist() == [x - 1, y - 1]
    # Centre (51, 41) counted from 1, side 200 * 0.4 px; without them a box around the joints.
    np.testing.assert_allclose(found.boxes, [[10, 0, 90, 80], [57, 37, 61, 61]])
    # Six tenths of the diagonal of a 3x4 box.
    assert found.head_sizes is not None
    np.testing.assert_allclose(found.head_sizes, [3, 3])
    np.testing.assert_allclose(head_px(found), [3, 3])


def test_who_has_one_joint_and_no_box_is_left_out(tmp_path: Path) -> None:
    joints = np.concatenate([rng.uniform(1, 90, (14, 2, 3)), np.ones((14, 1, 3))], axis=1)
    joints[1:, 2, 1] = 0
    savemat(tmp_path / "joints.mat", {"joints": joints})
    images(tmp_path, *(f"im{i + 1:05d}.jpg" for i in range(3)))
    found = load_people(tmp_path / "joints.mat", [], LSP14)
    assert [file.name for file in found.files] == ["im00001.jpg", "im00003.jpg"]


@pytest.mark.parametrize("changes", [{"scale": 1e30}, {"center": [float("nan"), 1]}, {"center": [1e30, 1]}])
def test_mpii_boxes_beyond_all_images(tmp_path: Path, changes: dict[str, Any]) -> None:
    person = {
        "image": "a.jpg",
        "joints": [[40, 10]] * 16,
        "joints_vis": [1] * 16,
        "center": [51, 41],
        "scale": 1,
    }
    (tmp_path / "train.json").write_text(json.dumps([person | changes]))
    images(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"train\.json: annotation 1 has the box"):
        load_people(tmp_path / "train.json", [], MPII16)


def test_mpii_json(tmp_path: Path) -> None:
    joints = [[-1, -1]] * 16
    joints[9], joints[8], joints[2] = [40, 10], [43, 14], [45, 50]
    vis = [1 if joint[0] > 0 else 0 for joint in joints]
    # One joint is flagged but not there.
    vis[5] = 1
    person = {"image": "a.jpg", "joints": joints, "joints_vis": vis, "center": [51, 41], "scale": 0.4}
    nowhere = person | {"image": "b.jpg", "center": [-1, -1], "scale": -1}
    (tmp_path / "train.json").write_text(json.dumps([person, nowhere, nowhere | {"joints_vis": [0] * 16}]))
    images(tmp_path, "a.jpg", "b.jpg")
    found = load_people(tmp_path / "train.json", [tmp_path / "images"], MPII16)
    assert np.flatnonzero(found.visibility[0]).tolist() == [2, 8, 9]
    assert found.points[0, 2].tolist() == [44, 49]
    np.testing.assert_allclose(found.boxes, [[10, 0, 90, 80], [35, 5, 48, 53]])
    assert found.head_sizes is None
    np.testing.assert_allclose(head_px(found), [5, 5])


# ---- MPII's validation people ----


class Validation:
    """Seven people of MPII on three images, as each of its files has them; five of them validate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.points = rng.uniform(5, 85, (7, 16, 2)).round()
        self.labelled = rng.random((7, 16)) < 0.8
        self.labelled[:, :2] = True
        self.corners = np.sort(rng.uniform(5, 85, (7, 2, 2)), axis=1)
        self.image = [0, 0, 0, 1, 1, 2, 2]
        self.chosen = [4, 1, 2, 5, 0]
        self.mat = mpii(
            folder, *([self._archived(i) for i in range(7) if self.image[i] == k] for k in range(3))
        )
        (folder / "annot").mkdir()
        self.json = folder / "annot" / "valid.json"
        self.gt = folder / "annot" / "gt_valid.mat"
        self.write_list(self.chosen)
        savemat(self.gt, self.labels(self.chosen))

    def _archived(self, i: int) -> dict[str, Any]:
        joints = {j: (*self.points[i, j], 1) for j in np.flatnonzero(self.labelled[i])}
        (x1, y1), (x2, y2) = self.corners[i]
        center = struct({"x": 40 + i, "y": 50})
        return mpii_person(joints, x1=x1, y1=y1, x2=x2, y2=y2, objpos=center, scale=0.3)

    def write_list(self, people: list[int], **changes: Any) -> None:
        rows = [
            {
                "image": f"{self.image[i]:09d}.jpg",
                "joints": np.where(self.labelled[i][:, None], self.points[i], -1).tolist(),
                "joints_vis": self.labelled[i].astype(int).tolist(),
                "center": [40.0 + i, 50.0],
                "scale": 0.3,
            }
            | changes
            for i in people
        ]
        self.json.write_text(json.dumps(rows))

    def labels(self, people: list[int]) -> dict[str, Any]:
        labelled = self.labelled[people]
        points = np.where(labelled[..., None], self.points[people], np.nan)
        return {
            "pos_gt_src": points.transpose(1, 2, 0),
            "jnt_missing": (~labelled).astype(np.uint8).T,
            "headboxes_src": self.corners[people].transpose(1, 2, 0),
        }


@pytest.fixture
def validation(tmp_path: Path) -> Validation:
    return Validation(tmp_path)


def published_pckh(v: Validation, predictions: np.ndarray) -> tuple[float, float]:
    """The unweighted and the weighted mean as published scripts compute them from ``gt_valid.mat``.

    Args:
        v: the set.
        predictions: ``(5, 16, 2)`` px counted from 1.
    """
    right, count = np.zeros(16), np.zeros(16)
    for prediction, i in zip(predictions, v.chosen, strict=True):
        head = 0.6 * float(np.hypot(*(v.corners[i, 1] - v.corners[i, 0])))
        for j in np.flatnonzero(v.labelled[i]):
            count[j] += 1
            right[j] += np.hypot(*(prediction[j] - v.points[i, j])) <= 0.5 * head
    joints = [j for j in range(16) if j not in (6, 7) and count[j]]
    shares = 100 * right[joints] / count[joints]
    return float(shares.mean()), float(100 * right[joints].sum() / count[joints].sum())


@pytest.mark.parametrize("route", ["labels", "archive beside the list", "split of the archive", "one person"])
def test_mpii_validation(validation: Validation, route: str) -> None:
    v = validation
    if route == "one person":
        # MATLAB drops the axis of people.
        v.chosen = v.chosen[:1]
        v.write_list(v.chosen)
        savemat(v.gt, v.labels(v.chosen))
    if route == "split of the archive":
        found = load_people(v.mat, [v.folder / "images"], MPII16, "valid")
    else:
        heads = v.mat if route == "archive beside the list" else v.gt
        found = load_people(v.json, [v.folder / "images"], MPII16, heads=heads)
    assert [f.name for f in found.files] == [f"{v.image[i]:09d}.jpg" for i in v.chosen]
    assert np.array_equal(found.visibility > 0, v.labelled[v.chosen])
    # Centre counted from 1, side 200 * 0.3 px.
    np.testing.assert_allclose(found.boxes[:, 0], [40 + i - 1 - 30 for i in v.chosen])
    np.testing.assert_allclose(found.boxes[:, 3] - found.boxes[:, 1], 60)
    predictions = v.points[v.chosen] + rng.normal(0, 8, (len(v.chosen), 16, 2))
    ones = np.ones((len(found), 16), np.float32)
    scored = pose_scores(found, (predictions - 1).astype(np.float32), ones, MPII16.sigmas)
    mean, weighted_mean = published_pckh(v, predictions)
    assert 0 < mean < 100
    assert scored["people"] == len(v.chosen) and scored["head"] == "head box"
    assert scored["pckh@0.5"]["mean"] == pytest.approx(mean)
    assert scored["pckh@0.5"]["weighted_mean"] == pytest.approx(weighted_mean)


def test_tompsons_labels_hold(validation: Validation) -> None:
    # A joint that the list has and the labels have not, and the other way round.
    v = validation
    person = v.chosen[0]
    v.labelled[person, 3], v.labelled[person, 4] = True, False
    v.write_list(v.chosen)
    v.labelled[person, 3], v.labelled[person, 4] = False, True
    savemat(v.gt, v.labels(v.chosen))
    found = load_people(v.json, [v.folder / "images"], MPII16, heads=v.gt)
    assert np.array_equal(found.visibility > 0, v.labelled[v.chosen])


def test_heads_of_other_people(validation: Validation) -> None:
    v = validation
    folders = [v.folder / "images"]
    good = v.labels(v.chosen)
    for content, message in (
        (v.labels([4, 1, 2, 5]), r"has 4 people, .*valid\.json has 5"),
        (v.labels([1, 4, 2, 5, 0]), r"person 1 of .*valid\.json, on 000000001\.jpg"),
        (good | {"headboxes_src": np.zeros(3)}, "the list of people is malformed"),
        ({"headboxes_src": good["headboxes_src"]}, "the list of people is malformed"),
        ({"other": 1}, "has no head boxes"),
    ):
        savemat(v.gt, content)
        with pytest.raises(InputError, match=rf"gt_valid\.mat: {message}"):
            load_people(v.json, folders, MPII16, heads=v.gt)
    with pytest.raises(InputError, match=r"none\.mat: no such file"):
        load_people(v.json, folders, MPII16, heads=v.folder / "none.mat")
    v.write_list([0], image="000000002.jpg")
    with pytest.raises(InputError, match=r"mpii\.mat: person 1 of .*valid\.json, on 000000002\.jpg"):
        load_people(v.json, folders, MPII16, heads=v.mat)


def test_heads_go_with_mpiis_list_only(validation: Validation) -> None:
    v = validation
    with pytest.raises(OptionsError, match=r"--heads goes with MPII's list of people .*mpii\.mat is not"):
        load_people(v.mat, [], MPII16, "valid", v.gt)
    path, _ = lsp(v.folder)
    with pytest.raises(OptionsError, match="no split 'valid': it has train and test"):
        load_people(path, [], MPII16, "valid")
    v.json.unlink()
    with pytest.raises(
        InputError, match=r"put the common annot/valid\.json beside it, or .*--heads mpii\.mat"
    ):
        load_people(v.mat, [], MPII16, "valid")


def test_coco_json(tmp_path: Path) -> None:
    person = {"id": 1, "image_id": 3, "category_id": 1, "bbox": [4, 2, 9, 9], "keypoints": [5, 6, 2]}
    document = {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 120, "height": 90}],
        "annotations": [person],
        "categories": [{"id": 1, "keypoints": ["nose"]}],
    }
    (tmp_path / "person_keypoints_val.json").write_text(json.dumps(document))
    images(tmp_path, "a.jpg")
    found = load_people(tmp_path / "person_keypoints_val.json", [], BODY19)
    assert found.points[0, 0].tolist() == [5, 6] and found.image_ids.tolist() == [3]


def test_missing_and_damaged_images(tmp_path: Path) -> None:
    path, _ = lsp(tmp_path)
    (tmp_path / "images" / "im0002.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"im0002\.jpg: cannot be read \(not an image, or damaged\)"):
        load_people(path, [], LSP14)
    Image.new("1", (14000, 14000)).save(tmp_path / "images" / "im0002.jpg", "PNG")
    with pytest.raises(InputError, match=r"im0002\.jpg: refused, too many pixels"):
        load_people(path, [], LSP14)
    (tmp_path / "images" / "im0002.jpg").unlink()
    with pytest.raises(InputError, match=r"joints\.mat: image 'im0002\.jpg' is not in .*--images"):
        load_people(path, [], LSP14)


def test_annotation_outside_its_image(tmp_path: Path) -> None:
    _, joints = lsp(tmp_path)
    joints[0, :, 1] += 300
    savemat(tmp_path / "joints.mat", {"joints": joints})
    with pytest.raises(
        InputError, match=r"joints\.mat: annotation 2 has its right_ankle .*'im0002\.jpg' \(120x90 px\)"
    ):
        load_people(tmp_path / "joints.mat", [], LSP14)


@pytest.mark.parametrize(
    "content",
    [
        {"joints": np.zeros((14, 3, 5))},
        {"RELEASE": struct({"annolist": EMPTY, "img_train": EMPTY})},
    ],
)
def test_empty_archives(tmp_path: Path, content: dict[str, Any]) -> None:
    savemat(tmp_path / "a.mat", content)
    images(tmp_path, *(f"im{i + 1:05d}.jpg" for i in range(5)))
    with pytest.raises(InputError, match=r"a\.mat: no person with keypoints of lsp14"):
        load_people(tmp_path / "a.mat", [], LSP14)


def test_unknown_and_damaged_files(tmp_path: Path) -> None:
    mat = tmp_path / "a.mat"
    for content in ({"joints": np.zeros((4, 14, 2))}, {"joints": "text"}, {"other": 1}):
        savemat(mat, content)
        with pytest.raises(InputError, match=r"a\.mat: neither Leeds Sports Pose"):
            load_people(mat, [], LSP14)
    savemat(mat, {"RELEASE": struct({"annolist": struct({"image": 1}), "img_train": 1})})
    with pytest.raises(InputError, match=r"a\.mat: the list of people is malformed"):
        load_people(mat, [], LSP14)
    path, _ = lsp(tmp_path)
    for damaged in (path.read_bytes()[:400], b"MATLAB 5.0", b""):
        mat.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.mat: cannot be read as a MATLAB file"):
            load_people(mat, [], LSP14)
    with pytest.raises(InputError, match=r"none\.mat: no such file"):
        load_people(tmp_path / "none.mat", [], LSP14)
    for text, message in (
        ("[1]", "neither COCO-style"),
        ("{}", "neither COCO-style"),
        ("{", "cannot be read"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=rf"a\.json: {message}"):
            load_people(tmp_path / "a.json", [], LSP14)
    bad = [{"image": "a.jpg", "joints": [[1, 2]], "joints_vis": [1]}]
    (tmp_path / "a.json").write_text(json.dumps(bad))
    with pytest.raises(InputError, match=r"a\.json: the list of people is malformed"):
        load_people(tmp_path / "a.json", [], LSP14)
