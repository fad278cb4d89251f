"""Keypoints as Ultralytics' YOLO pose labels: a folder with a text file a frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import numpy as np

from hgpose.sinks.folder import FolderSink
from hgpose.sinks.record import Person, people
from hgpose.types import Frame, Poses

#: A millionth of the side of a picture is less than a hundredth of a pixel.
_DIGITS = 6


class YoloSink(FolderSink):
    """Writes ``data.yaml`` and ``labels/<stem>_<frame, from 1>.txt``, or ``labels/<image>.txt`` for an image.

    A person a line: ``0 xc yc w h``, ``x y score`` for each keypoint of the set, the id where people are
    followed. All but score and id are shares of the picture's width or height, from its upper left corner.
    As YOLO's loader takes nothing beyond the picture, boxes end at its border, keypoints beyond it are
    0 0 0 as are those not finite, and a person whose box is not on the picture is left out. Who has none, as
    in results of other kinds, has the one around the keypoints. A frame with nobody is an empty file.
    """

    @contextmanager
    def _opened(self) -> Iterator[None]:
        keypoint_set = self._run.keypoint_set
        with super()._opened():
            # What YOLO wants to know of a data set; JSON is YAML, too.
            lines = {
                "path": ".",
                "names": {"0": "person"},
                "kpt_shape": [len(keypoint_set), 3],
                "flip_idx": list(keypoint_set.flip_order),
                "kpt_names": {"0": list(keypoint_set.names)},
            }
            self._write_text("data.yaml", "".join(f"{k}: {json.dumps(v)}\n" for k, v in lines.items()))
            yield

    def write(self, frame: Frame, poses: Poses) -> None:
        """Writes the file of one frame; see :meth:`FileSink.write`."""
        if self._run.is_image_set:
            name = self._image_file(PurePosixPath("labels", frame.name), ".txt")
        else:
            name = f"labels/{self._stem}_{frame.index + 1}.txt"
        self._write_text(name, "".join(_lines(people(poses), frame.image.shape[1::-1])))


def _lines(found: list[Person], size_wh: tuple[int, ...]) -> Iterator[str]:
    """A line a person."""
    size = np.array(size_wh, np.float64)
    for person in found:
        # The corner of the picture is half a pixel from the centre of its first pixel.
        points = np.array(person["keypoints"], np.float64)
        corners = np.array(person["box"], np.float64).reshape(2, 2)
        finite = points[np.isfinite(points).all(axis=1), :2]
        if not np.isfinite(corners).all() and len(finite):
            corners = np.array([finite.min(axis=0), finite.max(axis=0)])
        corners = np.clip((corners + 0.5) / size, 0, 1)
        points[:, :2] = (points[:, :2] + 0.5) / size
        there = ((points >= 0) & (points <= 1)).all(axis=1)
        points[~there] = 0
        if (corners[1] > corners[0]).all():
            numbers = [*corners.mean(axis=0), *(corners[1] - corners[0]), *points.ravel()]
            identity = "" if person["id"] is None else f" {person['id']}"
            yield f"0 {' '.join(f'{v:.{_DIGITS}g}' for v in numbers)}{identity}\n"
