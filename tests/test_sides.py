"""Exchanged sides are told from a person who turns and from legs that cross."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from walkers import body

from hgpose.keypoints import BODY19
from hgpose.sides import swapped_sides

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
