"""hgpose's own kinds: JSON, JSON lines, CSV (wide and long), Parquet and npz."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.keypoints import BODY19, KeypointSet
from hgpose.results.others import open_dlc
from hgpose.results.record import (
    UNKNOWN,
    UNKNOWN_MODEL,
    ResultFrame,
    Results,
    check_size,
    checked_text,
    make_poses,
    named_set,
    parsed,
    reading_row,
    told_by_first_person,
    whole_lines,
)
from hgpose.sinks.parquet import import_pyarrow
from hgpose.types import ModelInfo, SourceInfo


def open_hgpose(path: Path, header: dict[str, Any], frames: Iterator[dict[str, Any]]) -> Results:
    """JSON or JSON lines of hgpose."""
    if header.get("schema") != "hgpose/1":
        raise InputError(UNKNOWN.format(path=path))
    keypoint_set = _header_set(header)
    return Results(
        path,
        "hgpose",
        keypoint_set,
        (_hgpose_frame(frame, keypoint_set) for frame in frames),
        _header_info(header),
        _header_model(header),
    )


def _header_set(header: dict[str, Any]) -> KeypointSet:
    names = tuple(map(checked_text, header["keypoints"]))
    return named_set(checked_text(header.get("keypoint_set", "unknown")), names, header.get("skeleton", ()))


def _header_info(header: dict[str, Any]) -> SourceInfo | None:
    source = header.get("source")
    if source is None:
        return None
    name, frames = checked_text(source["name"]), source.get("frames")
    if "fps_exact" not in source:
        return SourceInfo(name, 0, 0, None, frames)
    size_wh, fps = (source["width"], source["height"]), Fraction(checked_text(source["fps_exact"]))
    check_size(size_wh)
    if fps <= 0:
        raise ValueError(f"no frame rate: {fps}")
    return SourceInfo(name, *size_wh, fps, frames)


def _header_model(header: dict[str, Any]) -> ModelInfo:
    model = header.get("model")
    return ModelInfo(*(checked_text(model[key]) for key in ("name", "sha256"))) if model else UNKNOWN_MODEL


def _hgpose_frame(frame: dict[str, Any], keypoint_set: KeypointSet) -> ResultFrame:
    size_wh = (frame["width"], frame["height"]) if "width" in frame else None
    people = frame["people"]
    poses = make_poses(
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
        poses = make_poses(
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


_LONG = ["frame", "time_s", "person", "keypoint", "x", "y", "score"]


def open_csv(path: Path, file: TextIO) -> Results:
    """CSV of hgpose, wide or long, or of DeepLabCut."""
    table = csv.reader(whole_lines(path, file))
    header = next(table, [])
    if header[:1] == ["scorer"]:
        return open_dlc(path, table)
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
            with reading_row(path, table):
                frame, time_s, person, *values = pick(row)
                name = "" if name_column is None else row[name_column]
                found = _Row(int(frame), float(time_s), name, None, int(person or -1), parsed(values))
            yield found

    keypoint_set = named_set("unknown", names)
    return Results(path, "hgpose", keypoint_set, _frames_of_rows(rows(), keypoint_set))


def _open_csv_long(
    path: Path, table: Any, pick: Callable[[list[str]], tuple[str, ...]], name_column: int | None
) -> Results:
    def rows() -> Iterator[tuple[tuple[int, float, str], int, str, NDArray[np.float64]]]:
        for row in table:
            with reading_row(path, table):
                frame, time_s, person, keypoint, *values = pick(row)
                key = (int(frame), float(time_s), "" if name_column is None else row[name_column])
                found = (key, int(person or -1), keypoint, parsed(values))
            yield found

    # A frame, and the rows of its people.
    every = ((key, [row for row in group if row[2]]) for key, group in groupby(rows(), key=itemgetter(0)))

    def tell(frame: tuple[Any, list[Any]]) -> KeypointSet | None:
        names = tuple(dict.fromkeys(keypoint for _, _, keypoint, _ in frame[1]))
        return named_set("unknown", names) if names else None

    def read(key: tuple[int, float, str], rows: list[Any], keypoint_set: KeypointSet) -> ResultFrame:
        index, time_s, name = key
        people = [rows[i : i + len(keypoint_set)] for i in range(0, len(rows), len(keypoint_set))]
        for person in people:
            if tuple(row[2] for row in person) != keypoint_set.names or len({row[1] for row in person}) > 1:
                raise ValueError(f"frame {index} has not all keypoints of each person in their order")
        poses = make_poses(
            keypoint_set,
            [[row[3] for row in person] for person in people],
            [[None] * 4 for _ in people],
            [None for _ in people],
            [person[0][1] for person in people],
        )
        return ResultFrame(index, time_s, name, None, poses)

    keypoint_set, frames = told_by_first_person(every, tell, BODY19)
    return Results(path, "hgpose", keypoint_set, (read(key, rows, keypoint_set) for key, rows in frames))


def open_parquet(path: Path, stack: ExitStack) -> Results:
    """Parquet of hgpose."""
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


def open_npz(path: Path, stack: ExitStack) -> Results:
    """npz of hgpose."""
    archive = stack.enter_context(zipfile.ZipFile(path))
    each = ["frame", "time_s", "people", "id", "score", "box", "keypoints", "keypoint_names"]
    there = {name.removesuffix(".npy") for name in archive.namelist()}
    if not set(each) <= there:
        raise InputError(f"{path}: not hgpose's npz, whose arrays are {', '.join(each)}")
    each += there & {"name"}
    arrays = {name: _NpyStream(stack.enter_context(archive.open(f"{name}.npy"))) for name in each}
    names = arrays["keypoint_names"]
    keypoint_set = named_set("unknown", tuple(map(checked_text, names.rows(names.shape[0]).tolist())))

    def frames() -> Iterator[ResultFrame]:
        people = 0
        for _ in range(arrays["frame"].shape[0]):
            index, time_s, count = (arrays[key].rows(1)[0].item() for key in ("frame", "time_s", "people"))
            name = arrays["name"].rows(1)[0].item() if "name" in arrays else ""
            points, boxes, scores, ids = (
                arrays[key].rows(count) for key in ("keypoints", "box", "score", "id")
            )
            people += count
            yield ResultFrame(index, time_s, name, None, make_poses(keypoint_set, points, boxes, scores, ids))
        if people != arrays["keypoints"].shape[0]:
            raise ValueError("its frames have not as many people as there are")

    return Results(path, "hgpose", keypoint_set, frames())
