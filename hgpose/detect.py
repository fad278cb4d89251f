"""Who is on a frame, and where: the detector protocol and its kinds."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.geometry import MAX_PX, CropTransform
from hgpose.models.finder import PersonFinder
from hgpose.network import Network, warp
from hgpose.types import Detections, Frame

#: Two boxes that overlap by more than this are the same person.
_SAME_PERSON_IOU = 0.6

#: Boxes that score less than this share of the threshold are not even faint: the surest pose would not make
#: up for it (:meth:`hgpose.estimate.Estimator.is_person`).
_FAINT = 0.6

#: Scores of boxes are float32.
_MAX_SCORE = float(np.finfo(np.float32).max)

#: The category of people in COCO's detections.
_PERSON = 1

#: Another person must be so much better than the one chosen before.
_CHANGE = 1.25


class Detector(Protocol):
    """Finds people on frames.

    Attributes:
        name: as the user chose it.
        proposes: whether its boxes are guesses, of which some may hold nobody.
        threshold: a box that scores less is faint: it shows a person only if the pose network sees one.
    """

    name: str
    proposes: bool
    threshold: float

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        """The people of each frame, faint ones too, best score first."""
        ...


def iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of every pair: boxes ``(N, 4)`` and ``(M, 4)`` xyxy to ``(N, M)``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod((high - low).clip(0), axis=-1, dtype=np.float64)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=-1, dtype=np.float64) for x in (a, b))
    return np.asarray(common / np.maximum(area_a[:, None] + area_b[None] - common, 1e-9))


def suppress(boxes: NDArray[np.floating], limit: float) -> list[int]:
    """Non-maximum suppression: rows of ``boxes`` ``(N, 4)``, best first, that no better one overlaps."""
    overlap = iou(boxes, boxes)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not (overlap[i, kept] > limit).any():
            kept.append(i)
    return kept


def choose(
    boxes: NDArray[np.float32],
    ids: NDArray[np.int64],
    image_wh: tuple[int, int],
    person: str,
    max_people: int | None,
    before: int = -1,
) -> NDArray[np.int64]:
    """The rows of the people asked for, in their order.

    Args:
        boxes: ``(N, 4)`` xyxy image px.
        ids: ``(N,)``, -1 where nobody follows people.
        image_wh: size of the image, px.
        person: ``all``, ``largest`` (box), ``center`` (box nearest to the image's centre) or ``id:N``.
        max_people: the first so many of these.
        before: id of the one chosen on the frame before, who stays unless another is clearly better.
    """
    rows = np.arange(len(boxes))
    if person.startswith("id:"):
        rows = np.flatnonzero(ids == int(person.removeprefix("id:")))
    elif person != "all" and len(boxes):
        low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
        if person == "largest":
            cost = 1 / np.maximum(np.prod(high - low, axis=1), 1e-9)
        else:
            middle = (np.array(image_wh) - 1) / 2
            cost = np.linalg.norm((low + high) / 2 - middle, axis=1)
        kept = (ids == before) & (before >= 0)
        rows = np.array([np.where(kept, cost / _CHANGE, cost).argmin()])
    return rows[:max_people]


class PersonDetector:
    """The trained person finder.

    Args:
        network: with a card for the task ``person``.
        threshold: boxes that score lower are faint, much lower ones left out; by default as the card says.
    """

    name = "person"
    proposes = True

    def __init__(self, network: Network, threshold: float | None = None) -> None:
        self.network, self.card = network, network.card
        self.threshold = self.card.threshold if threshold is None else threshold

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        """The people of each frame, best score first. Frames of one size go through the network at once."""
        found: list[Detections | None] = [None] * len(frames)
        by_shape: dict[Any, list[int]] = {}
        for i, frame in enumerate(frames):
            by_shape.setdefault(frame.image.shape, []).append(i)
        for (h, w, _), rows in by_shape.items():
            transform = CropTransform.letterbox((w, h), self.card.input_px, 64)
            crops = warp([frames[i].image for i in rows], [transform] * len(rows), self.network.device)
            boxes, scores = (t.cpu().numpy() for t in PersonFinder.decode(*self.network(crops)))
            for i, box, score in zip(rows, boxes, scores, strict=True):
                kept = score >= _FAINT * self.threshold
                found[i] = self._people(box[kept], score[kept], transform, (w, h))
        return [f for f in found if f is not None]

    @staticmethod
    def _people(
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        transform: CropTransform,
        image_wh: tuple[int, int],
    ) -> Detections:
        corners = transform.to_image(boxes.reshape(-1, 2, 2).astype(np.float64))
        limit = np.array(image_wh) - 0.5
        image_boxes = corners.clip(-0.5, limit).reshape(-1, 4).astype(np.float32)
        # A box in the padding of the letterbox shows nothing of the image.
        on_image = (image_boxes[:, 2:] > image_boxes[:, :2]).all(1)
        image_boxes, scores = image_boxes[on_image], scores[on_image]
        kept = suppress(image_boxes, _SAME_PERSON_IOU)
        return Detections(image_boxes[kept], scores[kept].astype(np.float32))


class WholeFrame:
    """Takes every frame for one person who fills it."""

    name = "whole-frame"
    proposes = True
    threshold = 0.0

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        """One box a frame."""
        return [
            Detections(
                np.array([[-0.5, -0.5, f.image.shape[1] - 0.5, f.image.shape[0] - 0.5]], np.float32),
                np.ones(1, np.float32),
            )
            for f in frames
        ]


class GivenBoxes:
    """The user's own boxes, from :func:`read_boxes`.

    Args:
        by_index: people of frames by their index, for videos.
        by_name: people of frames by their name, for image sets.
        name: as the user chose it.
    """

    proposes = False
    # Whatever score a user gives a box, it is meant.
    threshold = -math.inf

    def __init__(
        self, by_index: Mapping[int, Detections], by_name: Mapping[str, Detections], name: str = "boxes"
    ) -> None:
        self._by_index, self._by_name, self.name = by_index, by_name, name

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        """The boxes given for each frame.

        Raises:
            InputError: they are all of images and this is a video, or the other way round.
        """
        if not all(self._by_name if f.name else self._by_index for f in frames):
            raise InputError(
                f"{self.name}: boxes belong to the frames of a video by number, to images by name; "
                "the file has the other"
            )
        nobody = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        return [
            self._by_name.get(f.name, nobody) if f.name else self._by_index.get(f.index, nobody)
            for f in frames
        ]

    def key(self, frame: Frame) -> int | str | None:
        """By what the boxes of a frame are found; ``None`` if it has none."""
        if frame.name:
            return frame.name if frame.name in self._by_name else None
        return frame.index if frame.index in self._by_index else None

    def unmatched(self, taken: Collection[int | str], is_set: bool) -> str | None:
        """Which boxes were given for nothing, in words, or ``None``.

        Args:
            taken: at least the keys of all frames that were taken and have boxes.
            is_set: the frames are images with names.

        Raises:
            InputError: all were.
        """
        given: Mapping[int, Detections] | Mapping[str, Detections] = (
            self._by_name if is_set else self._by_index
        )
        lost = [key for key in given if key not in taken]
        if not lost:
            return None
        one = f"image {lost[0]}" if is_set else f"frame {lost[0]}"
        if len(lost) == len(given):
            how = "by their path below the input folder" if is_set else "from 0, before any --every"
            raise InputError(
                f"{self.name}: not one of its boxes belongs to what was taken: there was no {one}; "
                f"{'images are named' if is_set else 'frames are counted'} {how}"
            )
        what = "images" if is_set else "frames"
        return f"{self.name}: the boxes of {len(lost)} of {len(given)} {what} had no use: there was no {one}"


def read_boxes(path: Path) -> GivenBoxes:
    """Reads boxes from a file.

    Either CSV with the columns ``x1,y1,x2,y2``, optionally ``score``, and ``frame`` (0-based, for a
    video) or ``name`` (an image's path relative to the input folder); ``hgpose``'s own CSV is one such
    file. Or COCO-style JSON, whose images are matched by ``file_name`` (if a category is called ``person``,
    only that counts), or COCO's list of detections: their ``image_id`` is a frame's number or an image's
    name, and only those of ``category_id`` 1 are people.

    Raises:
        InputError: missing, not such a file, or a box that is none.
    """
    rows = _coco_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    by_index: dict[int, list[tuple[float, ...]]] = {}
    by_name: dict[str, list[tuple[float, ...]]] = {}
    for where, key, (x1, y1, x2, y2, score) in rows:
        far = np.abs([x1, y1, x2, y2]).max()
        if not (far <= MAX_PX and abs(score) <= _MAX_SCORE and x2 > x1 and y2 > y1):
            raise InputError(
                f"{path}: {where}: not a box with x1 < x2 and y1 < y2, within {MAX_PX} px, and with a score"
            )
        if isinstance(key, int):
            by_index.setdefault(key, []).append((x1, y1, x2, y2, score))
        else:
            by_name.setdefault(key, []).append((x1, y1, x2, y2, score))
    if not (by_index or by_name):
        raise InputError(f"{path}: no boxes of people in it")

    def detections(boxes: list[tuple[float, ...]]) -> Detections:
        # Best first, as of every detector; equally good ones in the order given.
        table = np.array(sorted(boxes, key=lambda box: -box[4]), dtype=np.float32)
        return Detections(np.ascontiguousarray(table[:, :4]), np.ascontiguousarray(table[:, 4]))

    return GivenBoxes(
        {key: detections(boxes) for key, boxes in by_index.items()},
        {key: detections(boxes) for key, boxes in by_name.items()},
        f"boxes:{path}",
    )


_Row = tuple[str, int | str, tuple[float, float, float, float, float]]


def _csv_rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            columns = set(reader.fieldnames)
            if not {"x1", "y1", "x2", "y2"} <= columns or not columns & {"frame", "name"}:
                raise InputError(f"{path}: needs the columns x1, y1, x2, y2 and either frame or name")
            for number, row in enumerate(reader, start=2):
                if row["x1"] is not None and not row["x1"].strip():
                    # A frame without people, as in hgpose's own CSV.
                    continue
                key = (row.get("name") or "").strip() or int(row["frame"])
                x1, y1, x2, y2 = (float(row[c]) for c in ("x1", "y1", "x2", "y2"))
                yield f"line {number}", key, (x1, y1, x2, y2, float(row.get("score") or 1))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of boxes") from None
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as CSV with boxes ({error})") from error


def _coco_rows(path: Path) -> Iterator[_Row]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for where, entry, key in _coco_entries(document):
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise ValueError(f"{where} is of {key!r}, no image")
            x, y, w, h, score = (float(v) for v in (*entry["bbox"], entry.get("score", 1)))
            yield where, key, (x, y, x + w, y + h, score)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of boxes") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as COCO JSON with boxes ({error!r})") from error


def _coco_entries(document: Any) -> Iterator[tuple[str, Mapping[str, Any], int | str]]:
    """Annotations or detections of people: what each is called in messages, itself, its frame or image."""
    if isinstance(document, list):
        for number, entry in enumerate(document):
            if entry.get("category_id", _PERSON) == _PERSON:
                yield f"detection {number}", entry, entry["image_id"]
        return
    names = {image["id"]: image["file_name"] for image in document["images"]}
    people = {kind["id"] for kind in document.get("categories") or () if kind.get("name") == "person"}
    for entry in document["annotations"]:
        if not entry.get("iscrowd") and (not people or entry.get("category_id") in people):
            yield f"annotation {entry.get('id')}", entry, names[entry["image_id"]]
