"""Keypoints as the JSON lists of other tools: COCO results, AlphaPose, MMPose.

All in the order of COCO's 17 keypoints, which those tools expect; one that is missing is 0, 0, 0. An
element a line, so that a file of any length can be read line by line.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgpose.atomic import atomic_text, output_errors
from hgpose.keypoints import COCO17
from hgpose.sinks.file import FileSink
from hgpose.sinks.order import Order
from hgpose.sinks.record import Number, Person, Run, people
from hgpose.types import Frame, Poses


class _ListSink(FileSink):
    def __init__(self, path: Path, run: Run) -> None:
        super().__init__(path, run)
        self._coco = Order(COCO17.names, run.keypoint_set)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with atomic_text(self.path, self._run.overwrite) as file:
            self._file = file
            self._lead = "[\n"
            yield
            with output_errors(self.path):
                file.write("\n]\n" if self._lead == ",\n" else "[]\n")

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds the elements of one frame; see :meth:`FileSink.write`."""
        for element in self._elements(frame, people(poses)):
            with output_errors(self.path):
                self._file.write(self._lead + json.dumps(element, separators=(",", ":"), allow_nan=False))
            self._lead = ",\n"

    @abstractmethod
    def _elements(self, frame: Frame, found: list[Person]) -> list[dict[str, Any]]:
        """What the list holds of one frame."""

    def _flat(self, person: Person) -> list[float]:
        return [v for point in self._coco(person["keypoints"]) for v in point]


class CocoSink(_ListSink):
    """COCO results, an element a person; the third number of a keypoint is its score.

    ``image_id`` is the number of the frame, for an image set its position in it; there ``file_name``
    tells which image that is.
    """

    def _elements(self, frame: Frame, found: list[Person]) -> list[dict[str, Any]]:
        name = {"file_name": frame.name} if self._run.is_image_set else {}
        return [
            {
                "image_id": frame.index,
                "category_id": 1,
                "keypoints": self._flat(p),
                "score": p["score"] or 0.0,
            }
            | name
            for p in found
        ]


class AlphaPoseSink(_ListSink):
    """AlphaPose's results, an element a person; ``idx`` is the id, left out where nobody follows people.

    ``image_id`` is the name of the image, ``<frame>.jpg`` for a video, as AlphaPose numbers its frames.
    ``box`` is x, y, width, height, left out where it is not finite.
    """

    def _elements(self, frame: Frame, found: list[Person]) -> list[dict[str, Any]]:
        image = frame.name if self._run.is_image_set else f"{frame.index}.jpg"
        elements = []
        for person in found:
            element: dict[str, Any] = {
                "image_id": image,
                "category_id": 1,
                "keypoints": self._flat(person),
                "score": person["score"] or 0.0,
            }
            if (box := _finite(person["box"])) is not None:
                x1, y1, x2, y2 = box
                element["box"] = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            if person["id"] is not None:
                element["idx"] = person["id"]
            elements.append(element)
        return elements


class MmposeSink(_ListSink):
    """The predictions of MMPose's inferencer on a video, an element a frame.

    ``track_id`` is the id, left out where nobody follows people. The frames of an image set say their
    ``file_name``.
    """

    def _elements(self, frame: Frame, found: list[Person]) -> list[dict[str, Any]]:
        element: dict[str, Any] = {"frame_id": frame.index}
        if self._run.is_image_set:
            element["file_name"] = frame.name
        element["instances"] = [self._instance(person) for person in found]
        return [element]

    def _instance(self, person: Person) -> dict[str, Any]:
        points = self._coco(person["keypoints"])
        instance: dict[str, Any] = {
            "keypoints": [[x, y] for x, y, _ in points],
            "keypoint_scores": [score for _, _, score in points],
        }
        if (box := _finite(person["box"])) is not None:
            instance |= {"bbox": [box], "bbox_score": person["score"] or 0.0}
        if person["id"] is not None:
            instance["track_id"] = person["id"]
        return instance


def _finite(box: list[Number]) -> list[float] | None:
    values = [v for v in box if v is not None]
    return values if len(values) == 4 else None
