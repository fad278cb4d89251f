"""Keypoints as a CSV table, one row a person a frame."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager

from hgpose.atomic import atomic_text, output_errors
from hgpose.sinks.file import FileSink
from hgpose.sinks.record import Number, people, seconds
from hgpose.types import Frame, Poses


class CsvSink(FileSink):
    """Writes ``frame,time_s,person,score,x1,y1,x2,y2,<name>_x,<name>_y,<name>_score,...``.

    An image set has a column ``name`` after ``time_s``. A frame with nobody is one row with empty
    person fields. ``person`` is the id, empty where nobody follows people. Numbers are those of
    :func:`hgpose.sinks.record.people`, as in the JSON; one that is not finite is left empty.
    """

    @contextmanager
    def _opened(self) -> Iterator[None]:
        columns = ["frame", "time_s", "person", "score", "x1", "y1", "x2", "y2"]
        if self._run.is_image_set:
            columns.insert(2, "name")
        for name in self._run.keypoint_set.names:
            columns += [f"{name}_x", f"{name}_y", f"{name}_score"]
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
        rows: list[list[Number]] = [
            [
                person["id"],
                person["score"],
                *person["box"],
                *(v for point in person["keypoints"] for v in point),
            ]
            for person in people(poses)
        ]
        nobody: list[Number] = [None] * (6 + 3 * len(self._run.keypoint_set))
        with output_errors(self.path):
            self._table.writerows([*key, *row] for row in rows or [nobody])
