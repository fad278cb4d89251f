"""A wrong shape or type does not travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hgpose.geometry import CropTransform
from hgpose.keypoints import COCO17
from hgpose.types import Detections, Frame, Heatmaps, Poses


def poses(n: int = 3, **changes: Any) -> Poses:
    rng = np.random.default_rng(0)
    crops = tuple(CropTransform((float(i), 0.0), 10.0, (64, 64)) for i in range(n))
    values: dict[str, Any] = {
        "keypoints": rng.random((n, 17, 2), np.float32),
        "scores": rng.random((n, 17), np.float32),
        "boxes": rng.random((n, 4), np.float32),
        "box_scores": rng.random(n, np.float32),
        "ids": np.arange(n),
        "keypoint_set": COCO17,
        "heatmaps": Heatmaps(rng.random((n, 17, 4, 4), np.float32), crops),
    }
    return Poses(**values | changes)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Frame(np.zeros((4, 5), np.uint8), 0, 0.0), "Frame.image"),
        (lambda: Frame(np.zeros((4, 5, 4), np.uint8), 0, 0.0), "Frame.image"),
        (lambda: Frame(np.zeros((4, 5, 3), np.float32), 0, 0.0), "Frame.image"),
        (lambda: Frame(np.zeros((4, 0, 3), np.uint8), 0, 0.0), "Frame.image"),
        (lambda: Detections(np.zeros((2, 5), np.float32), np.zeros(2, np.float32)), "Detections.boxes"),
        (lambda: Detections(np.zeros((2, 4), np.float32), np.zeros(3, np.float32)), "Detections.scores"),
        (lambda: Heatmaps(np.zeros((1, 17, 4, 4), np.float32), ()), "Heatmaps.maps"),
        (lambda: poses(keypoints=np.zeros((3, 16, 2), np.float32)), "Poses.keypoints"),
        (lambda: poses(keypoints=np.zeros((3, 17, 2))), "Poses.keypoints"),
        (lambda: poses(scores=np.zeros((2, 17), np.float32)), "Poses.scores"),
        (lambda: poses(boxes=np.zeros((3, 2), np.float32)), "Poses.boxes"),
        (lambda: poses(box_scores=np.zeros((3, 1), np.float32)), "Poses.box_scores"),
        (lambda: poses(ids=np.zeros(3, np.int32)), "Poses.ids"),
    ],
)
def test_wrong_shapes_and_types_are_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}: wanted .*, got "):
        make()


def test_choosing_people_keeps_all_their_parts_together() -> None:
    three = poses()
    two = three[[2, 0]]
    assert len(two) == 2
    assert two.ids.tolist() == [2, 0]
    for name in ("keypoints", "scores", "boxes", "box_scores"):
        assert np.array_equal(getattr(two, name), getattr(three, name)[[2, 0]])
    assert two.heatmaps is not None and three.heatmaps is not None
    assert np.array_equal(two.heatmaps.maps, three.heatmaps.maps[[2, 0]])
    assert [t.center_xy[0] for t in two.heatmaps.transforms] == [2, 0]


def test_nobody() -> None:
    nobody = Poses.empty(COCO17)
    assert len(nobody) == 0 and nobody.person_scores.shape == (0,)
    assert len(poses()[[]]) == 0


def test_person_scores_are_means() -> None:
    assert np.allclose(poses().person_scores, poses().scores.mean(1))


def test_choosing_detections() -> None:
    found = Detections(np.arange(8, dtype=np.float32).reshape(2, 4), np.array([0.9, 0.5], np.float32))
    assert len(found[found.scores > 0.6]) == 1
    assert found[[1]].boxes.tolist() == [[4, 5, 6, 7]]
