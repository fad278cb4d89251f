from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgpose.draw import draw_heatmaps, draw_poses
from hgpose.geometry import CropTransform, heatmap_to_crop
from hgpose.keypoints import BODY19, KEYPOINT_SETS, KeypointSet
from hgpose.options import Style
from hgpose.types import Poses

GREY = np.full((240, 320, 3), 128, np.uint8)


def poses(points: Any, scores: Any = 0.9, ids: Any = None, keypoint_set: KeypointSet = BODY19) -> Poses:
    points = np.asarray(points, np.float32).reshape(-1, len(keypoint_set), 2)
    n = len(points)
    with np.errstate(invalid="ignore"):
        boxes = np.concatenate([points.min(1), points.max(1)], axis=1)
    return Poses(
        points,
        np.broadcast_to(np.float32(scores), (n, len(keypoint_set))).copy(),
        boxes,
        np.ones(n, np.float32),
        np.arange(n, dtype=np.int64) if ids is None else np.asarray(ids, np.int64),
        keypoint_set,
    )


def spread() -> np.ndarray:
    return np.random.default_rng(0).uniform(60, 200, (1, 19, 2))


def changed(image: np.ndarray, base: np.ndarray = GREY) -> np.ndarray:
    return np.asarray((image != base).any(axis=2))


def test_draws_on_a_copy_and_near_the_person_only() -> None:
    before = GREY.copy()
    drawn = draw_poses(GREY, poses(spread()))
    assert (before == GREY).all()
    where = np.argwhere(changed(drawn))
    assert len(where) > 500
    assert where.min() > 50 and where.max() < 210


def test_nobody_is_the_picture_itself_or_black() -> None:
    assert (draw_poses(GREY, Poses.empty(BODY19)) == GREY).all()
    assert not draw_poses(GREY, Poses.empty(BODY19), Style(black=True)).any()


def test_a_limb_needs_both_ends_above_the_threshold() -> None:
    points = np.full((19, 2), np.nan, np.float32)
    points[BODY19.index("left_hip")] = 60, 100
    points[BODY19.index("left_knee")] = 200, 100
    scores = np.full(19, 0.9, np.float32)
    style = Style(boxes=False, threshold=0.5)
    assert changed(draw_poses(GREY, poses(points, scores), style))[100, 130]
    scores[BODY19.index("left_knee")] = 0.4
    lonely = changed(draw_poses(GREY, poses(points, scores), style))
    assert not lonely[100, 130] and not lonely[100, 200] and lonely[100, 60]


def test_left_is_warm_and_right_is_cool() -> None:
    points = np.full((19, 2), np.nan, np.float32)
    for side, y in (("left", 60), ("right", 160)):
        points[BODY19.index(f"{side}_elbow")] = 60, y
        points[BODY19.index(f"{side}_wrist")] = 200, y
    drawn = draw_poses(GREY, poses(points), Style(boxes=False, line_width=5)).astype(int)
    assert drawn[60, 130, 0] > drawn[60, 130, 2] + 100
    assert drawn[160, 130, 2] > drawn[160, 130, 0] + 100


def test_an_unsure_limb_is_fainter() -> None:
    points = np.full((19, 2), np.nan, np.float32)
    points[[BODY19.index("left_hip"), BODY19.index("left_knee")]] = (60, 100), (200, 100)
    sure, unsure = (
        np.abs(draw_poses(GREY, poses(points, s), Style(boxes=False)).astype(int) - 128)[100, 130].sum()
        for s in (0.9, 0.4)
    )
    assert 0 < unsure < sure * 0.8


def test_people_are_told_apart_by_box_and_label() -> None:
    first, second = (draw_poses(GREY, poses(spread(), ids=[i]), Style()) for i in (1, 2))
    assert changed(first, second).any()
    labelled = draw_poses(GREY, poses(spread(), ids=[1]), Style(labels=True))
    assert changed(labelled, first).sum() > 50
    bare = draw_poses(GREY, poses(spread(), ids=[1]), Style(boxes=False))
    assert changed(bare).sum() < changed(first).sum()


def test_lines_grow_with_the_person_or_are_as_told() -> None:
    def share(scale: float, **style: Any) -> int:
        size = np.zeros((int(240 * scale), int(320 * scale), 3), np.uint8)
        return int(draw_poses(size, poses(spread() * scale), Style(boxes=False, **style)).any(axis=2).sum())

    # Four times the size has up to sixteen times the area when width grows along (the thinnest outline
    # of 1 px grows less), four times when it is fixed.
    assert 7 < share(4) / share(1) < 20
    assert 2 < share(4, line_width=3) / share(1, line_width=3) < 6


@pytest.mark.parametrize("name", KEYPOINT_SETS)
def test_every_keypoint_set_can_be_drawn(name: str) -> None:
    keypoint_set = KEYPOINT_SETS[name]
    points = np.random.default_rng(0).uniform(20, 200, (1, len(keypoint_set), 2))
    assert changed(draw_poses(GREY, poses(points, keypoint_set=keypoint_set))).any()


def test_a_view_of_a_picture_can_be_drawn() -> None:
    turned = np.rot90(np.zeros((240, 200, 3), np.uint8))
    for black in (False, True):
        assert draw_poses(turned, poses(spread()), Style(black=black)).any()


@given(
    st.lists(st.floats(width=32), min_size=38, max_size=38),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.booleans(),
)
def test_any_numbers_and_any_size_can_be_drawn(
    numbers: list[float], size_hw: tuple[int, int], labels: bool
) -> None:
    image = np.zeros((*size_hw, 3), np.uint8)
    assert draw_poses(image, poses(numbers), Style(labels=labels)).shape == image.shape


def window(box: tuple[float, float, float, float], size_px: int) -> CropTransform:
    return CropTransform.from_box(np.array(box, np.float64), size_px)


@pytest.mark.parametrize(("box", "size_px"), [((95, 45, 245, 195), 256), ((-43, -43, 47, 47), 128)])
def test_a_heatmap_lies_where_its_joint_is(box: tuple[float, float, float, float], size_px: int) -> None:
    transform = window(box, size_px)
    cells = size_px // 4
    heatmaps = np.zeros((1, 19, cells, cells), np.float32)
    x, y = cells * 3 // 4, cells * 5 // 8
    heatmaps[0, 7, y, x] = 0.16
    drawn = draw_heatmaps(GREY, heatmaps, [transform]).astype(int)
    weight = np.abs(drawn - 128).sum(axis=2)
    assert weight.any()
    centre = (np.argwhere(weight)[:, ::-1] * weight[weight > 0][:, None]).sum(0) / weight.sum()
    expected = transform.to_image(heatmap_to_crop(np.array([x, y], np.float64)))
    # Half a pixel: where the tent around the cell is cut to whole pixels.
    np.testing.assert_allclose(centre, expected, atol=0.5)


def test_empty_or_far_heatmaps_leave_the_picture() -> None:
    far = window((9000, 9000, 9100, 9100), 256)
    sure = np.full((1, 19, 64, 64), 0.16, np.float32)
    assert (draw_heatmaps(GREY, sure, [far]) == GREY).all()
    assert (draw_heatmaps(GREY, sure * 0, [window((110, 70, 210, 170), 256)]) == GREY).all()
    assert (draw_heatmaps(GREY, sure[:0], []) == GREY).all()
