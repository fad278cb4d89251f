"""Keypoints that were saved before, by hgpose or by other tools, read frame by frame.

hgpose's JSON, JSON lines, wide CSV and Parquet; COCO results, AlphaPose, MMPose (its inferencer on a
video) and OpenPose (the numbered frames of a video). Memory does not depend on their length.
Symbols: N people, K keypoints.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.keypoints import COCO17, KEYPOINT_SETS, KeypointSet
from hgpose.sinks.openpose import BODY_25
from hgpose.sinks.parquet import import_pyarrow
from hgpose.types import ModelInfo, Poses, SourceInfo

T = TypeVar("T")

_UNKNOWN_MODEL = ModelInfo("unknown", "")
#: Numbers of frames and sizes of pictures are below this, as in the files that are written.
_LARGEST = 2**31


@dataclass(frozen=True)
class ResultFrame:
    """One frame of saved results.

    Attributes:
        index: as saved; -1 where only the name tells which image it is.
        time_s: seconds; NaN where it was not saved.
        name: of an image; empty for the frame of a video, or where it was not saved.
        size_wh: px, of an image, where it was saved.
        poses: its people; ``box_scores`` are the scores that were saved of persons.
    """

    index: int
    time_s: float
    name: str
    size_wh: tuple[int, int] | None
    poses: Poses

    def __post_init__(self) -> None:
        _text(self.name)
        if not isinstance(self.index, int) or not -1 <= self.index < _LARGEST:
            raise ValueError(f"no number of a frame: {self.index!r}")
        if not isinstance(self.time_s, int | float):
            raise ValueError(f"no time: {self.time_s!r}")
        if self.size_wh is not None:
            _check_size(self.size_wh)


def _check_size(size_wh: tuple[int, int]) -> None:
    if not all(isinstance(length, int) and 0 <= length < _LARGEST for length in size_wh):
        raise ValueError(f"no size of a picture: {size_wh}")


@dataclass(frozen=True)
class Results:
    """Saved results, open for one reading.

    Attributes:
        path: where they are.
        kind: ``hgpose``, ``openpose``, ``mmpose`` or ``coco`` (AlphaPose, too).
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
    model: ModelInfo = _UNKNOWN_MODEL

    @property
    def has_empty_frames(self) -> bool:
        """Whether a frame with nobody is told of, rather than left out."""
        return self.kind != "coco"


@contextmanager
def open_results(path: Path) -> Iterator[Results]:
    """Opens results, whose kind is told by the file itself.

    Raises:
        InputError: missing, unreadable, malformed, or of no known kind.
    """
    with ExitStack() as stack:
        with _reading(path):
            results = _open(path, stack)
        yield Results(
            path,
            results.kind,
            results.keypoint_set,
            _checked(path, results.frames),
            results.info,
            results.model,
        )


def _open(path: Path, stack: ExitStack) -> Results:
    if path.is_dir():
        return _open_openpose(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _open_parquet(path, stack)
    file = stack.enter_context(path.open(encoding="utf-8", errors="surrogateescape", newline=""))
    if suffix == ".csv":
        return _open_csv(path, file)
    stream = _JsonStream(file)
    if suffix == ".jsonl":
        return _open_hgpose(path, stream.value(), stream.values())
    if stream.peek() == "{":
        header = stream.members_before("frames")
        return _open_hgpose(path, header, stream.elements())
    return _open_list(path, stream.elements())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong with a file, as an error that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{path}: malformed ({type(error).__name__}: {error})") from error


def _checked(path: Path, frames: Iterator[ResultFrame]) -> Iterator[ResultFrame]:
    while True:
        # Only the reading: what the caller does with a frame is not the file's fault.
        with _reading(path):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _named_set(name: str, names: tuple[str, ...], skeleton: Iterable[Iterable[int]] = ()) -> KeypointSet:
    """The known set with these names, or one without sigmas."""
    for known in KEYPOINT_SETS.values():
        if known.names == names:
            return known
    edges = tuple((names[a], names[b]) for a, b in skeleton)
    return KeypointSet(name, names, edges, (float("nan"),) * len(names))


def _set_of(count: int, path: Path, known: Iterable[KeypointSet]) -> KeypointSet:
    """The set with so many keypoints."""
    for candidate in known:
        if len(candidate) == count:
            return candidate
    sizes = ", ".join(f"{len(s)} ({s.name})" for s in known)
    raise InputError(f"{path}: its people have [{count}] keypoints; known are {sizes}")


def _make_poses(
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


# hgpose.


def _open_hgpose(path: Path, header: dict[str, Any], frames: Iterator[dict[str, Any]]) -> Results:
    if header.get("schema") != "hgpose/1":
        raise InputError(_UNKNOWN.format(path=path))
    keypoint_set = _header_set(header)
    return Results(
        path,
        "hgpose",
        keypoint_set,
        (_hgpose_frame(frame, keypoint_set) for frame in frames),
        _header_info(header),
        _header_model(header),
    )


_UNKNOWN = (
    "{path}: neither hgpose JSON (schema 'hgpose/1') nor COCO results (a list with 'image_id') nor MMPose's "
    "(a list with 'instances')"
)


def _header_set(header: dict[str, Any]) -> KeypointSet:
    names = tuple(map(_text, header["keypoints"]))
    return _named_set(_text(header.get("keypoint_set", "unknown")), names, header.get("skeleton", ()))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, not {value!r}")
    return value


def _header_info(header: dict[str, Any]) -> SourceInfo | None:
    source = header.get("source")
    if source is None:
        return None
    name, frames = _text(source["name"]), source.get("frames")
    if "fps_exact" not in source:
        return SourceInfo(name, 0, 0, None, frames)
    size_wh, fps = (source["width"], source["height"]), Fraction(_text(source["fps_exact"]))
    _check_size(size_wh)
    if fps <= 0:
        raise ValueError(f"no frame rate: {fps}")
    return SourceInfo(name, *size_wh, fps, frames)


def _header_model(header: dict[str, Any]) -> ModelInfo:
    model = header.get("model")
    return ModelInfo(*(_text(model[key]) for key in ("name", "sha256"))) if model else _UNKNOWN_MODEL


def _hgpose_frame(frame: dict[str, Any], keypoint_set: KeypointSet) -> ResultFrame:
    size_wh = (frame["width"], frame["height"]) if "width" in frame else None
    people = frame["people"]
    poses = _make_poses(
        keypoint_set,
        [person["keypoints"] for person in people],
        [person["box"] for person in people],
        [person["score"] for person in people],
        [-1 if person["id"] is None else person["id"] for person in people],
    )
    raw, interpolated = None, None
    if people and all("keypoints_raw" in person for person in people):
        raw = np.array([person["keypoints_raw"] for person in people], np.float64).astype(np.float32)
    if any("interpolated" in person for person in people):
        interpolated = np.zeros(poses.scores.shape, np.bool_)
        for marks, person in zip(interpolated, people, strict=True):
            marks[person.get("interpolated", [])] = True
    poses = replace(poses, raw=raw, interpolated=interpolated)
    return ResultFrame(frame["frame"], frame["time_s"], frame.get("name", ""), size_wh, poses)


class _Row(NamedTuple):
    """A row of a table: a person, or a frame with nobody if all of ``values`` are NaN and no id is given.

    ``values`` are score, box, and x, y, score of the keypoints.
    """

    frame: int
    time_s: float
    name: str
    size_wh: tuple[int, int] | None
    person: int
    values: NDArray[np.float64]


def _frames_of_rows(rows: Iterator[_Row], keypoint_set: KeypointSet) -> Iterator[ResultFrame]:
    for (index, time_s, name, size_wh), group in groupby(rows, key=itemgetter(0, 1, 2, 3)):
        people = [row for row in group if row.person >= 0 or not np.isnan(row.values).all()]
        poses = _make_poses(
            keypoint_set,
            [row.values[5:] for row in people],
            [row.values[1:5] for row in people],
            [row.values[0] for row in people],
            [row.person for row in people],
        )
        yield ResultFrame(index, time_s, name, size_wh, poses)


def _columns(keypoint_names: Iterable[str]) -> list[str]:
    """The columns of :attr:`_Row.values`."""
    points = [f"{name}_{value}" for name in keypoint_names for value in ("x", "y", "score")]
    return ["score", "x1", "y1", "x2", "y2", *points]


def _open_csv(path: Path, file: TextIO) -> Results:
    table = csv.reader(file)
    header = next(table, [])
    names = tuple(c.removesuffix("_x") for c in header if c.endswith("_x"))
    wanted = ["frame", "time_s", "person", *_columns(names)]
    if not names or not set(wanted) <= set(header):
        raise InputError(f"{path}: not hgpose's wide CSV, whose columns are frame, time_s, person, ...")
    pick = itemgetter(*(header.index(column) for column in wanted))
    name_column = header.index("name") if "name" in header else None

    def rows() -> Iterator[_Row]:
        for row in table:
            try:
                frame, time_s, person, *values = pick(row)
                name = "" if name_column is None else row[name_column]
                numbers = np.array([v or "nan" for v in values], np.float64)
                yield _Row(int(frame), float(time_s), name, None, int(person or -1), numbers)
            except (IndexError, ValueError) as error:
                raise InputError(f"{path}: line {table.line_num} is malformed ({error})") from error

    keypoint_set = _named_set("unknown", names)
    return Results(path, "hgpose", keypoint_set, _frames_of_rows(rows(), keypoint_set))


def _open_parquet(path: Path, stack: ExitStack) -> Results:
    _, pq = import_pyarrow()
    table = stack.enter_context(pq.ParquetFile(path))
    metadata = table.schema_arrow.metadata or {}
    if b"hgpose" not in metadata:
        raise InputError(f"{path}: not hgpose's Parquet, whose metadata has 'hgpose'")
    header = json.loads(metadata[b"hgpose"])
    keypoint_set = _header_set(header)
    columns = _columns(keypoint_set.names)

    def rows() -> Iterator[_Row]:
        for batch in table.iter_batches(batch_size=4096):

            def column(name: str, missing: Any, batch: Any = batch) -> list[Any]:
                there = name in batch.schema.names
                return batch.column(name).fill_null(missing).to_pylist() if there else [missing] * len(batch)

            values = np.stack([batch.column(c).to_numpy(zero_copy_only=False) for c in columns], axis=1)
            sizes = zip(column("width", 0), column("height", 0), strict=True)
            keys = zip(column("frame", -1), column("time_s", 0.0), column("name", ""), sizes, strict=True)
            for (index, time_s, name, size_wh), person, numbers in zip(
                keys, column("person", -1), values, strict=True
            ):
                yield _Row(index, time_s, name, size_wh if name else None, person, numbers)

    return Results(
        path,
        "hgpose",
        keypoint_set,
        _frames_of_rows(rows(), keypoint_set),
        _header_info(header),
        _header_model(header),
    )


# Other tools.

_BODY_25 = _named_set("body_25", BODY_25)
#: OpenPose's COCO order is BODY_25 without the middle of the hips and the feet.
_COCO_18 = _named_set("coco_18", BODY_25[:8] + BODY_25[9:19])
_OPENPOSE_FILE = re.compile(r"_(\d{12})_keypoints\.json")


def _open_list(path: Path, elements: Iterator[dict[str, Any]]) -> Results:
    first = next(elements, None)
    if first is None:
        return Results(path, "coco", COCO17, iter(()))
    everything = chain([first], elements)
    if "instances" in first:
        return _open_mmpose(path, everything)
    if "image_id" not in first:
        raise InputError(_UNKNOWN.format(path=path))
    keypoint_set = _set_of(len(first["keypoints"]) // 3, path, KEYPOINT_SETS.values())
    return Results(path, "coco", keypoint_set, _coco_frames(everything, keypoint_set))


def _coco_frames(people: Iterator[dict[str, Any]], keypoint_set: KeypointSet) -> Iterator[ResultFrame]:
    for image, group in groupby(people, key=itemgetter("image_id")):
        found = list(group)
        poses = _make_poses(
            keypoint_set,
            [person["keypoints"] for person in found],
            [_xyxy(person.get("box") or person.get("bbox")) for person in found],
            [person["score"] for person in found],
            [idx if isinstance(idx := person.get("idx"), int) else -1 for person in found],
            missing_is_zero=True,
        )
        if isinstance(image, str):
            # AlphaPose numbers the frames of a video so.
            stem = PurePosixPath(image).stem
            yield ResultFrame(int(stem) if stem.isdecimal() else -1, float("nan"), image, None, poses)
        else:
            yield ResultFrame(int(image), float("nan"), found[0].get("file_name", ""), None, poses)


def _xyxy(xywh: list[float] | None) -> list[float | None]:
    if xywh is None:
        return [None] * 4
    x, y, width, height = xywh
    return [x, y, x + width, y + height]


def _open_mmpose(path: Path, frames: Iterator[dict[str, Any]]) -> Results:
    def count(frame: dict[str, Any]) -> int | None:
        return len(frame["instances"][0]["keypoints"]) if frame["instances"] else None

    def read(frame: dict[str, Any], keypoint_set: KeypointSet) -> ResultFrame:
        people = frame["instances"]
        poses = _make_poses(
            keypoint_set,
            [
                [[*point, score] for point, score in zip(p["keypoints"], p["keypoint_scores"], strict=True)]
                for p in people
            ],
            [p["bbox"][0] if "bbox" in p else [None] * 4 for p in people],
            [p.get("bbox_score") for p in people],
            [p.get("track_id", -1) for p in people],
            missing_is_zero=True,
        )
        return ResultFrame(frame["frame_id"], float("nan"), frame.get("file_name", ""), None, poses)

    keypoint_set, frames = _told_by_first_person(path, frames, count, KEYPOINT_SETS.values(), COCO17)
    return Results(path, "mmpose", keypoint_set, (read(frame, keypoint_set) for frame in frames))


def _open_openpose(path: Path) -> Results:
    files = sorted(path.glob("*_keypoints.json"))
    if not files:
        raise InputError(f"{path}: no OpenPose results in it, whose names end in _keypoints.json")

    def load(file: Path) -> tuple[int, list[dict[str, Any]]]:
        number = _OPENPOSE_FILE.search(file.name)
        if number is None:
            raise InputError(f"{file}: without the number of a frame; only results of a video can be read")
        with _reading(file):
            return int(number[1]), json.loads(file.read_bytes())["people"]

    def count(frame: tuple[int, list[dict[str, Any]]]) -> int | None:
        return len(frame[1][0]["pose_keypoints_2d"]) // 3 if frame[1] else None

    def read(index: int, people: list[dict[str, Any]], keypoint_set: KeypointSet) -> ResultFrame:
        poses = _make_poses(
            keypoint_set,
            [person["pose_keypoints_2d"] for person in people],
            [[None] * 4 for _ in people],
            [None for _ in people],
            [person.get("person_id", [-1])[0] for person in people],
            missing_is_zero=True,
        )
        return ResultFrame(index, float("nan"), "", None, poses)

    keypoint_set, frames = _told_by_first_person(
        path, (load(file) for file in files), count, (_BODY_25, _COCO_18), _BODY_25
    )
    return Results(
        path, "openpose", keypoint_set, (read(index, people, keypoint_set) for index, people in frames)
    )


def _told_by_first_person(
    path: Path,
    frames: Iterator[T],
    count: Callable[[T], int | None],
    known: Iterable[KeypointSet],
    otherwise: KeypointSet,
) -> tuple[KeypointSet, Iterator[T]]:
    """The keypoint set that the first person's number of keypoints tells, and all the frames."""
    empty: list[T] = []
    for frame in frames:
        number = count(frame)
        if number is not None:
            return _set_of(number, path, known), chain(empty, [frame], frames)
        empty.append(frame)
    return otherwise, iter(empty)


class _JsonStream:
    """Values of JSON text one after the other, so that a long list is never in memory as a whole."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._read_more():
                return ""

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._read_more():
                    raise
                continue
            # A number that ends here may go on.
            if end < len(self._text) or not self._read_more():
                self._at = end
                return value

    def values(self) -> Iterator[Any]:
        """All values to the end."""
        while self.peek():
            yield self.value()

    def elements(self) -> Iterator[Any]:
        """The elements of the list that comes next."""
        self._take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self._take(",")
        self._take("]")

    def members_before(self, last: str) -> dict[str, Any]:
        """The members of the object that comes next up to that called ``last``, whose value is next then."""
        members: dict[str, Any] = {}
        self._take("{")
        while self.peek() != "}":
            name = self.value()
            self._take(":")
            if name == last:
                break
            members[name] = self.value()
            if self.peek() != "}":
                self._take(",")
        return members

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise json.JSONDecodeError(f"{character!r} expected", self._text, self._at)
        self._at += 1

    def _read_more(self) -> bool:
        # Twice what is there already, so that a long value is not decoded over and over.
        more = self._file.read(max(1 << 16, len(self._text) - self._at))
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(more)
