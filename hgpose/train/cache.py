"""Decoded training images in one memory-mapped file, so that no epoch decodes an image again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.atomic import atomic_path, output_errors
from hgpose.errors import InputError
from hgpose.sources.images import read_image


@dataclass(frozen=True)
class Window:
    """The part of an image that a sample needs, and how far it may be scaled down.

    Attributes:
        file: the image.
        box_xyxy: the part, image px; clipped to the image when cut. ``None``: all of it.
        longest_px: the part is scaled down until its longer side is at most this.
    """

    file: Path
    box_xyxy: tuple[float, float, float, float] | None
    longest_px: int


class ImageCache:
    """Read-only access to M decoded windows.

    Window px ``p`` lies at image px ``origin + ratio * (p + 0.5) - 0.5``.
    """

    def __init__(self, pixels: Path, index: NDArray[np.float64]) -> None:
        self._path = pixels
        self._index = index
        self._pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._index)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Pixels of window ``i``: ``(h, w, 3)`` uint8 RGB, not to be written to."""
        if self._pixels is None:
            # Opened on first use: every loader process maps the file for itself.
            self._pixels = np.memmap(self._path, dtype=np.uint8, mode="r")
        start, h, w = (int(v) for v in self._index[i, :3])
        return self._pixels[start : start + h * w * 3].reshape(h, w, 3)

    def to_window(self, i: int, points_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Image px ``(..., 2)`` to px of window ``i``."""
        origin, ratio = self._index[i, 3:5], self._index[i, 5:7]
        return np.asarray((points_xy + 0.5 - origin) / ratio - 0.5)


def build_cache(windows: Sequence[Window], folder: Path) -> ImageCache:
    """Decodes the windows into ``folder`` unless they are there from an earlier run.

    Raises:
        InputError: an image is missing or cannot be read.
        OutputError: the folder cannot be written to, or the disk is full.
    """
    key = hashlib.sha1()
    for window in windows:
        try:
            stat = window.file.stat()
        except OSError as error:
            raise InputError(
                f"{window.file}: cannot be read ({error.strerror}); check or replace it"
            ) from error
        key.update(
            repr(
                (str(window.file), window.box_xyxy, window.longest_px, stat.st_size, stat.st_mtime_ns)
            ).encode()
        )
    pixels, index = (folder / f"{key.hexdigest()[:16]}.{kind}" for kind in ("bin", "npy"))
    if (found := _whole(pixels, index, len(windows))) is None:
        rows, start = [], 0
        with atomic_path(pixels, overwrite=True) as partial, partial.open("wb") as out:
            previous: tuple[Path, NDArray[np.uint8]] | None = None
            for window in windows:
                if previous is None or previous[0] != window.file:
                    previous = (window.file, read_image(window.file))
                part, origin, ratio = _cut(previous[1], window)
                with output_errors(pixels):
                    out.write(part.tobytes())
                rows.append((start, *part.shape[:2], *origin, *ratio))
                start += part.size
        # The index last: where it stands, the pixels are whole.
        with atomic_path(index, overwrite=True) as partial, partial.open("wb") as out, output_errors(index):
            np.save(out, found := np.array(rows, dtype=np.float64).reshape(-1, 7))
    return ImageCache(pixels, found)


def _whole(pixels: Path, index: Path, count: int) -> NDArray[np.float64] | None:
    """The index of a cache, unless one of its files is missing or damaged: a machine may lose its power."""
    try:
        rows: NDArray[np.float64] = np.load(index)
        size = pixels.stat().st_size
    except (OSError, EOFError, ValueError):
        return None
    if rows.shape != (count, 7) or rows.dtype != np.float64:
        return None
    return rows if int((rows[:, 1] * rows[:, 2]).sum()) * 3 == size else None


def _cut(
    image: NDArray[np.uint8], window: Window
) -> tuple[NDArray[np.uint8], tuple[float, float], tuple[float, float]]:
    height, width = image.shape[:2]
    x1, y1, x2, y2 = window.box_xyxy or (0, 0, width, height)
    left, top = int(np.clip(x1, 0, width - 1)), int(np.clip(y1, 0, height - 1))
    right, bottom = int(np.clip(np.ceil(x2), left + 1, width)), int(np.clip(np.ceil(y2), top + 1, height))
    part = np.ascontiguousarray(image[top:bottom, left:right])
    h, w = part.shape[:2]
    shrink = max(h, w) / window.longest_px
    if shrink > 1:
        small = (max(round(w / shrink), 1), max(round(h / shrink), 1))
        part = np.asarray(cv2.resize(part, small, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return part, (left, top), (w / part.shape[1], h / part.shape[0])
