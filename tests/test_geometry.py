"""One transform for pixels and points: both must agree, both ways."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.geometry import CropTransform, crop_to_heatmap, heatmap_to_crop


def span(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


transforms = st.builds(
    CropTransform,
    center_xy=st.tuples(span(-500, 5000), span(-500, 5000)),
    width_px=span(2, 5000),
    size_wh=st.tuples(st.integers(1, 6).map(lambda n: 64 * n), st.integers(1, 6).map(lambda n: 64 * n)),
    rotation_deg=span(-180, 180),
    mirror=st.booleans(),
    stretch=span(0.5, 2),
)


@given(transforms, st.lists(st.tuples(span(-5000, 5000), span(-5000, 5000)), min_size=1, max_size=5))
def test_there_and_back(transform: CropTransform, points: list[tuple[float, float]]) -> None:
    image_px = np.array(points)
    # Float64 with numbers up to some 1e5: nine digits are left for certain.
    assert np.allclose(transform.to_image(transform.to_crop(image_px)), image_px, rtol=0, atol=1e-6)


@given(transforms)
def test_middle_goes_to_middle(transform: CropTransform) -> None:
    width, height = transform.size_wh
    middle = transform.to_crop(np.array(transform.center_xy))
    assert np.allclose(middle, [(width - 1) / 2, (height - 1) / 2], rtol=0, atol=1e-6)


def test_heatmap_cell_is_the_middle_of_its_block() -> None:
    assert heatmap_to_crop(np.array([0.0, 3.0])).tolist() == [1.5, 13.5]
    assert crop_to_heatmap(np.array([1.5, 13.5])).tolist() == [0, 3]


#: Where the point 10 px to the right of the window's middle goes, relative to the crop's middle.
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (20, 0)),
        ({"rotation_deg": 90.0}, (0, -20)),
        ({"mirror": True}, (-20, 0)),
        ({"rotation_deg": 90.0, "mirror": True}, (0, -20)),
        ({"rotation_deg": 45.0, "mirror": True}, (-20 * math.sqrt(0.5), -20 * math.sqrt(0.5))),
        ({"stretch": 3.0}, (20, 0)),
    ],
)
def test_turns_counter_clockwise_then_mirrors(change: dict[str, Any], expected: tuple[float, float]) -> None:
    transform = CropTransform((50.0, 40.0), 64.0, (128, 128), **change)
    assert np.allclose(transform.to_crop(np.array([60.0, 40.0])) - 63.5, expected)


def test_stretch_is_vertical_before_turning() -> None:
    upright = CropTransform((50.0, 40.0), 64.0, (128, 128), stretch=3.0)
    assert np.allclose(upright.to_crop(np.array([50.0, 50.0])) - 63.5, [0, 60])
    turned = CropTransform((50.0, 40.0), 64.0, (128, 128), rotation_deg=90.0, stretch=3.0)
    assert np.allclose(turned.to_crop(np.array([50.0, 50.0])) - 63.5, [60, 0])


def test_box_becomes_a_padded_square() -> None:
    transform = CropTransform.from_box(np.array([10, 20, 50, 100]), 64, padding=1.25)
    assert transform.center_xy == (30, 60) and transform.width_px == 100
    # The crop's outer edge lies half a pixel beyond the centres of its outer pixels.
    corners = transform.to_image(np.array([[-0.5, -0.5], [63.5, 63.5]]))
    assert np.allclose(corners, [[-20, 10], [80, 110]])


def test_box_without_size_still_has_a_window() -> None:
    assert CropTransform.from_box(np.array([5, 5, 5, 5]), 64).width_px == 1


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 128, 320]))
def test_letterbox_shows_the_whole_image(width: int, height: int, side: int) -> None:
    transform = CropTransform.letterbox((width, height), side, 64)
    assert all(side % 64 == 0 for side in transform.size_wh)
    corners = transform.to_crop(np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]]))
    assert (corners[0] >= -0.5 - 1e-6).all()
    assert (corners[1] <= np.array(transform.size_wh) - 0.5 + 1e-6).all()
    shown = corners[1] - corners[0]
    if max(width, height) <= 16 * min(width, height):
        assert np.isclose(shown.prod(), side**2)
    else:
        assert np.isclose(shown.max(), 4 * side)


@pytest.mark.parametrize(
    ("center", "width", "size"),
    [
        ((math.nan, 0.0), 1.0, (64, 64)),
        ((0.0, math.inf), 1.0, (64, 64)),
        ((0.0, 0.0), 0.0, (64, 64)),
        ((0.0, 0.0), math.inf, (64, 64)),
        ((0.0, 0.0), 1.0, (64, 0)),
    ],
)
def test_impossible_windows(center: tuple[float, float], width: float, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="finite centre and a positive size"):
        CropTransform(center, width, size)


def centroid(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    weight = image[..., 0].astype(np.float64)
    ys, xs = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(weight * xs).sum() / weight.sum(), (weight * ys).sum() / weight.sum()])


@given(
    width_px=span(30, 900),
    middle=st.tuples(span(250, 350), span(200, 300)),
    target=st.tuples(span(38, 90), span(30, 66)),
    rotation_deg=span(-180, 180),
    mirror=st.booleans(),
    stretch=span(0.6, 1.6),
)
def test_pixels_go_where_points_go(
    width_px: float,
    middle: tuple[float, float],
    target: tuple[float, float],
    rotation_deg: float,
    mirror: bool,
    stretch: float,
) -> None:
    """A soft blob, drawn on the image at any scale, is found where ``to_crop`` says."""
    transform = CropTransform(middle, width_px, (128, 96), rotation_deg, mirror, stretch)
    point = transform.to_image(np.array(target))
    # Wide enough not to fall between the samples, small enough to stay inside the crop.
    sigma = max(3 * width_px / 128, 1.5)
    size = np.array([600, 500])
    assume((point > 3 * sigma).all() and (point < size - 1 - 3 * sigma).all())
    ys, xs = np.mgrid[: size[1], : size[0]]
    blob = 255 * np.exp(-((xs - point[0]) ** 2 + (ys - point[1]) ** 2) / (2 * sigma**2))
    image = np.repeat(blob.round().astype(np.uint8)[..., None], 3, axis=2)
    # OpenCV samples at 32nds of a pixel, and a blob of few pixels is coarse itself.
    assert np.allclose(centroid(transform.warp(image)), target, rtol=0, atol=0.15)


@pytest.mark.parametrize("width_px", [64.0, 200.0, 1000.0])
def test_outside_the_image_stays_as_it_was(width_px: float) -> None:
    image = np.full((40, 40, 3), 255, np.uint8)
    canvas = np.full((64, 64, 3), 7, np.uint8)
    far = CropTransform((5000.0, -5000.0), width_px, (64, 64), 30.0).warp(image, onto=canvas)
    assert (far == 7).all()
    near = CropTransform((20.0, 20.0), width_px, (64, 64)).warp(image)
    assert (near[32, 32] == 255).all() and (near[0] == 0).all()


def test_shrinking_averages() -> None:
    """One-pixel stripes become even grey, not the stripes that sampling would pick."""
    image = np.zeros((640, 640, 3), np.uint8)
    image[:, ::2] = 255
    crop = CropTransform((319.5, 319.5), 640.0, (64, 64)).warp(image)[4:-4, 4:-4]
    assert abs(crop.astype(int) - 127).max() <= 2
