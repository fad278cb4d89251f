"""What all tests share: one thread, and small annotated people made on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray

from hgpose.keypoints import COCO17
from hgpose.train.datasets import BoxSet, PoseSet

# In CI the same examples every time, so that a red run tells of the change and not of the dice.
settings.register_profile("hgpose", deadline=None, max_examples=50, derandomize="CI" in os.environ)
settings.load_profile("hgpose")
torch.set_num_threads(1)
cv2.setNumThreads(1)


def write_png(path: Path, image: NDArray[np.uint8]) -> Path:
    """Writes ``(H, W, 3)`` uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


@pytest.fixture
def people(tmp_path: Path) -> Callable[[int], PoseSet]:
    """``people(n)``: n people of 17 coloured dots each, alone on images of 100x120 px."""

    def make(count: int) -> PoseSet:
        rng = np.random.default_rng(5)
        k = len(COCO17)
        colors = rng.integers(60, 256, (k, 3))
        points = rng.uniform([15, 15], [85, 105], (count, k, 2)).astype(np.float32)
        # A torso of some length, which PCK is measured by.
        points[:, COCO17.index("left_shoulder")] = 30, 30
        points[:, COCO17.index("right_hip")] = 65, 80
        files = []
        for i in range(count):
            image = np.full((120, 100, 3), rng.integers(0, 120, 3), np.uint8)
            for point, color in zip(points[i], colors.tolist(), strict=True):
                cv2.circle(image, (round(float(point[0])), round(float(point[1]))), 3, color, -1)
            files.append(write_png(tmp_path / "people" / f"{i}.png", image))
        return PoseSet(
            COCO17.names,
            tuple(files),
            np.arange(count, dtype=np.int64),
            np.arange(count, dtype=np.int64),
            np.tile(np.array([5, 5, 95, 115], np.float32), (count, 1)),
            points,
            np.full((count, k), 2, np.int8),
            np.ones((count, k), np.float32),
            np.zeros((count, k), np.bool_),
            np.full(count, 9900, np.float32),
        )

    return make


@pytest.fixture
def boxes(tmp_path: Path) -> Callable[[list[list[tuple[int, int, int, int]]]], BoxSet]:
    """``boxes(per_image)``: white rectangles xyxy on black images of 100x80 px, and their boxes."""

    def make(per_image: list[list[tuple[int, int, int, int]]]) -> BoxSet:
        files = []
        for i, rectangles in enumerate(per_image):
            image = np.zeros((80, 100, 3), np.uint8)
            for x1, y1, x2, y2 in rectangles:
                image[y1:y2, x1:x2] = 255
            files.append(write_png(tmp_path / "boxes" / f"{i}.png", image))
        return BoxSet(
            tuple(files),
            np.arange(len(files), dtype=np.int64),
            np.tile(np.array([100, 80], np.int32), (len(files), 1)),
            # A box reaches to the outer edge of its pixels, half a pixel beyond their centres.
            tuple(np.array(r, np.float32).reshape(-1, 4) - np.float32(0.5) for r in per_image),
            tuple(np.zeros(len(r), np.bool_) for r in per_image),
            tuple(np.ones(len(r), np.float32) for r in per_image),
        )

    return make
