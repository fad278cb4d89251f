"""Exchanged sides are told from a person who turns and from legs that cross."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from walkers import body

from hgpose.keypoints import BODY19
from hgpose.sides import SideVotes, swapped_sides

PAIRS = np.array([(i, j) for i, j in enumerate(BODY19.flip_order) if i < j])


def walk(count: int) -> NDArray[np.float64]:
    return np.array([body(100 + 3 * t, 320, 200, t / 30 + 0.2) for t in range(count)], np.float64)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("part", ["ankle", "wrist", "all"])
def test_an_exchange_that_goes_back_is_seen(length: int, part: str) -> None:
    points = walk(8)
    told_apart = np.linalg.norm(points[0][PAIRS[:, 0]] - points[0][PAIRS[:, 1]], axis=-1) > 0.06 * 200
    chosen = told_apart & np.array([part in {"all", BODY19.names[i].split("_")[1]} for i, _ in PAIRS])
    assert chosen.any()
    here, there = PAIRS[chosen].ravel(), PAIRS[chosen][:, ::-1].ravel()
    wrong = points.copy()
    wrong[2 : 2 + length, here] = points[2 : 2 + length, there]
    np.testing.assert_array_equal(swapped_sides(wrong[1], wrong[2], wrong[3:6], PAIRS, 200), chosen)


def test_an_exchange_that_stays_is_a_person_who_turned() -> None:
    points = walk(8)
    points[2:] = points[2:, BODY19.flip_order]
    assert not swapped_sides(points[1], points[2], points[3:6], PAIRS, 200).any()


@given(phase=st.floats(0, 1), speed=st.floats(-8, 8))
def test_legs_that_cross_in_walking_are_left_alone(phase: float, speed: float) -> None:
    points = np.array([body(300 + speed * t, 320, 200, phase + t / 30) for t in range(6)])
    assert not swapped_sides(points[1], points[2], points[3:6], PAIRS, 200).any()


def outvoted(across_px: NDArray[np.float64], fps: float, told: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """On which frames the sides of a person of 100 px are wrong, if a second ahead is known, as in files."""
    votes, result, noted = SideVotes(), [], 0
    for i in range(len(across_px)):
        while noted < min(len(across_px), i + fps + 1):
            if told[noted]:
                votes.note(noted, noted / fps, np.array([across_px[noted], 0]), 100)
            noted += 1
        result.append(votes.outvoted(i, i / fps))
    return np.array(result)


@pytest.mark.parametrize("length", [1, 3, 5])
@pytest.mark.parametrize("before", [10, 60])
@pytest.mark.parametrize("after", [10, 60])
@pytest.mark.parametrize("narrow", ["before", "after"])
def test_an_exchange_beside_narrow_frames_is_one_all_the_same(
    length: int, before: int, after: int, narrow: str
) -> None:
    parts = [[25.0] * before, [-25.0] * length, [25.0] * after]
    parts.insert(1 if narrow == "before" else 2, [5.0, 5.0])
    across = np.concatenate(parts)
    wrong = outvoted(across, 30, np.ones(len(across), np.bool_))
    wide = np.abs(across) > 5
    np.testing.assert_array_equal(wrong[wide], across[wide] < 0)


@pytest.mark.parametrize("fps", [10, 15, 30])
@pytest.mark.parametrize("turn_s", [0.4, 0.5, 0.8])
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("phase", [0, 0.25, 0.5, 0.75])
def test_who_turns_fast_and_is_unsure_when_narrow_is_believed(
    fps: int, turn_s: float, back: bool, phase: float
) -> None:
    time = (np.arange(4 * fps) + phase) / fps
    turn = np.clip((time - 1.5) / turn_s, 0, 1)
    if back:
        turn -= np.clip((time - 1.7 - turn_s) / turn_s, 0, 1)
    across = 25 * np.cos(np.pi * turn)
    told = np.abs(across) > 0.5 * 25
    assert not outvoted(across, fps, told)[told].any()
