from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hgpose.smooth import GAP_S, SURE, OneEuroFilter, smooth_at

Points = NDArray[np.float64]
SIZE_PX = 300.0
HALF = 6


def full(points: Points, scores: Points | None = None, fps: float = 30.0) -> Points:
    """``(T, K, 2)`` smoothed frame by frame over a window of 6 frames to either side."""
    count = len(points)
    scores = np.full(points.shape[:2], 0.8) if scores is None else scores
    times = np.arange(count) / fps
    found = []
    for t in range(count):
        low, high = max(t - HALF, 0), min(t + HALF + 1, count)
        window = slice(low, high)
        found.append(smooth_at(t - low, times[window], points[window], scores[window], SIZE_PX)[0])
    return np.array(found, np.float64)


def live(points: Points, scores: Points | None = None, fps: float = 30.0) -> Points:
    scores = np.full(points.shape[:2], 0.8) if scores is None else scores
    one_euro = OneEuroFilter()
    return np.array(
        [one_euro(p, s, t / fps, SIZE_PX) for t, (p, s) in enumerate(zip(points, scores, strict=True))],
        np.float64,
    )


Smoother = Callable[..., Points]
both = pytest.mark.parametrize("smooth", [full, live])
series = st.integers(1, 15).flatmap(
    lambda count: st.tuples(
        arrays(np.float64, (count, 3, 2), elements=st.floats(-1e5, 1e5)),
        arrays(np.float64, (count, 3), elements=st.floats(0, 1)),
    )
)


@both
@given(
    point=arrays(np.float64, (3, 2), elements=st.floats(-1e4, 1e4)),
    scores=arrays(np.float64, (14, 3), elements=st.floats(0, 1)),
)
def test_what_does_not_move_stays(smooth: Smoother, point: Points, scores: Points) -> None:
    points = np.repeat(point[None], 14, axis=0)
    # float32 results: seven digits.
    np.testing.assert_allclose(smooth(points, scores), points, rtol=1e-5, atol=1e-4)


@both
@given(case=series)
def test_always_finite_and_as_many_frames(smooth: Smoother, case: tuple[Points, Points]) -> None:
    points, scores = case
    found = smooth(points, scores)
    assert found.shape == points.shape
    assert np.isfinite(found).all()


def acceleration(points: Points) -> float:
    return float(np.linalg.norm(np.diff(points, 2, axis=0), axis=-1).mean())


@both
@pytest.mark.parametrize("fps", [10, 25, 30, 60])
@pytest.mark.parametrize("noise", [0.003, 0.008])
def test_a_still_person_trembles_less(smooth: Smoother, fps: float, noise: float) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 300, (1, 19, 2)) + rng.normal(0, noise * SIZE_PX, (200, 19, 2))
    left = acceleration(smooth(points, fps=fps)[10:]) / acceleration(points[10:])
    assert left < (0.4 if smooth is full else 0.6)


def lag(moved: Points, found: Points) -> float:
    """Frames by which ``found`` ``(T,)`` is best shifted back onto ``moved``."""
    at = np.arange(len(moved), dtype=np.float64)
    shifts = np.arange(-2, 4, 0.05)
    inner = slice(5, -5)
    error = [np.square(np.interp(at + s, at, found) - moved)[inner].sum() for s in shifts]
    return float(shifts[int(np.argmin(error))])


def punch(fps: float = 30.0) -> Points:
    """``(T, 1, 2)`` a wrist that shoots out by a third of the person's height and back within 0.4 s."""
    t = np.arange(60) / fps - 0.9
    reach = np.where(np.abs(t) < 0.2, (1 + np.cos(np.pi * t / 0.2)) / 2, 0)
    return np.stack([100 * reach, 20 * reach], -1)[:, None]


def jump(fps: float = 30.0) -> Points:
    """``(T, 1, 2)`` a person who leaves the ground for 0.5 s: 0.31 m high, 300 px being 1.75 m."""
    t = np.arange(60) / fps
    in_air = (t - 0.7).clip(0, 0.5)
    height_m = 9.81 / 2 * in_air * (0.5 - in_air)
    return np.stack([np.zeros_like(t), -height_m * 300 / 1.75], -1)[:, None]


@pytest.mark.parametrize("motion", [punch, jump])
def test_fast_motion_does_not_lag(motion: Callable[[], Points]) -> None:
    moved = motion() + np.random.default_rng(0).normal(0, 1, (60, 1, 2))
    axis = int(np.ptp(motion()[:, 0], axis=0).argmax())
    truth = motion()[:, 0, axis]
    # A twentieth of a frame: the step of the search.
    assert abs(lag(truth, full(moved)[:, 0, axis])) <= 0.05 + 1e-9
    assert lag(truth, live(moved)[:, 0, axis]) <= 1
    # 0.2 of a torso of 80 px, as PCK counts.
    assert np.abs(full(moved) - motion()).max() < 16


def test_a_lone_outlier_is_left_out() -> None:
    points = np.full((13, 1, 2), [50.0, 60.0])
    points[6] = 150, 10
    np.testing.assert_allclose(full(points)[6, 0], [50, 60], atol=0.5)


def test_between_few_frames_a_hand_may_go_and_come_back() -> None:
    points = np.full((13, 1, 2), [50.0, 60.0])
    points[6] = 150, 10
    np.testing.assert_allclose(full(points, fps=5), points, atol=0.5)


def test_the_live_filter_does_not_reach_across_a_gap() -> None:
    scores = np.full(1, 0.8)
    one_euro = OneEuroFilter()
    for t in range(10):
        one_euro(np.array([[50.0, 60.0]]), scores, t / 30, SIZE_PX)
    back = np.array([[90.0, 60.0]])
    np.testing.assert_array_equal(one_euro(back, scores, 10 / 30 + GAP_S, SIZE_PX), back)


def test_steady_motion_is_kept_to_its_ends() -> None:
    points = np.stack([np.arange(20) * 4.0, np.arange(20) * -2.0], -1)[:, None]
    np.testing.assert_allclose(full(points), points, atol=1e-3)


def window(gap: int) -> tuple[Points, Points, Points]:
    """Times, points and scores of a keypoint that moves steadily and is lost for ``gap`` frames from 5 on."""
    count = 10 + gap
    points = np.stack([np.arange(count) * 2.0, np.full(count, 40.0)], -1)[:, None]
    scores = np.full((count, 1), 0.9)
    scores[5 : 5 + gap] = 0.02
    points[5 : 5 + gap] += 500
    return np.arange(count) / 30, points, scores


@pytest.mark.parametrize("gap", [1, 3, 6])
def test_short_gaps_are_bridged(gap: int) -> None:
    times, points, scores = window(gap)
    for i in range(5, 5 + gap):
        found, new_scores, bridged = smooth_at(i, times, points, scores, SIZE_PX)
        assert bridged.tolist() == [True]
        np.testing.assert_allclose(found[0], [2.0 * i, 40], atol=1)
        assert new_scores[0] == pytest.approx(0.9)
    _, _, bridged = smooth_at(4, times, points, scores, SIZE_PX)
    assert not bridged.any()


def test_long_gaps_and_ends_are_not() -> None:
    times, points, scores = window(9)
    assert times[14] - times[4] > GAP_S
    _, new_scores, bridged = smooth_at(9, times, points, scores, SIZE_PX)
    assert not bridged.any()
    assert new_scores[0] == pytest.approx(0.02)
    # Nothing sure after it.
    _, _, bridged = smooth_at(5, times[:8], points[:8], scores[:8], SIZE_PX)
    assert not bridged.any()


def test_sure_is_what_boxes_go_by() -> None:
    from hgpose import estimate

    assert estimate._SURE == SURE
