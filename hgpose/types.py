"""The values that travel from a source to a sink. Shapes are checked where they are born.

Symbols: N people, K keypoints. Points are image px of the displayed frame (rotation applied),
0-based, pixel centres at integers, x right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.geometry import CropTransform
from hgpose.keypoints import KeypointSet

#: Frames of a video lie no farther apart than this, seconds: less than MP4 can hold in its usual time bases.
LONGEST_GAP_S = 4 * 3600


def _check(name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: type) -> None:
    fits = len(array.shape) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        wanted = tuple("any" if want is None else want for want in shape)
        raise ValueError(f"{name}: wanted {dtype.__name__} {wanted}, got {array.dtype} {array.shape}")


@dataclass(frozen=True)
class SourceInfo:
    """What a source says of itself before its first frame.

    Attributes:
        name: file name or other label, as it goes into results.
        width, height: of the displayed frame, px. (0, 0) for an image set, whose images differ.
        fps: frames a second, exact; ``None`` for an image set.
        frame_count: as the container declares it, ``None`` if unknown. Never relied upon.
        time_base: the unit of the container's timestamps, seconds; ``None`` for an image set.
        path: the file, where there is one that can be opened again (to copy its audio).
    """

    name: str
    width: int
    height: int
    fps: Fraction | None
    frame_count: int | None = None
    time_base: Fraction | None = None
    path: Path | None = None


@dataclass(frozen=True)
class ModelInfo:
    """The pose model as results name it: the card's name and the SHA-256 of the weights, in hex."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        index: 0-based position in the source (before any ``--every``).
        time_s: the container's own timestamp, seconds.
        name: in an image set, the path relative to the input folder; else empty.
    """

    image: NDArray[np.uint8]
    index: int
    time_s: float
    name: str = ""

    def __post_init__(self) -> None:
        _check("Frame.image", self.image, (None, None, 3), np.uint8)
        if not self.image.size:
            raise ValueError(f"Frame.image: wanted pixels, got {self.image.shape}")


@dataclass(frozen=True)
class Detections:
    """Boxes of people on one frame.

    Attributes:
        boxes: ``(N, 4)`` float32 xyxy image px.
        scores: ``(N,)`` float32 in [0, 1].
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        _check("Detections.boxes", self.boxes, (None, 4), np.float32)
        _check("Detections.scores", self.scores, (len(self.boxes),), np.float32)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> Detections:
        return Detections(self.boxes[rows], self.scores[rows])


@dataclass(frozen=True)
class Heatmaps:
    """Probability maps of the people of one frame.

    Attributes:
        maps: ``(N, K, h, w)`` float32 in [0, 1].
        transforms: N crops that the maps belong to.
    """

    maps: NDArray[np.float32]
    transforms: tuple[CropTransform, ...]

    def __post_init__(self) -> None:
        _check("Heatmaps.maps", self.maps, (len(self.transforms), None, None, None), np.float32)


@dataclass(frozen=True)
class Poses:
    """The people of one frame.

    Attributes:
        keypoints: ``(N, K, 2)`` float32 image px. Never zeroed for a low score.
        scores: ``(N, K)`` float32 in [0, 1], the probability that the joint is where it is said to be.
        boxes: ``(N, 4)`` float32 xyxy image px.
        box_scores: ``(N,)`` float32 in [0, 1], of the detection.
        ids: ``(N,)`` int64, the person over time; -1 where nobody follows people.
        keypoint_set: names and skeleton of the K keypoints.
        heatmaps: where they were asked for.
        raw: ``(N, K, 3)`` float32 x, y and score as the network gave them, where they were asked for;
            NaN where the person was not seen on this frame.
        interpolated: ``(N, K)`` bool, keypoints taken from the frames before and after; ``None`` where
            nobody follows people.
    """

    keypoints: NDArray[np.float32]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    box_scores: NDArray[np.float32]
    ids: NDArray[np.int64]
    keypoint_set: KeypointSet
    heatmaps: Heatmaps | None = None
    raw: NDArray[np.float32] | None = None
    interpolated: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n, k = len(self.keypoints), len(self.keypoint_set)
        _check("Poses.keypoints", self.keypoints, (n, k, 2), np.float32)
        _check("Poses.scores", self.scores, (n, k), np.float32)
        _check("Poses.boxes", self.boxes, (n, 4), np.float32)
        _check("Poses.box_scores", self.box_scores, (n,), np.float32)
        _check("Poses.ids", self.ids, (n,), np.int64)
        if self.raw is not None:
            _check("Poses.raw", self.raw, (n, k, 3), np.float32)
        if self.interpolated is not None:
            _check("Poses.interpolated", self.interpolated, (n, k), np.bool_)

    def __len__(self) -> int:
        return len(self.keypoints)

    def __getitem__(self, rows: Sequence[int] | NDArray[np.int64]) -> Poses:
        """The people at these positions, in this order."""
        kept = self.heatmaps and Heatmaps(
            self.heatmaps.maps[rows], tuple(self.heatmaps.transforms[i] for i in rows)
        )
        return Poses(
            self.keypoints[rows],
            self.scores[rows],
            self.boxes[rows],
            self.box_scores[rows],
            self.ids[rows],
            self.keypoint_set,
            kept,
            None if self.raw is None else self.raw[rows],
            None if self.interpolated is None else self.interpolated[rows],
        )

    @classmethod
    def empty(cls, keypoint_set: KeypointSet) -> Poses:
        """Nobody."""
        k = len(keypoint_set)
        return cls(
            np.zeros((0, k, 2), np.float32),
            np.zeros((0, k), np.float32),
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            keypoint_set,
        )

    @property
    def person_scores(self) -> NDArray[np.float32]:
        """``(N,)`` float32: the mean keypoint score of each person."""
        return self.scores.mean(axis=1) if len(self) else np.zeros(0, np.float32)
