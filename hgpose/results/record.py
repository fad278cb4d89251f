"""Saved keypoints of a frame, and what readers of all kinds share."""

from __future__ import annotations

import csv
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.keypoints import KEYPOINT_SETS, KeypointSet, usual_skeleton
from hgpose.types import ModelInfo, Poses, SourceInfo

T = TypeVar("T")
UNKNOWN_MODEL = ModelInfo("unknown", "")

#: What is said of a file that is of no kind that is read.
UNKNOWN = (
    "{path}: neither hgpose JSON (schema 'hgpose/1') nor COCO results (a list with 'image_id') nor MMPose's "
    "(a list with 'instances')"
)
#: Numbers of frames and sizes of pictures are below this, as in the files that are written.
_LARGEST = 2**31


@dataclass(frozen=True)
class ResultFrame:
    """One frame of saved results.

    Attributes:
        index: as saved; -1 where only the name tells which image it is.
        time_s: seconds; NaN where it was not saved.
        name: of an image, by some kinds without its suffix; empty where it was not saved. Where files are
            called by frames it is there for those of a video, too, and says nothing.
        size_wh: px, of an image, where it was saved.
        poses: its people; ``box_scores`` are the scores that were saved of persons.
    """

    index: int
    time_s: float
    name: str
    size_wh: tuple[int, int] | None
    poses: Poses

    def __post_init__(self) -> None:
        checked_text(self.name)
        if not isinstance(self.index, int) or not -1 <= self.index < _LARGEST:
            raise ValueError(f"no number of a frame: {self.index!r}")
        if not isinstance(self.time_s, int | float):
            raise ValueError(f"no time: {self.time_s!r}")
        if self.size_wh is not None:
            check_size(self.size_wh)


def check_size(size_wh: tuple[int, int]) -> None:
    """Refuses what cannot be the size of a picture."""
    if not all(isinstance(length, int) and 0 <= length < _LARGEST for length in size_wh):
        raise ValueError(f"no size of a picture: {size_wh}")


@dataclass(frozen=True)
class Results:
    """Saved results, open for one reading.

    Attributes:
        path: where they are.
        kind: ``hgpose``, ``openpose``, ``mmpose``, ``yolo``, ``dlc`` or ``coco`` (AlphaPose, too).
        keypoint_set: of all poses.
        frames: in the order in which they stand there. Iterating raises :class:`InputError` where they
            are malformed.
        info: what they say of their source, ``None`` where they do not.
        model: as saved, or unknown.
    """

    path: Path
    kind: str
    keypoint_set: KeypointSet
    frames: Iterator[ResultFrame]
    info: SourceInfo | None = None
    model: ModelInfo = UNKNOWN_MODEL

    @property
    def has_empty_frames(self) -> bool:
        """Whether a frame with nobody is told of, rather than left out."""
        return self.kind != "coco"

    @property
    def is_relative(self) -> bool:
        """Whether points and boxes are shares of the picture's width and height, from its corner, not px."""
        return self.kind == "yolo"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong with a file, as an error that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); it is damaged or was cut short"
        ) from error
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: no whole archive ({error}); it is damaged or was cut short") from error
    except (
        AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise InputError(f"{path}: malformed ({type(error).__name__}: {error})") from error


@contextmanager
def reading_row(path: Path, table: Any) -> Iterator[None]:
    """What goes wrong with a line of a table, as an error that names file and line."""
    try:
        yield
    except (IndexError, ValueError) as error:
        raise InputError(f"{path}: line {table.line_num} is malformed ({error})") from error


def whole_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a text whose last one ends, too: else a number in it may have been cut."""
    for line in file:
        if not line.endswith(("\n", "\r")):
            raise InputError(
                f"{path}: its last line does not end: it was cut short; if it is whole, add a line break"
            )
        yield line


def parsed(cells: Iterable[str]) -> NDArray[np.float64]:
    """Cells as numbers; an empty one is NaN."""
    return np.array([cell or "nan" for cell in cells], np.float64)


def checked_text(value: Any) -> str:
    """A string that can be written."""
    if not isinstance(value, str):
        raise TypeError(f"text expected, not {value!r}")
    # Half a pair of surrogates, which JSON lets pass, is the name of no file and cannot be written.
    os.fsencode(value)
    return value


def named_set(name: str, names: tuple[str, ...], skeleton: Iterable[Iterable[int]] = ()) -> KeypointSet:
    """The known set with these names, or one without sigmas, and with the usual skeleton if none is given."""
    for known in KEYPOINT_SETS.values():
        if known.names == names:
            return known
    edges = tuple((names[a], names[b]) for a, b in skeleton) or usual_skeleton(names)
    return KeypointSet(name, names, edges, (float("nan"),) * len(names))


def set_of(count: int, path: Path, known: Iterable[KeypointSet]) -> KeypointSet:
    """The set with so many keypoints."""
    for candidate in known:
        if len(candidate) == count:
            return candidate
    sizes = ", ".join(f"{len(s)} ({s.name})" for s in known)
    raise InputError(f"{path}: its people have [{count}] keypoints; known are {sizes}")


def told_by_first_person(
    frames: Iterator[T], tell: Callable[[T], KeypointSet | None], otherwise: KeypointSet
) -> tuple[KeypointSet, Iterator[T]]:
    """The keypoint set that the first frame with a person tells, and all the frames."""
    empty: list[T] = []
    for frame in frames:
        keypoint_set = tell(frame)
        if keypoint_set is not None:
            return keypoint_set, chain(empty, [frame], frames)
        empty.append(frame)
    return otherwise, iter(empty)


def make_poses(
    keypoint_set: KeypointSet,
    points: Any,
    boxes: Any,
    scores: Iterable[float | None],
    ids: Iterable[int],
    missing_is_zero: bool = False,
) -> Poses:
    """Poses of ``points`` (N, K, 3) and ``boxes`` (N, 4); ``None`` is NaN."""
    # Other programs' numbers may be too large for float32: they become infinite.
    with np.errstate(over="ignore"):
        triples = np.array(points, np.float64).reshape(-1, len(keypoint_set), 3).astype(np.float32)
        if missing_is_zero:
            triples[(triples == 0).all(axis=2), :2] = np.nan
        return Poses(
            triples[..., :2],
            triples[..., 2],
            np.array(boxes, np.float64).reshape(-1, 4).astype(np.float32),
            np.array(list(scores), np.float64).astype(np.float32),
            np.array(list(ids), np.int64),
            keypoint_set,
        )
