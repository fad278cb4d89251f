"""Keypoints as a Parquet table, one row a person a frame."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hgpose.atomic import atomic_path, output_errors
from hgpose.errors import OptionsError
from hgpose.sinks.document import document_header
from hgpose.sinks.file import FileSink
from hgpose.sinks.record import Person, Run, people, seconds
from hgpose.types import Frame, Poses

#: Rows that are written together. More are read faster, and held in memory until they are written.
_ROWS = 8192


class ParquetSink(FileSink):
    """Writes the columns of the wide CSV, typed; a missing value is null.

    ``frame`` and ``person`` are int64, the rest float64. An image set has the columns ``name``, ``width``
    and ``height`` after ``time_s``. The metadata's ``hgpose`` is the header of the JSON. Bytes of a file's
    name that are no text become U+FFFD.

    Args:
        path, run: as of :class:`FileSink`.
        dataset: it is a part of a data set: all parts have the columns of an image set.

    Raises:
        OptionsError: pyarrow is not installed.
    """

    def __init__(self, path: Path, run: Run, dataset: bool = False) -> None:
        super().__init__(path, run)
        self._has_names = run.is_image_set or dataset

    @contextmanager
    def _opened(self) -> Iterator[None]:
        pa, pq = import_pyarrow()
        text, whole, number = pa.string(), pa.int64(), pa.float64()
        numbers = ["score", "x1", "y1", "x2", "y2"]
        numbers += [f"{n}_{v}" for n in self._run.keypoint_set.names for v in ("x", "y", "score")]
        columns = {"frame": whole, "time_s": number}
        if self._has_names:
            columns |= {"name": text, "width": whole, "height": whole}
        columns |= {"person": whole} | dict.fromkeys(numbers, number)
        header = json.dumps(document_header(self._run))
        self._schema = pa.schema(list(columns.items()), {"hgpose": header})
        # Frame, width, height; time, person's values.
        self._integers = np.empty((_ROWS, 3), np.int64)
        self._floats = np.empty((_ROWS, 1 + len(numbers)))
        self._names: list[str | None] = []
        self._persons: list[int | None] = []
        with atomic_path(self.path, self._run.overwrite) as part:
            with output_errors(self.path):
                file = part.open("wb")
                self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
            try:
                yield
                with output_errors(self.path):
                    self._flush()
                    self._writer.close()
                    file.close()
            except BaseException:
                # What a full disk did not take is removed anyway.
                for opened in (self._writer, file):
                    with suppress(OSError):
                        opened.close()
                raise

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds the rows of one frame; see :meth:`FileSink.write`."""
        height, width = frame.image.shape[:2]
        nobody: list[Person | None] = [None]
        for person in people(poses) or nobody:
            if len(self._persons) == _ROWS:
                with output_errors(self.path):
                    self._flush()
            row = len(self._persons)
            self._integers[row] = frame.index, width, height
            self._floats[row] = np.nan
            self._floats[row, 0] = seconds(frame)
            if person is not None:
                points = [v for point in person["keypoints"] for v in point]
                self._floats[row, 1:] = np.array([person["score"], *person["box"], *points], np.float64)
            self._persons.append(person["id"] if person is not None else None)
            if self._has_names:
                name = os.fsencode(frame.name).decode("utf-8", "replace")
                self._names.append(name or None)

    def _flush(self) -> None:
        """Writes the rows that wait."""
        pa, _ = import_pyarrow()
        rows = len(self._persons)
        frames, widths, heights = self._integers[:rows].T
        times, *values = self._floats[:rows].T
        columns = [frames, times]
        if self._has_names:
            columns += [self._names, widths, heights]
        columns += [self._persons, *values]
        arrays = [
            pa.array(column, field.type, from_pandas=True)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._names, self._persons = [], []


def import_pyarrow() -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        OptionsError: it is not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise OptionsError("Parquet needs pyarrow; run: pip install 'hgpose[parquet]'") from error
