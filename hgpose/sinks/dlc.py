"""Keypoints as DeepLabCut's CSV for several individuals."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import numpy as np

from hgpose.atomic import atomic_text, output_errors
from hgpose.sinks.file import FileSink
from hgpose.sinks.spool import Spool
from hgpose.types import Frame, Poses


class DlcSink(FileSink):
    """Writes the header rows ``scorer, individuals, bodyparts, coords``, then a row a frame.

    x, y and likelihood of every keypoint of every individual; what is missing is NaN. The index is
    the number of the frame, or the path of the image. Individuals are ``individual<id>``; where nobody
    follows people they are numbered by their place in each frame. The scorer is the model.
    """

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with (
            atomic_text(self.path, self._run.overwrite) as file,
            Spool(self.path, len(self._run.keypoint_set)) as self._spool,
        ):
            self._individuals: set[int] = set()
            yield
            with output_errors(self.path):
                self._write_table(file)

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds one frame; see :meth:`FileSink.write`."""
        self._individuals.update(self._spool.add(frame, poses))

    def _write_table(self, file: TextIO) -> None:
        table = csv.writer(file, lineterminator="\n")
        names = self._run.keypoint_set.names
        # A table needs columns even where nobody was seen.
        individuals = sorted(self._individuals) or [1]
        columns = [
            (f"individual{i}", name, coord)
            for i in individuals
            for name in names
            for coord in ("x", "y", "likelihood")
        ]
        table.writerow(["scorer", *[f"hgpose_{self._run.model.name}"] * len(columns)])
        for level, title in enumerate(("individuals", "bodyparts", "coords")):
            table.writerow([title, *(column[level] for column in columns)])
        place = {number: i for i, number in enumerate(individuals)}
        for frame in self._spool:
            values = np.full((len(individuals), 3 * len(names)), np.nan)
            for number, person in zip(frame.numbers, frame.people, strict=True):
                values[place[number]] = person["keypoints"].ravel()
            key = frame.name if self._run.is_image_set else frame.index
            # Pandas takes a first row of empty cells for a title.
            table.writerow([key, *("NaN" if np.isnan(v) else v for v in values.ravel().tolist())])
