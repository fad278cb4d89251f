"""Keypoints that were saved before, by hgpose or by other tools, read frame by frame.

hgpose's JSON, JSON lines, CSV (wide and long), Parquet and npz; COCO results, AlphaPose, MMPose (its
inferencer on a video), OpenPose, Ultralytics' YOLO labels and DeepLabCut's CSV. Not TRC: it has no scores,
and those of other programs are points in space. Memory does not depend on their length. What was cut short
is refused, unless it was cut between two lines or files: nothing tells that more should follow.
Symbols: N people, K keypoints.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TextIO, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.keypoints import BODY19, COCO17, KEYPOINT_SETS, KeypointSet
from hgpose.sinks.openpose import BODY_25
from hgpose.sinks.parquet import import_pyarrow
from hgpose.sources.images import IMAGE_SUFFIXES, natural_key
from hgpose.sources.video import VIDEO_SUFFIXES
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
    model: ModelInfo = _UNKNOWN_MODEL

    @property
    def has_empty_frames(self) -> bool:
        """Whether a frame with nobody is told of, rather than left out."""
        return self.kind != "coco"

    @property
    def is_relative(self) -> bool:
        """Whether points and boxes are shares of the picture's width and height, from its corner, not px."""
        return self.kind == "yolo"


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


_NO_TRC = (
    "{path}: TRC cannot be read: it has no scores, and other programs' points are in space, not on pictures; "
    "give the JSON, CSV or Parquet of the same"
)


def _open(path: Path, stack: ExitStack) -> Results:
    if path.is_dir():
        return _open_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".trc":
        raise InputError(_NO_TRC.format(path=path))
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InputError(f"{path}: pictures, not keypoints; find people on them with hgpose video or images")
    if suffix == ".parquet":
        return _open_parquet(path, stack)
    if suffix == ".npz":
        return _open_npz(path, stack)
    file = stack.enter_context(path.open(encoding="utf-8", errors="surrogateescape", newline=""))
    if suffix == ".csv":
        return _open_csv(path, file)
    stream = _JsonStream(file)
    if suffix == ".jsonl":
        return _open_hgpose(path, stream.value(), stream.values())
    if stream.peek() == "{":
        header = stream.members_before("frames")
        return _open_hgpose(path, header, stream.last_elements(in_object=True))
    return _open_list(path, stream.last_elements())


def _open_folder(path: Path) -> Results:
    if (path / "labels").is_dir():
        return _open_yolo(path)
    if any(path.glob("*.trc")):
        raise InputError(_NO_TRC.format(path=path))
    if (part := next(path.rglob("part-*.parquet"), None)) is not None:
        raise InputError(f"{path}: a data set of many inputs; give the part of one, such as {part}")
    return _open_openpose(path)


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
    # Half a pair of surrogates, which JSON lets pass, is the name of no file and cannot be written.
    os.fsencode(value)
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


def _whole_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a text whose last one ends, too: else a number in it may have been cut."""
    for line in file:
        if not line.endswith(("\n", "\r")):
            raise InputError(
                f"{path}: its last line does not end: it was cut short; if it is whole, add a line break"
            )
        yield line


@contextmanager
def _reading_row(path: Path, table: Any) -> Iterator[None]:
    try:
        yield
    except (IndexError, ValueError) as error:
        raise InputError(f"{path}: line {table.line_num} is malformed ({error})") from error


def _numbers(cells: Iterable[str]) -> NDArray[np.float64]:
    return np.array([cell or "nan" for cell in cells], np.float64)


_LONG = ["frame", "time_s", "person", "keypoint", "x", "y", "score"]


def _open_csv(path: Path, file: TextIO) -> Results:
    table = csv.reader(_whole_lines(path, file))
    header = next(table, [])
    if header[:1] == ["scorer"]:
        return _open_dlc(path, table)
    name_column = header.index("name") if "name" in header else None
    if set(_LONG) <= set(header):
        return _open_csv_long(path, table, itemgetter(*map(header.index, _LONG)), name_column)
    names = tuple(c.removesuffix("_x") for c in header if c.endswith("_x"))
    wanted = ["frame", "time_s", "person", *_columns(names)]
    if not names or not set(wanted) <= set(header):
        raise InputError(
            f"{path}: neither hgpose's CSV, whose columns are frame, time_s, person, ..., nor DeepLabCut's"
        )
    pick = itemgetter(*(header.index(column) for column in wanted))

    def rows() -> Iterator[_Row]:
        for row in table:
            with _reading_row(path, table):
                frame, time_s, person, *values = pick(row)
                name = "" if name_column is None else row[name_column]
                found = _Row(int(frame), float(time_s), name, None, int(person or -1), _numbers(values))
            yield found

    keypoint_set = _named_set("unknown", names)
    return Results(path, "hgpose", keypoint_set, _frames_of_rows(rows(), keypoint_set))


def _open_csv_long(
    path: Path, table: Any, pick: Callable[[list[str]], tuple[str, ...]], name_column: int | None
) -> Results:
    def rows() -> Iterator[tuple[tuple[int, float, str], int, str, NDArray[np.float64]]]:
        for row in table:
            with _reading_row(path, table):
                frame, time_s, person, keypoint, *values = pick(row)
                key = (int(frame), float(time_s), "" if name_column is None else row[name_column])
                found = (key, int(person or -1), keypoint, _numbers(values))
            yield found

    # A frame, and the rows of its people.
    every = ((key, [row for row in group if row[2]]) for key, group in groupby(rows(), key=itemgetter(0)))

    def tell(frame: tuple[Any, list[Any]]) -> KeypointSet | None:
        names = tuple(dict.fromkeys(keypoint for _, _, keypoint, _ in frame[1]))
        return _named_set("unknown", names) if names else None

    def read(key: tuple[int, float, str], rows: list[Any], keypoint_set: KeypointSet) -> ResultFrame:
        index, time_s, name = key
        people = [rows[i : i + len(keypoint_set)] for i in range(0, len(rows), len(keypoint_set))]
        for person in people:
            if tuple(row[2] for row in person) != keypoint_set.names or len({row[1] for row in person}) > 1:
                raise ValueError(f"frame {index} has not all keypoints of each person in their order")
        poses = _make_poses(
            keypoint_set,
            [[row[3] for row in person] for person in people],
            [[None] * 4 for _ in people],
            [None for _ in people],
            [person[0][1] for person in people],
        )
        return ResultFrame(index, time_s, name, None, poses)

    keypoint_set, frames = _told_by_first_person(every, tell, BODY19)
    return Results(path, "hgpose", keypoint_set, (read(key, rows, keypoint_set) for key, rows in frames))


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


class _NpyStream:
    """An array of an archive, some rows at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        self._file = file
        self.shape, by_columns, self._dtype = headers[npy.read_magic(file)](file)
        if by_columns or self._dtype.hasobject:
            raise ValueError("an array of objects, or laid out by columns")

    def rows(self, count: int) -> NDArray[Any]:
        """The next rows."""
        shape = (count, *self.shape[1:])
        data = self._file.read(math.prod(shape) * self._dtype.itemsize)
        return np.frombuffer(data, self._dtype).reshape(shape)


def _open_npz(path: Path, stack: ExitStack) -> Results:
    archive = stack.enter_context(zipfile.ZipFile(path))
    each = ["frame", "time_s", "people", "id", "score", "box", "keypoints", "keypoint_names"]
    there = {name.removesuffix(".npy") for name in archive.namelist()}
    if not set(each) <= there:
        raise InputError(f"{path}: not hgpose's npz, whose arrays are {', '.join(each)}")
    each += there & {"name"}
    arrays = {name: _NpyStream(stack.enter_context(archive.open(f"{name}.npy"))) for name in each}
    names = arrays["keypoint_names"]
    keypoint_set = _named_set("unknown", tuple(map(_text, names.rows(names.shape[0]).tolist())))

    def frames() -> Iterator[ResultFrame]:
        people = 0
        for _ in range(arrays["frame"].shape[0]):
            index, time_s, count = (arrays[key].rows(1)[0].item() for key in ("frame", "time_s", "people"))
            name = arrays["name"].rows(1)[0].item() if "name" in arrays else ""
            points, boxes, scores, ids = (
                arrays[key].rows(count) for key in ("keypoints", "box", "score", "id")
            )
            people += count
            yield ResultFrame(
                index, time_s, name, None, _make_poses(keypoint_set, points, boxes, scores, ids)
            )
        if people != arrays["keypoints"].shape[0]:
            raise ValueError("its frames have not as many people as there are")

    return Results(path, "hgpose", keypoint_set, frames())


# Other tools.

_BODY_25 = _named_set("body_25", BODY_25)
#: OpenPose's COCO order is BODY_25 without the middle of the hips and the feet.
_COCO_18 = _named_set("coco_18", BODY_25[:8] + BODY_25[9:19])
_OPENPOSE_SETS = (_BODY_25, _COCO_18)
#: Numbers that OpenPose and YOLO add to the name of a video.
_OPENPOSE_FRAME, _YOLO_FRAME = re.compile(r"_(\d{12})$"), re.compile(r"_(\d+)$")
_OPENPOSE_ENDING = "_keypoints.json"


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
    def tell(frame: dict[str, Any]) -> KeypointSet | None:
        people = frame["instances"]
        return _set_of(len(people[0]["keypoints"]), path, KEYPOINT_SETS.values()) if people else None

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

    keypoint_set, frames = _told_by_first_person(frames, tell, COCO17)
    return Results(path, "mmpose", keypoint_set, (read(frame, keypoint_set) for frame in frames))


def _files_of_frames(folder: Path, ending: str) -> list[tuple[Path, str]]:
    """Files of a folder and those below, each with its path without ``ending``, in the order of frames."""
    names = [(file, file.relative_to(folder).as_posix()) for file in folder.rglob(f"*{ending}")]
    found = [(file, name.removesuffix(ending)) for file, name in names]
    # Images were sorted when they had a suffix.
    return sorted(found, key=lambda pair: natural_key(PurePosixPath(f"{pair[1]}.")))


def _open_openpose(path: Path) -> Results:
    files = _files_of_frames(path, _OPENPOSE_ENDING)
    if not files:
        raise InputError(f"{path}: no OpenPose results in it, whose names end in {_OPENPOSE_ENDING}")

    def load(file: Path, name: str) -> tuple[str, list[dict[str, Any]]]:
        with _reading(file):
            return name, json.loads(file.read_bytes())["people"]

    def tell(frame: tuple[str, list[dict[str, Any]]]) -> KeypointSet | None:
        people = frame[1]
        return _set_of(len(people[0]["pose_keypoints_2d"]) // 3, path, _OPENPOSE_SETS) if people else None

    def read(name: str, people: list[dict[str, Any]], keypoint_set: KeypointSet) -> ResultFrame:
        poses = _make_poses(
            keypoint_set,
            [person["pose_keypoints_2d"] for person in people],
            [[None] * 4 for _ in people],
            [None for _ in people],
            [person.get("person_id", [-1])[0] for person in people],
            missing_is_zero=True,
        )
        number = _OPENPOSE_FRAME.search(name)
        return ResultFrame(int(number[1]) if number else -1, float("nan"), name, None, poses)

    keypoint_set, frames = _told_by_first_person((load(*file) for file in files), tell, _BODY_25)
    return Results(
        path, "openpose", keypoint_set, (read(name, people, keypoint_set) for name, people in frames)
    )


def _open_yolo(path: Path) -> Results:
    named = _yolo_names(path / "data.yaml")

    def load(file: Path, name: str) -> tuple[Path, str, list[list[str]]]:
        with _reading(file), file.open(encoding="utf-8", newline="") as lines:
            return file, name, [line.split() for line in _whole_lines(file, lines)]

    def tell(frame: tuple[Path, str, list[list[str]]]) -> KeypointSet | None:
        people = frame[2]
        return _set_of((len(people[0]) - 5) // 3, path, KEYPOINT_SETS.values()) if people else None

    def read(file: Path, name: str, people: list[list[str]], keypoint_set: KeypointSet) -> ResultFrame:
        last = 5 + 3 * len(keypoint_set)
        with _reading(file):
            # After the points a score, or an id, or both.
            if any(not last <= len(cells) <= last + 2 for cells in people):
                raise ValueError(f"a line of {len(keypoint_set)} keypoints has {last} to {last + 2} numbers")
            boxes = np.array([cells[1:5] for cells in people], np.float64).reshape(-1, 4)
            poses = _make_poses(
                keypoint_set,
                np.array([cells[5:last] for cells in people], np.float64),
                np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2]),
                [None for _ in people],
                [int(cells[-1]) if len(cells) > last and cells[-1].isdecimal() else -1 for cells in people],
                missing_is_zero=True,
            )
            number = _YOLO_FRAME.search(name)
            return ResultFrame(int(number[1]) - 1 if number else -1, float("nan"), name, None, poses)

    every = (load(*file) for file in _files_of_frames(path / "labels", ".txt"))
    keypoint_set, frames = (named, every) if named else _told_by_first_person(every, tell, COCO17)
    return Results(path, "yolo", keypoint_set, (read(*frame, keypoint_set) for frame in frames))


def _yolo_names(file: Path) -> KeypointSet | None:
    """The keypoints that a description of a data set names as hgpose does; Ultralytics' own have no names."""
    if file.exists():
        with _reading(file):
            for line in file.read_text(encoding="utf-8").splitlines():
                key, _, value = line.partition(":")
                if key == "kpt_names" and value.strip().startswith("{"):
                    return _named_set("unknown", tuple(map(_text, json.loads(value)["0"])))
    return None


def _open_dlc(path: Path, table: Any) -> Results:
    levels: dict[str, list[str]] = {}
    for row in table:
        levels[row[0]] = row[1:]
        if row[0] == "coords":
            break
    parts, coords = levels.get("bodyparts", []), levels.get("coords", [])
    if not parts or coords != ["x", "y", "likelihood"] * (len(parts) // 3):
        raise InputError(f"{path}: not DeepLabCut's predictions, which are x, y, likelihood of bodyparts")
    # That of one animal does not name it.
    individuals = list(dict.fromkeys(levels.get("individuals", [])))
    count = len(individuals) or 1
    names = tuple(parts[: len(parts) // count : 3])
    if tuple(parts[::3]) != names * count:
        raise InputError(f"{path}: its individuals have not all the same bodyparts")
    numbers = [re.search(r"\d+$", individual) for individual in individuals]
    ids = [int(number[0]) for number in numbers if number]
    if len(set(ids)) < len(individuals):
        ids = list(range(1, len(individuals) + 1))
    keypoint_set = _named_set("unknown", names)

    def frames() -> Iterator[ResultFrame]:
        for key, *cells in table:
            with _reading_row(path, table):
                people = _numbers(cells).reshape(count, len(names), 3)
            seen = np.flatnonzero(~np.isnan(people).all(axis=(1, 2)))
            poses = _make_poses(
                keypoint_set,
                people[seen],
                [[None] * 4 for _ in seen],
                [None for _ in seen],
                [ids[i] if ids else -1 for i in seen],
            )
            index, name = (int(key), "") if key.isdecimal() else (-1, key)
            yield ResultFrame(index, float("nan"), name, None, poses)

    return Results(path, "dlc", keypoint_set, frames())


def _told_by_first_person(
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

    def last_elements(self, in_object: bool = False) -> Iterator[Any]:
        """The elements of the list that comes next, with which the text ends, or the object it is in."""
        self._take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self._take(",")
        self._take("]")
        if in_object:
            while self.peek() == ",":
                self._take(",")
                self.value()
                self._take(":")
                self.value()
            self._take("}")
        if self.peek():
            raise json.JSONDecodeError("end expected", self._text, self._at)

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
