"""Keypoints in the order of another tool's format."""

from __future__ import annotations

from collections.abc import Sequence

from hgpose.keypoints import KeypointSet
from hgpose.sinks.record import Number

#: Keypoints that some formats have and that lie between two others.
_MIDDLES = {"pelvis": ("left_hip", "right_hip"), "neck": ("left_shoulder", "right_shoulder")}

#: How COCO and its heirs write a keypoint that is not there.
_MISSING = [0.0, 0.0, 0.0]


class Order:
    """Takes the keypoints of a set into an order of names, by name.

    A neck or pelvis that the set lacks is the middle of the shoulders or hips, with the lower of their
    scores. What it lacks otherwise, and what is not finite, is 0, 0, 0.

    Args:
        names: the order wanted.
        keypoint_set: the order given.
    """

    def __init__(self, names: Sequence[str], keypoint_set: KeypointSet) -> None:
        have = keypoint_set.names
        self._parts = [
            [have.index(part) for part in parts] if set(parts) <= set(have) else []
            for parts in ((name,) if name in have else _MIDDLES.get(name, (name,)) for name in names)
        ]

    def __call__(self, keypoints: list[list[Number]]) -> list[list[float]]:
        """``len(names)`` times x, y (image px), score, of K times the same."""
        return [_middle([keypoints[i] for i in parts]) for parts in self._parts]


def _middle(points: list[list[Number]]) -> list[float]:
    finite = [[v for v in point if v is not None] for point in points]
    if not finite or any(len(point) < 3 for point in finite):
        return _MISSING
    if len(finite) == 1:
        return finite[0]
    (x1, y1, score1), (x2, y2, score2) = finite
    return [round((x1 + x2) / 2, 3), round((y1 + y2) / 2, 3), min(score1, score2)]
