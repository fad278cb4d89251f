"""Keypoints as a CSV table, one row a keypoint a person a frame."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager

from hgpose.atomic import atomic_text, output_errors
from hgpose.sinks.file import FileSink
from hgpose.sinks.record import Number, people, seconds
from hgpose.types import Frame, Poses


class CsvLongSink(FileSink):
    """Writes ``frame,time_s,person,keypoint,x,y,score``.

    An image set has a column ``name`` after ``time_s``. A frame with nobody is one row with the rest
    empty. ``person`` is the id, empty where nobody follows people: there, each K rows are a person.
    """

    @contextmanager
    def _opened(self) -> Iterator[None]:
        columns = ["frame", "time_s", "person", "keypoint", "x", "y", "score"]
        if self._run.is_image_set:
            columns.insert(2, "name")
        with atomic_text(self.path, self._run.overwrite) as file:
            self._table = csv.writer(file, lineterminator="\n")
            with output_errors(self.path):
                self._table.writerow(columns)
            yield

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds the rows of one frame; see :meth:`FileSink.write`."""
        key: list[str | Number] = [frame.index, seconds(frame)]
        if self._run.is_image_set:
            key.append(frame.name)
        names = self._run.keypoint_set.names
        rows: list[list[str | Number]] = [
            [person["id"], name, *point]
            for person in people(poses)
            for name, point in zip(names, person["keypoints"], strict=True)
        ]
        with output_errors(self.path):
            self._table.writerows([*key, *row] for row in rows or [[None] * 5])
