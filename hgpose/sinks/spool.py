"""Where results wait whose format can only be written once all are known.

Symbols: N people, K keypoints.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hgpose.atomic import output_errors
from hgpose.sinks.record import PIXEL_DECIMALS, SCORE_DECIMALS, seconds
from hgpose.types import Frame, Poses

_FRAME = np.dtype([("index", "<i8"), ("time_s", "<f8"), ("people", "<i8"), ("name_bytes", "<i8")])


@dataclass(frozen=True)
class SpooledFrame:
    """One frame as it comes back.

    Attributes:
        row: how many frames came before it.
        index, time_s, name: of the frame.
        people: ``(N,)`` of the fields ``id`` (-1 where nobody follows people), ``score``, ``box``
            ``(4,)`` and ``keypoints`` ``(K, 3)`` x, y, score, with the numbers of
            :func:`hgpose.sinks.record.people`, NaN for what is not finite.
    """

    row: int
    index: int
    time_s: float
    name: str
    people: NDArray[Any]

    @property
    def numbers(self) -> list[int]:
        """Of each of the N people: the id, or the place in the frame, from 1, where nobody follows them."""
        return _numbers(self.people["id"])


class Spool:
    """Frames with their people on the disk, in files without a name that vanish with the process.

    Args:
        beside: the finished file. Its folder is where the frames wait, so that the disk that must hold
            the result holds them, too.
        keypoint_count: K.
    """

    def __init__(self, beside: Path, keypoint_count: int) -> None:
        self._beside = beside
        self.person_dtype = np.dtype(
            [("id", "<i8"), ("score", "<f8"), ("box", "<f8", 4), ("keypoints", "<f8", (keypoint_count, 3))]
        )
        self.frame_count = self.person_count = 0

    def __enter__(self) -> Self:
        """Makes the files.

        Raises:
            OutputError: the folder is not writable.
        """
        with ExitStack() as stack, output_errors(self._beside):
            self._frames, self._people, self._names = (
                stack.enter_context(tempfile.TemporaryFile(dir=self._beside.parent)) for _ in range(3)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        except OSError:
            # The disk is full, which has been said; nothing in these files is wanted any more.
            if error is None:
                raise

    def add(self, frame: Frame, poses: Poses) -> list[int]:
        """Puts one frame away.

        Returns:
            The numbers of its people; see :attr:`SpooledFrame.numbers`.

        Raises:
            OutputError: the disk is full.
        """
        people = np.empty(len(poses), self.person_dtype)
        people["id"] = poses.ids
        people["score"] = _rounded(poses.person_scores, SCORE_DECIMALS)
        people["box"] = _rounded(poses.boxes, PIXEL_DECIMALS)
        people["keypoints"][..., :2] = _rounded(poses.keypoints, PIXEL_DECIMALS)
        people["keypoints"][..., 2] = _rounded(poses.scores, SCORE_DECIMALS)
        name = os.fsencode(frame.name)
        record = np.array((frame.index, seconds(frame), len(poses), len(name)), _FRAME)
        with output_errors(self._beside):
            self._people.write(people.tobytes())
            self._names.write(name)
            self._frames.write(record.tobytes())
        self.frame_count += 1
        self.person_count += len(poses)
        return _numbers(poses.ids)

    def __iter__(self) -> Iterator[SpooledFrame]:
        """All frames from the first on, in order.

        Raises:
            OutputError: the disk is full, which may come to light only now.
        """
        with output_errors(self._beside):
            for file in (self._frames, self._people, self._names):
                file.seek(0)
        for row in range(self.frame_count):
            index, time_s, count, name_bytes = np.frombuffer(self._frames.read(_FRAME.itemsize), _FRAME)[0]
            people = np.frombuffer(self._people.read(count * self.person_dtype.itemsize), self.person_dtype)
            name = os.fsdecode(self._names.read(name_bytes))
            yield SpooledFrame(row, int(index), float(time_s), name, people)


def _numbers(ids: NDArray[np.int64]) -> list[int]:
    return [identity if identity >= 0 else place for place, identity in enumerate(ids.tolist(), start=1)]


def _rounded(values: NDArray[np.float32], decimals: int) -> NDArray[np.floating]:
    numbers = np.round(values.astype(np.float64), decimals) + 0.0
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers
