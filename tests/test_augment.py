"""Random crops carry joints with their pixels; random looks keep size and type."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgpose.geometry import CropTransform
from hgpose.train.augment import Augmentation, random_crop, random_fill, random_look

BOX = np.array([60, 40, 180, 260])
JOINTS = np.array([[80, 60], [160, 60], [120, 110], [90, 160], [150, 170], [85, 240], [170, 235]], float)


@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]))
def test_joints_move_with_their_pixels(seed: int, mirror: float, any_rotation: float) -> None:
    """A dot drawn at each joint is found where the joint now is."""
    rng = np.random.default_rng(seed)
    aug = Augmentation(mirror=mirror, any_rotation=any_rotation)
    transform = random_crop(CropTransform.from_box(BOX, 128, 1.2), JOINTS, aug, rng)
    assert transform.mirror == bool(mirror)
    ys, xs = np.mgrid[:300, :240]
    for joint, there in zip(JOINTS, transform.to_crop(JOINTS), strict=True):
        if (there < 12).any() or (there > 115).any():
            continue
        dot = 255 * np.exp(-((xs - joint[0]) ** 2 + (ys - joint[1]) ** 2) / (2 * 3.0**2))
        crop = transform.warp(np.repeat(dot.round().astype(np.uint8)[..., None], 3, axis=2))
        peak = np.unravel_index(int(crop[..., 0].argmax()), crop.shape[:2])
        scale = 128 / transform.width_px
        # The dot's flat top spans about an image pixel.
        assert np.abs(np.array(peak)[::-1] - there).max() <= 1 + scale


@given(st.integers(0, 2**31))
def test_crop_of_a_part_shows_a_joint(seed: int) -> None:
    aug = Augmentation(part=1, shift=0, scale=0)
    transform = random_crop(CropTransform.from_box(BOX, 128, 1.2), JOINTS, aug, np.random.default_rng(seed))
    inside = ((transform.to_crop(JOINTS) > 0) & (transform.to_crop(JOINTS) < 127)).all(1)
    # Turned, a tight crop can lose its corners.
    assert inside.sum() >= 1


def test_parts_let_joints_leave_the_crop() -> None:
    rng, left = np.random.default_rng(0), 0
    for _ in range(50):
        transform = random_crop(CropTransform.from_box(BOX, 128, 1.2), JOINTS, Augmentation(part=1), rng)
        there = transform.to_crop(JOINTS)
        left += bool(((there < 0) | (there > 127)).any())
    assert left > 10


def test_some_are_upside_down_and_both_sides_come() -> None:
    rng = np.random.default_rng(0)
    base = CropTransform.from_box(BOX, 128, 1.2)
    crops = [random_crop(base, JOINTS, Augmentation(), rng) for _ in range(300)]
    assert any(abs(c.rotation_deg) > 120 for c in crops)
    assert 100 < sum(c.mirror for c in crops) < 200
    sizes = [c.width_px for c in crops]
    assert max(sizes) > 1.3 * base.width_px and min(sizes) < base.width_px / 1.3


def test_the_seed_decides() -> None:
    base = CropTransform.from_box(BOX, 128, 1.2)
    first, again, other = (
        random_crop(base, JOINTS, Augmentation(), np.random.default_rng(s)) for s in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("labelled", [0, 1, 5])
def test_few_joints(labelled: int) -> None:
    base = CropTransform.from_box(BOX, 128, 1.2)
    random_crop(base, JOINTS[:labelled], Augmentation(part=1), np.random.default_rng(0))


@given(st.integers(0, 2**31), st.sampled_from([64, 256]))
def test_looks_keep_shape_and_type(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    aug = Augmentation(color=1, gray=0.5, blur=1, cut_out=1)
    crop = rng.integers(0, 256, (size, size, 3), np.uint8)
    kept = crop.copy()
    seen = random_look(crop, aug, rng)
    assert seen.shape == crop.shape and seen.dtype == np.uint8
    # The crop may lie in a read-only file.
    assert np.array_equal(crop, kept)


def test_no_look_changes_nothing() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    still = Augmentation(color=0, gray=0, blur=0, cut_out=0)
    assert np.array_equal(random_look(crop, still, np.random.default_rng(0)), crop)


def test_fill_is_one_colour() -> None:
    rng = np.random.default_rng(0)
    fills = [random_fill(64, rng) for _ in range(20)]
    assert all((fill == fill[0, 0]).all() for fill in fills)
    assert any((fill == 0).all() for fill in fills) and any((fill > 0).any() for fill in fills)
