"""What every sink is told of a run, and the one way numbers are rounded for files.

Symbols: N people, K keypoints.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import OutputError
from hgpose.keypoints import KeypointSet
from hgpose.options import DEFAULT_STYLE, Style
from hgpose.types import Frame, ModelInfo, Poses, SourceInfo

PIXEL_DECIMALS = 2
SCORE_DECIMALS = 4
TIME_DECIMALS = 6

#: ``None`` stands for what is not a finite number.
Number = float | None


@dataclass(frozen=True)
class Run:
    """What a sink knows before the first frame.

    Attributes:
        info: the source; one without ``fps`` is an image set.
        model: the pose model.
        keypoint_set: of all poses to come.
        style: how overlays are drawn.
        overwrite: whether finished files may be replaced.
        inputs: resolved paths of the files that are read, which are never replaced. The file of
            ``info`` need not be among them.
    """

    info: SourceInfo
    model: ModelInfo
    keypoint_set: KeypointSet
    style: Style = DEFAULT_STYLE
    overwrite: bool = False
    inputs: Collection[Path] = frozenset()

    @property
    def is_image_set(self) -> bool:
        """Whether frames are pictures of their own, with names and sizes, and have no rate."""
        return self.info.fps is None

    def refuse_input(self, path: Path) -> None:
        """Sees to it that no input is written over.

        Raises:
            OutputError: ``path`` is one of the inputs.
        """
        resolved = path.resolve()
        if resolved in self.inputs or (self.info.path is not None and resolved == self.info.path.resolve()):
            raise OutputError(
                f"{path} is an input and will not be written over; choose another folder with -o"
            )


class Person(TypedDict):
    """One person as files show them, in plain Python values.

    ``id`` is ``None`` where nobody follows people; ``score`` is the mean of the keypoint scores;
    ``box`` is xyxy image px; ``keypoints`` are K times x, y (image px), score. ``interpolated``, where
    there are any, are the positions of keypoints taken from the frames before and after;
    ``keypoints_raw``, where they were asked for, are the keypoints as the network gave them.
    """

    id: int | None
    score: Number
    box: list[Number]
    keypoints: list[list[Number]]
    interpolated: NotRequired[list[int]]
    keypoints_raw: NotRequired[list[list[Number]]]


def rounded(values: NDArray[np.floating], decimals: int) -> Any:
    """Nested lists of the array's shape, rounded; ``None`` for NaN and infinity."""
    # Adding 0 turns -0.0 into 0.0.
    numbers = np.round(values.astype(np.float64), decimals) + 0.0
    plain = numbers.astype(object)
    plain[~np.isfinite(numbers)] = None
    return plain.tolist()


def seconds(frame: Frame) -> float:
    """The frame's timestamp as all sinks write it."""
    return round(frame.time_s, TIME_DECIMALS)


def people(poses: Poses) -> list[Person]:
    """The N people of a frame with numbers rounded as all sinks write them."""
    points = _triples(poses.keypoints, poses.scores)
    boxes = rounded(poses.boxes, PIXEL_DECIMALS)
    # The mean of what is written, so that whoever reads it back finds the same.
    written = np.round(poses.scores.astype(np.float64), SCORE_DECIMALS)
    means = rounded(written.mean(axis=1), SCORE_DECIMALS)
    found = [
        Person(id=person_id if person_id >= 0 else None, score=mean, box=box, keypoints=keypoints)
        for person_id, mean, box, keypoints in zip(poses.ids.tolist(), means, boxes, points, strict=True)
    ]
    if poses.interpolated is not None:
        for person, marks in zip(found, poses.interpolated, strict=True):
            if marks.any():
                person["interpolated"] = np.flatnonzero(marks).tolist()
    if poses.raw is not None:
        for person, raw in zip(found, _triples(poses.raw[..., :2], poses.raw[..., 2]), strict=True):
            person["keypoints_raw"] = raw
    return found


def _triples(points: NDArray[np.floating], scores: NDArray[np.floating]) -> list[list[list[Number]]]:
    """N times K times x, y, score, rounded."""
    return [
        [[x, y, score] for (x, y), score in zip(xy, row, strict=True)]
        for xy, row in zip(rounded(points, PIXEL_DECIMALS), rounded(scores, SCORE_DECIMALS), strict=True)
    ]
