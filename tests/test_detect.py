"""Detectors, and the boxes that users bring."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hgpose.detect import GivenBoxes, PersonDetector, WholeFrame, iou, read_boxes, suppress
from hgpose.errors import InputError
from hgpose.types import Detections, Frame
from hgpose.weights import Card


def frame(index: int = 0, name: str = "", size_hw: tuple[int, int] = (48, 64)) -> Frame:
    return Frame(np.zeros((*size_hw, 3), np.uint8), index, 0.0, name)


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union, the long way."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


corner = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))
box_lists = st.lists(corner.map(lambda c: [c[0], c[1], c[0] + c[2], c[1] + c[3]]), min_size=1, max_size=8)


@given(box_lists, box_lists)
def test_iou_of_every_pair(a: list[list[float]], b: list[list[float]]) -> None:
    expected = [[overlap(x, y) for y in b] for x in a]
    assert np.allclose(iou(np.array(a, np.float32), np.array(b, np.float32)), expected)


def test_iou_of_nothing() -> None:
    assert iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)
    assert iou(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0


@given(box_lists, st.sampled_from([0.0, 0.3, 0.6, 1.0]))
def test_suppression(boxes: list[list[float]], limit: float) -> None:
    kept = suppress(np.array(boxes, np.float64), limit)
    expected: list[int] = []
    for i, box in enumerate(boxes):
        if all(overlap(box, boxes[j]) <= limit for j in expected):
            expected.append(i)
    assert kept == expected


def test_suppression_of_nobody() -> None:
    assert suppress(np.zeros((0, 4)), 0.5) == []


class FakeFinder:
    """Answers as a finder network that sees people where it is told: ``(x, y, score)`` in cells."""

    def __init__(self, peaks: list[tuple[int, int, float]], *sides_px: float) -> None:
        self.card = Card("fake", "person", {}, 96, (0, 0, 0), (1, 1, 1), threshold=0.5)
        self.device = torch.device("cpu")
        self.peaks, self.sides_px = peaks, sides_px or (8.0, 12.0, 8.0, 12.0)
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n, _, h, w = crops.shape
        self.shapes.append((n, h, w))
        centres = torch.full((n, h // 8, w // 8), -9.0)
        for x, y, score in self.peaks:
            centres[:, y, x] = torch.logit(torch.tensor(score))
        distances = torch.tensor(self.sides_px).view(1, 4, 1, 1).repeat(n, 1, h // 8, w // 8)
        for x, y, _ in self.peaks:
            # Each cell around means the same box, seen from its own middle.
            for dx, dy in itertools.product((-1, 0, 1), repeat=2):
                if 0 <= x + dx < w // 8 and 0 <= y + dy < h // 8:
                    sides = self.sides_px + 8 * np.array([dx, dy, -dx, -dy])
                    distances[:, :, y + dy, x + dx] = torch.tensor(sides, dtype=torch.float32)
        return centres, distances


def detector(finder: Any, **changes: Any) -> PersonDetector:
    return PersonDetector(finder, **changes)


def wide(index: int = 0) -> Frame:
    """A 64x36 frame, of as many pixels as a square of 48: the detector sees it at 128x72, in 128x128."""
    return frame(index, size_hw=(36, 64))


def test_person_detector_answers_in_image_px() -> None:
    found = detector(FakeFinder([(5, 7, 0.9), (10, 7, 0.4), (13, 7, 0.2)]))([wide()])[0]
    # The second is faint.
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])
    # Cell (5, 7) is input px (43.5, 59.5), or image px (21.5, 15.5).
    assert np.allclose(found.boxes[0], [17.5, 9.5, 25.5, 21.5], atol=1e-4)
    assert np.allclose(found.boxes[1] - found.boxes[0], [20, 0, 20, 0], atol=1e-4)


def test_person_detector_threshold() -> None:
    peaks = [(5, 7, 0.9), (10, 7, 0.6), (13, 7, 0.4)]
    assert len(detector(FakeFinder(peaks), threshold=0.3)([wide()])[0]) == 3
    assert len(detector(FakeFinder(peaks), threshold=0.95)([wide()])[0]) == 2
    assert len(detector(FakeFinder(peaks[1:]), threshold=0.95)([wide()])[0]) == 1


def test_person_detector_keeps_boxes_on_the_image() -> None:
    # The first leaves the image at the left, the second lies in the black above it.
    found = detector(FakeFinder([(0, 7, 0.9), (8, 0, 0.8)], 30, 12, 8, 12))([wide()])[0]
    assert len(found) == 1
    assert found.boxes[0, 0] == -0.5
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_person_detector_suppresses_doubles() -> None:
    found = detector(FakeFinder([(5, 7, 0.8), (7, 7, 0.9)], 50, 30, 50, 30))([wide()])[0]
    assert found.scores.tolist() == pytest.approx([0.9])


def test_person_detector_batches_by_size_and_keeps_the_order() -> None:
    finder = FakeFinder([(5, 7, 0.9)])
    frames = [wide(0), frame(1, size_hw=(64, 64)), wide(2)]
    found = detector(finder)(frames)
    assert sorted(finder.shapes) == [(1, 128, 128), (2, 128, 128)]
    assert np.array_equal(found[0].boxes, found[2].boxes)
    assert not np.array_equal(found[0].boxes, found[1].boxes)
    assert detector(finder)([]) == []


def test_whole_frame() -> None:
    found = WholeFrame()([frame(), frame(size_hw=(10, 20))])
    assert [d.boxes.tolist() for d in found] == [[[-0.5, -0.5, 63.5, 47.5]], [[-0.5, -0.5, 19.5, 9.5]]]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def boxes_of(given: GivenBoxes, index: int = 0, name: str = "") -> list[list[float]]:
    found: list[list[float]] = given([frame(index, name)])[0].boxes.tolist()
    return found


def test_csv_by_frame(tmp_path: Path) -> None:
    given = read_boxes(write(tmp_path / "b.csv", "frame,x1,y1,x2,y2\n3,1,2,30,40\n3,5,6,7,8\n5,0,0,1.5,2\n"))
    assert boxes_of(given, 3) == [[1, 2, 30, 40], [5, 6, 7, 8]]
    assert boxes_of(given, 5) == [[0, 0, 1.5, 2]]
    assert boxes_of(given, 4) == []
    assert given([frame(3)])[0].scores.tolist() == [1, 1]
    assert not given.proposes


def test_csv_by_name_with_scores_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeffname,score,x2,y2,x1,y1,colour\nsub/ä b.jpg,0.25,30,40,1,2,red\n"
    given = read_boxes(write(tmp_path / "b.CSV", text))
    assert boxes_of(given, 0, "sub/ä b.jpg") == [[1, 2, 30, 40]]
    assert boxes_of(given, 0, "other.jpg") == []
    assert given([frame(0, "sub/ä b.jpg")])[0].scores.tolist() == [0.25]


HEAD = "frame,time_s,person,score,x1,y1,x2,y2,nose_x,nose_y,nose_score\n"


def test_our_own_csv_of_a_video(tmp_path: Path) -> None:
    rows = "0,0.0,1,0.9,1,2,30,40,5,6,0.5\n1,0.04,,,,,,,,,\n2,0.08,1,0.8,2,3,31,41,5,6,0.5\n"
    given = read_boxes(write(tmp_path / "out.csv", HEAD + rows))
    assert boxes_of(given, 0) == [[1, 2, 30, 40]]
    assert boxes_of(given, 1) == []
    assert boxes_of(given, 2) == [[2, 3, 31, 41]]


def test_our_own_csv_of_images(tmp_path: Path) -> None:
    rows = "0,0.0,a.png,,0.9,1,2,30,40,5,6,0.5\n1,0.0,b.png,,,,,,,,,\n"
    given = read_boxes(write(tmp_path / "out.csv", HEAD.replace("time_s,", "time_s,name,") + rows))
    assert boxes_of(given, 7, "a.png") == [[1, 2, 30, 40]]
    assert boxes_of(given, 0, "b.png") == []


def coco(**changes: Any) -> str:
    annotation = {"id": 9, "image_id": 4, "category_id": 1, "bbox": [1, 2, 29, 38]}
    return json.dumps({"images": [{"id": 4, "file_name": "a b.png"}], "annotations": [annotation | changes]})


def test_coco_json(tmp_path: Path) -> None:
    given = read_boxes(write(tmp_path / "b.json", coco(score=0.5)))
    assert boxes_of(given, 0, "a b.png") == [[1, 2, 30, 40]]
    assert given([frame(0, "a b.png")])[0].scores.tolist() == [0.5]


def test_a_list_of_coco_detections(tmp_path: Path) -> None:
    detection = {"bbox": [1, 2, 29, 38], "score": 0.5}
    of = [
        {"image_id": 3, "category_id": 1},
        {"image_id": "a/b.png"},
        {"image_id": 3, "category_id": 18},
    ]
    given = read_boxes(write(tmp_path / "b.json", json.dumps([detection | other for other in of])))
    assert boxes_of(given, 3) == boxes_of(given, 0, "a/b.png") == [[1, 2, 30, 40]]
    assert given([frame(3)])[0].scores.tolist() == [0.5]


def test_blanks_after_commas(tmp_path: Path) -> None:
    given = read_boxes(write(tmp_path / "b.csv", "frame , x1 , y1 , x2 , y2\n3 , 1, 2, 30, 40\n"))
    assert boxes_of(given, 3) == [[1, 2, 30, 40]]


def test_of_several_categories_people_count(tmp_path: Path) -> None:
    document = json.loads(coco())
    document["annotations"].append(document["annotations"][0] | {"category_id": 3, "bbox": [5, 5, 9, 9]})
    document["categories"] = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    assert len(boxes_of(read_boxes(write(tmp_path / "b.json", json.dumps(document))), 0, "a b.png")) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.csv", "", "needs the columns"),
        ("b.csv", "frame,x1,y1,x2\n", "needs the columns"),
        ("b.csv", "x1,y1,x2,y2\n1,2,3,4\n", "frame or name"),
        ("b.csv", "frame,x1,y1,x2,y2\n", "no boxes of people in it"),
        ("b.csv", "frame,x1,y1,x2,y2\n0,,,,\n", "no boxes of people in it"),
        ("b.csv", "frame,x1,y1,x2,y2\n0,1,2,3,4\n1,5,6,5,8\n", "line 3: not a box"),
        ("b.csv", "frame,x1,y1,x2,y2\n0,nan,2,3,4\n", "line 2: not a box"),
        ("b.csv", "frame,x1,y1,x2,y2\n0,1e30,1,5e30,5\n", "line 2: not a box"),
        ("b.csv", "frame,x1,y1,x2,y2\n0,-1e9,1,5,5\n", "line 2: not a box"),
        ("b.csv", "frame,x1,y1,x2,y2,score\n0,1,2,3,4,1e39\n", "line 2: not a box"),
        ("b.csv", "frame,x1,y1,x2,y2,score\n0,1,2,3,4,nan\n", "line 2: not a box"),
        ("b.csv", "frame,x1,y1,x2,y2\n0,1,2,three,4\n", "three"),
        ("b.csv", "frame,x1,y1,x2,y2\nfirst,1,2,3,4\n", "first"),
        ("b.csv", "frame,x1,y1,x2,y2\n0\n", "cannot be read as CSV"),
        ("b.csv", "frame,x1,y1,x2,y2\n0,1,2\n", "cannot be read as CSV"),
        ("b.csv", "name,x1,y1,x2,y2\n,1,2,3,4\n", "cannot be read as CSV"),
        ("b.json", "", "cannot be read as COCO JSON"),
        ("b.json", "[]", "no boxes of people in it"),
        ("b.json", "[3]", "cannot be read as COCO JSON"),
        ("b.json", '[{"bbox": [1, 2, 3, 4]}]', "image_id"),
        ("b.json", '[{"image_id": [7], "bbox": [1, 2, 3, 4]}]', r"detection 0 is of \[7\], no image"),
        ("b.json", '[{"image_id": 7, "bbox": [1, 2, 0, 4]}]', "detection 0: not a box"),
        ("b.json", "[" * 100_000, "cannot be read as COCO JSON"),
        ("b.json", '{"images": [], "annotations": [null]}', "cannot be read as COCO JSON"),
        ("b.json", '{"images": []}', "annotations"),
        ("b.json", coco(image_id=5), "5"),
        ("b.json", coco(bbox=[1, 2, 3]), "cannot be read as COCO JSON"),
        ("b.json", coco(bbox=None), "cannot be read as COCO JSON"),
        ("b.json", coco(bbox=["1", "two", "3", "4"]), "two"),
        ("b.json", coco(bbox=[1, 2, 0, 4]), "annotation 9: not a box"),
        ("b.json", coco(bbox=[1e30, 1, 5e30, 5]), "annotation 9: not a box"),
        ("b.json", coco(iscrowd=1), "no boxes of people in it"),
    ],
)
def test_bad_files_of_boxes(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(InputError, match=message) as raised:
        read_boxes(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["gone.csv", "gone.json"])
def test_missing_file_of_boxes(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: no such file"):
        read_boxes(tmp_path / name)


@pytest.mark.parametrize("name", ["b.csv", "b.json"])
def test_bytes_instead_of_boxes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"cannot be read as"):
        read_boxes(path)


def test_given_boxes_of_the_other_kind_of_source_are_an_error() -> None:
    one = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32))
    picture = np.zeros((2, 2, 3), np.uint8)
    for detector, name in ((GivenBoxes({2: one}, {}), "a"), (GivenBoxes({}, {"a": one}), "")):
        with pytest.raises(InputError, match="by number"):
            detector([Frame(picture, 0, 0.0, name)])


def test_given_boxes_are_detections() -> None:
    one = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32))
    given = GivenBoxes({2: one}, {"a": one})
    assert [len(d) for d in given([frame(2), frame(3), frame(2, "b"), frame(9, "a")])] == [1, 0, 0, 1]
