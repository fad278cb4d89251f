"""Walking people with exact joints, and what a bad detector makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hgpose.keypoints import BODY19
from hgpose.types import Detections, Frame, Poses

WIDTH, HEIGHT = 640, 360

# A person seen from the side, as shares of the height; x to its front, y up from the ground.
_STANDING = {
    "nose": (0.05, 0.93), "eye": (0.04, 0.95), "ear": (0.0, 0.94), "shoulder": (0.0, 0.82),
    "elbow": (0.0, 0.64), "wrist": (0.02, 0.48), "hip": (0.0, 0.53), "knee": (0.01, 0.28),
    "ankle": (0.0, 0.04), "neck": (0.0, 0.85), "head_top": (0.0, 1.0),
}  # fmt: skip
# Swing of walking, as shares of the height.
_SWING = {"elbow": 0.05, "wrist": 0.11, "knee": 0.08, "ankle": 0.16}


def body(x: float, ground: float, height: float, phase: float = 0.0) -> NDArray[np.float32]:
    """``(19, 2)`` a person at x whose feet are at y = ``ground``; ``phase`` of the steps in turns."""
    points = []
    for name in BODY19.names:
        part = name.removeprefix("left_").removeprefix("right_")
        dx, dy = _STANDING[part]
        side = {"l": 1, "r": -1}.get(name[0], 0) if "_" in name and part != name else 0
        arm = -1 if part in {"elbow", "wrist"} else 1
        swing = _SWING.get(part, 0.0) * side * arm * math.sin(2 * math.pi * phase)
        points.append((x + height * (dx + swing + 0.05 * side), ground - height * dy))
    return np.array(points, np.float32)


def box_of(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """``(4,)`` around ``(K, 2)`` with a tenth to spare."""
    low, high = points.min(0), points.max(0)
    spare = 0.1 * (high - low).max()
    return np.concatenate([low - spare, high + spare]).astype(np.float32)


@dataclass(frozen=True)
class Walker:
    """Goes from x to x at constant speed; on the picture from the first frame to the last."""

    start_x: float
    speed: float  # px a frame
    ground: float = 320.0
    height: float = 200.0
    first: int = 0
    last: int = 10**9

    def at(self, t: int) -> NDArray[np.float32] | None:
        x = self.start_x + self.speed * (t - self.first)
        if not (self.first <= t <= self.last and 0 < x < WIDTH):
            return None
        return body(x, self.ground, self.height, t / 30)


def poses_of(people: list[NDArray[np.float32]], score: float = 0.8) -> Poses:
    """The poses that stand for these ``(19, 2)`` points."""
    n, k = len(people), len(BODY19)
    return Poses(
        np.array(people, np.float32).reshape(n, k, 2),
        np.full((n, k), score, np.float32),
        np.array([box_of(p) for p in people], np.float32).reshape(n, 4),
        np.full(n, 0.9, np.float32),
        np.full(n, -1, np.int64),
        BODY19,
    )


def frame(t: int, fps: float = 30.0, image: NDArray[np.uint8] | None = None) -> Frame:
    """A frame, grey unless it has a picture."""
    return Frame(np.full((HEIGHT, WIDTH, 3), 90, np.uint8) if image is None else image, t, t / fps)


def nobody() -> Detections:
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
