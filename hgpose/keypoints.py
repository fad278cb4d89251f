"""Keypoint sets: which joints, in which order, how they connect, mirror and are scored.

Left and right are the person's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class KeypointSet:
    """An ordered set of K keypoints.

    Attributes:
        name: short name, as in model cards and results.
        names: K keypoint names, sides as ``left_`` and ``right_`` prefixes.
        skeleton: pairs of names that a drawing connects.
        sigmas: K per-keypoint constants of object keypoint similarity (COCO keypoint evaluation,
            ``sigma``, not ``2 sigma``), as a share of the square root of the person's area.
    """

    name: str
    names: tuple[str, ...]
    skeleton: tuple[tuple[str, str], ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.names) or len(set(self.names)) != len(self.names):
            raise ValueError(f"keypoint set {self.name}: names must be unique and each needs one sigma")
        unknown = {name for edge in self.skeleton for name in edge} - set(self.names)
        if unknown:
            raise ValueError(f"keypoint set {self.name}: skeleton uses unknown keypoints {sorted(unknown)}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Position of ``name`` in the set; ``ValueError`` if it is not there."""
        return self.names.index(name)

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The skeleton as pairs of 0-based positions."""
        return tuple((self.index(a), self.index(b)) for a, b in self.skeleton)

    @cached_property
    def flip_order(self) -> tuple[int, ...]:
        """K positions: where each keypoint is found after mirroring the image left to right.

        One whose other side is not in the set stays where it is.
        """
        swap = {"left_": "right_", "right_": "left_"}
        order = []
        for name in self.names:
            for side, other in swap.items():
                if name.startswith(side):
                    mirrored = other + name.removeprefix(side)
                    name = mirrored if mirrored in self.names else name
                    break
            order.append(self.index(name))
        return tuple(order)

    def rows_of(self, values: NDArray[_Scalar], names: Sequence[str]) -> NDArray[_Scalar]:
        """Rows of other keypoints in the order of this set, zeros where they lack one of it.

        Args:
            values: ``(..., len(names), D)``.
            names: of its rows.

        Returns:
            ``(..., K, D)`` of the same type.
        """
        found = np.zeros((*values.shape[:-2], len(self), values.shape[-1]), values.dtype)
        here = [name in names for name in self.names]
        found[..., here, :] = values[..., [names.index(n) for n in self.names if n in names], :]
        return found


_COCO_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
# COCO keypoint evaluation constants (Lin et al., cocodataset.org, "Keypoint Evaluation").
_COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
_SIGMA_OF = dict(zip(_COCO_NAMES, _COCO_SIGMAS, strict=True))
# Not measured by COCO: neck and thorax are set like the shoulders, head_top like an ankle,
# pelvis like a hip.
_SIGMA_OF |= {"neck": 0.079, "thorax": 0.079, "head_top": 0.089, "pelvis": 0.107}

_LIMBS = (
    ("left_shoulder", "left_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"),
    ("left_hip", "left_knee"),
    ("left_knee", "left_ankle"),
    ("right_hip", "right_knee"),
    ("right_knee", "right_ankle"),
)
_FACE = (("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear"))
_TRUNK = (("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"), ("left_hip", "right_hip"))
_NECK = (("neck", "left_shoulder"), ("neck", "right_shoulder"), ("neck", "head_top"))
_FEET = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (("ankle", "big_toe"), ("big_toe", "small_toe"), ("ankle", "heel"))
)


def usual_skeleton(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The pairs that a drawing connects of keypoints of which only the names are known."""
    shoulders = _NECK if "neck" in names else (("left_shoulder", "right_shoulder"),)
    every = (*_LIMBS, *_TRUNK, *shoulders, *_FACE, *_FEET)
    return tuple(pair for pair in every if set(pair) <= set(names))


def _make(name: str, names: tuple[str, ...], skeleton: tuple[tuple[str, str], ...]) -> KeypointSet:
    return KeypointSet(name, names, skeleton, tuple(_SIGMA_OF[n] for n in names))


COCO17 = _make("coco17", _COCO_NAMES, usual_skeleton(_COCO_NAMES))
BODY19 = _make("body19", (*_COCO_NAMES, "neck", "head_top"), (*_LIMBS, *_TRUNK, *_NECK, *_FACE))
LSP14 = _make(
    "lsp14",
    (
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "neck",
        "head_top",
    ),
    (*_LIMBS, *_TRUNK, *_NECK),
)
MPII16 = _make(
    "mpii16",
    (
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "pelvis",
        "thorax",
        "neck",
        "head_top",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
    ),
    (
        *_LIMBS,
        ("pelvis", "left_hip"),
        ("pelvis", "right_hip"),
        ("pelvis", "thorax"),
        ("thorax", "left_shoulder"),
        ("thorax", "right_shoulder"),
        ("thorax", "neck"),
        ("neck", "head_top"),
    ),
)

KEYPOINT_SETS = {s.name: s for s in (BODY19, COCO17, LSP14, MPII16)}


def keypoint_set(name: str) -> KeypointSet:
    """The set called ``name``.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    try:
        return KEYPOINT_SETS[name]
    except KeyError:
        raise InputError(f"unknown keypoint set {name!r}; known: {', '.join(KEYPOINT_SETS)}") from None
