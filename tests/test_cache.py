"""Decoded windows: the right pixels, the right coordinates, no wrong file left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_png
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.train import cache
from hgpose.train.cache import Window, build_cache


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


@pytest.fixture
def file(image: NDArray[np.uint8], tmp_path: Path) -> Path:
    return write_png(tmp_path / "images" / "a b.png", image)


def test_whole_image(file: Path, image: NDArray[np.uint8], tmp_path: Path) -> None:
    held = build_cache([Window(file, None, 1000)], tmp_path / "cache")
    assert len(held) == 1
    assert np.array_equal(held.image(0), image)
    assert np.allclose(held.to_window(0, np.array([[3.0, 4.0]])), [[3, 4]])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 20, 50, 60), (10, 20, 50, 60)),
        ((10.7, 20.2, 49.1, 59.9), (10, 20, 50, 60)),
        ((-30, -40, 50, 60), (0, 0, 50, 60)),
        ((100, 70, 500, 400), (100, 70, 120, 90)),
        ((500, 500, 600, 600), (119, 89, 120, 90)),
    ],
)
def test_window_is_cut_at_the_image(
    file: Path,
    image: NDArray[np.uint8],
    tmp_path: Path,
    box: tuple[float, float, float, float],
    expected: tuple[int, int, int, int],
) -> None:
    held = build_cache([Window(file, box, 1000)], tmp_path / "cache")
    x1, y1, x2, y2 = expected
    assert np.array_equal(held.image(0), image[y1:y2, x1:x2])
    assert np.allclose(held.to_window(0, np.array([x1 + 5.0, y1 + 2.0])), [5, 2])


def test_shrunk_window_keeps_points_on_their_pixels(tmp_path: Path) -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    # A block of 20x20 px whose middle lies at (209.5, 119.5).
    image[110:130, 200:220] = 255
    file = write_png(tmp_path / "block.png", image)
    held = build_cache([Window(file, (100, 50, 371, 280), 90)], tmp_path / "cache")
    small = held.image(0)
    assert max(small.shape[:2]) == 90
    weight = small[..., 0].astype(float)
    ys, xs = np.mgrid[: small.shape[0], : small.shape[1]]
    found = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
    assert np.allclose(found, held.to_window(0, np.array([209.5, 119.5])), atol=0.05)


def test_several_windows_do_not_mix(file: Path, image: NDArray[np.uint8], tmp_path: Path) -> None:
    other = write_png(tmp_path / "other.png", 255 - image)
    windows = [Window(file, (0, 0, 7, 9), 99), Window(other, None, 999), Window(file, (3, 3, 5, 5), 99)]
    held = build_cache(windows, tmp_path / "cache")
    assert np.array_equal(held.image(2), image[3:5, 3:5])
    assert np.array_equal(held.image(1), 255 - image)
    assert np.array_equal(held.image(0), image[:9, :7])


def test_images_are_decoded_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [Window(file, None, 50)]
    first = build_cache(windows, tmp_path / "cache").image(0)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_image", lambda path: pytest.fail("decoded again"))
        assert np.array_equal(build_cache(windows, tmp_path / "cache").image(0), first)


def test_changed_image_or_window_is_decoded_again(
    file: Path, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    build_cache([Window(file, None, 1000)], tmp_path / "cache")
    assert build_cache([Window(file, None, 60)], tmp_path / "cache").image(0).shape == (45, 60, 3)
    write_png(file, np.zeros((30, 40, 3), np.uint8))
    assert build_cache([Window(file, None, 1000)], tmp_path / "cache").image(0).shape == (30, 40, 3)


def test_lost_pixels_are_decoded_again(file: Path, image: NDArray[np.uint8], tmp_path: Path) -> None:
    windows = [Window(file, None, 1000)]
    build_cache(windows, tmp_path / "cache")
    next((tmp_path / "cache").glob("*.bin")).unlink()
    assert np.array_equal(build_cache(windows, tmp_path / "cache").image(0), image)


def test_nothing_to_hold(tmp_path: Path) -> None:
    assert len(build_cache([], tmp_path / "cache")) == 0


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        build_cache([Window(tmp_path / "gone.png", None, 50)], tmp_path / "cache")


def test_corrupt_image_leaves_nothing_behind(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match=r"broken\.png"):
        build_cache([Window(file, None, 50), Window(broken, None, 50)], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("kind", ["bin", "npy"])
@pytest.mark.parametrize("content", [b"", b"short", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'"])
def test_damaged_cache_is_made_anew(
    file: Path, image: NDArray[np.uint8], tmp_path: Path, kind: str, content: bytes
) -> None:
    windows = [Window(file, None, 1000)]
    build_cache(windows, tmp_path / "cache")
    (damaged,) = (tmp_path / "cache").glob(f"*.{kind}")
    damaged.write_bytes(content)
    assert np.array_equal(build_cache(windows, tmp_path / "cache").image(0), image)
    # And whole from then on.
    assert np.array_equal(build_cache(windows, tmp_path / "cache").image(0), image)
