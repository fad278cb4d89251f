"""Annotated images from COCO-style JSON, as arrays ready for training and scoring.

Symbols: M people, K keypoints of the wanted set. Points are image px, pixel centres at integers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.keypoints import KeypointSet

#: Share of trust in a joint whose ``keypoint_source`` says that human and teacher disagree.
_DISPUTED = 0.3
_SOURCE_WEIGHT = np.array([0.0, 1.0, 1.0, 1.0, _DISPUTED, 1.0], dtype=np.float32)


@dataclass(frozen=True)
class PoseSet:
    """M annotated people.

    Attributes:
        names: the K keypoints' names.
        files: M image files.
        image_ids, annotation_ids: ``(M,)`` int64 as in the file they came from.
        boxes: ``(M, 4)`` float32 xyxy image px.
        points: ``(M, K, 2)`` float32 image px.
        visibility: ``(M, K)`` int8: 0 not labelled, 1 labelled but occluded, 2 visible.
        weights: ``(M, K)`` float32, trust in each label; 0 exactly where it is not labelled.
        areas: ``(M,)`` float32 px^2, as object keypoint similarity wants it.
        empty_files: images that show no person.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    image_ids: NDArray[np.int64]
    annotation_ids: NDArray[np.int64]
    boxes: NDArray[np.float32]
    points: NDArray[np.float32]
    visibility: NDArray[np.int8]
    weights: NDArray[np.float32]
    areas: NDArray[np.float32]
    empty_files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class BoxSet:
    """Images and the boxes of the people on them.

    Attributes:
        files: image files.
        image_ids: ``(len(files),)`` int64.
        sizes_wh: ``(len(files), 2)`` int32 image px.
        boxes: for every file ``(n, 4)`` float32 xyxy image px.
        crowd: for every file ``(n,)`` bool, regions that stand for many people.
    """

    files: tuple[Path, ...]
    image_ids: NDArray[np.int64]
    sizes_wh: NDArray[np.int32]
    boxes: tuple[NDArray[np.float32], ...]
    crowd: tuple[NDArray[np.bool_], ...]

    def __len__(self) -> int:
        return len(self.files)


def read_json(path: Path) -> Any:
    """The content of a JSON file; :class:`InputError` names the file if there is none in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


def _read_coco(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict) or not {"images", "annotations"} <= document.keys():
        raise InputError(f"{path}: not COCO-style JSON (an object with 'images' and 'annotations')")
    return document


class _Finder:
    """Finds an annotation's image below one of several folders."""

    def __init__(self, annotations: Path, folders: Sequence[Path]) -> None:
        self.annotations = annotations
        self.folders = tuple(folders) or (annotations.parent / "images", annotations.parent)
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder of images")

    def __call__(self, name: str) -> Path:
        for folder in self.folders:
            if (path := folder / name).is_file():
                return path
        places = ", ".join(map(str, self.folders))
        raise InputError(f"{self.annotations}: image {name!r} is not in {places}; name its folder with --images")


def load_pose_set(path: Path, folders: Sequence[Path], keypoints: KeypointSet) -> PoseSet:
    """People with keypoints from COCO-style JSON, matched to ``keypoints`` by name.

    People without a labelled keypoint of the set, and crowd regions, are left out; a joint that the
    file does not know is not labelled. Images without any annotation are the set's ``empty_files``.
    An optional ``keypoint_source`` per joint (4: disputed) lowers that joint's weight.

    Args:
        path: the JSON file.
        folders: where its images are, searched in order; empty: ``images`` beside the file.
        keypoints: the wanted set.

    Raises:
        InputError: unreadable file, missing image, no person with keypoints.
    """
    document = _read_coco(path)
    find = _Finder(path, folders)
    names_by_category = {
        c["id"]: tuple(c["keypoints"]) for c in document.get("categories", []) if c.get("keypoints")
    }
    images = {image["id"]: image for image in document["images"]}
    found: dict[int, Path] = {}
    rows: list[tuple[Any, ...]] = []
    annotated: set[int] = set()
    for annotation in document["annotations"]:
        annotated.add(annotation["image_id"])
        names = names_by_category.get(annotation["category_id"])
        values = annotation.get("keypoints")
        if names is None or not values or annotation.get("iscrowd"):
            continue
        image = images.get(annotation["image_id"])
        where = f"{path}: annotation {annotation.get('id')}"
        if image is None:
            raise InputError(f"{where} names image {annotation['image_id']}, which the file does not list")
        table = np.asarray(values, dtype=np.float32)
        if table.size != 3 * len(names):
            raise InputError(f"{where} has {table.size} keypoint values, its category wants {3 * len(names)}")
        order = keypoints.order_from(names)
        table = np.where((order >= 0)[:, None], table.reshape(-1, 3)[order], 0)
        labelled = table[:, 2] > 0
        if not labelled.any():
            continue
        if not np.isfinite(table).all():
            raise InputError(f"{where} has a keypoint that is not a number")
        weights = labelled.astype(np.float32)
        if (source := annotation.get("keypoint_source")) is not None:
            weights *= np.where(order >= 0, _SOURCE_WEIGHT[np.asarray(source)[order]], 0)
        if "bbox" in annotation:
            x, y, w, h = annotation["bbox"]
            box = (x, y, x + w, y + h)
        else:
            low, high = table[labelled, :2].min(0), table[labelled, :2].max(0)
            margin = 0.1 * float((high - low).max())
            box = (*(low - margin), *(high + margin))
        if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
            raise InputError(f"{where} has an empty box {annotation.get('bbox')}")
        if box[2] < 0 or box[3] < 0 or box[0] > image["width"] or box[1] > image["height"]:
            raise InputError(f"{where} lies outside its image {image['file_name']!r}")
        if image["id"] not in found:
            found[image["id"]] = find(image["file_name"])
        area = annotation.get("area") or (box[2] - box[0]) * (box[3] - box[1])
        rows.append((found[image["id"]], image["id"], annotation["id"], box, table, weights, area))
    if not rows:
        raise InputError(f"{path}: no person with keypoints of {keypoints.name} in it")
    files, image_ids, ids, boxes, tables, weights_, areas = zip(*rows, strict=True)
    stacked = np.stack(tables)
    empty = tuple(find(image["file_name"]) for key, image in images.items() if key not in annotated)
    return PoseSet(
        keypoints.names,
        files,
        np.array(image_ids, dtype=np.int64),
        np.array(ids, dtype=np.int64),
        np.array(boxes, dtype=np.float32),
        np.ascontiguousarray(stacked[..., :2], dtype=np.float32),
        stacked[..., 2].astype(np.int8),
        np.stack(weights_).astype(np.float32),
        np.array(areas, dtype=np.float32),
        empty,
    )


def load_box_set(path: Path, folders: Sequence[Path]) -> BoxSet:
    """Person boxes of every image of a COCO-style JSON file; images without people have none.

    Raises:
        InputError: unreadable file, missing image, no image at all.
    """
    document = _read_coco(path)
    find = _Finder(path, folders)
    person = {c["id"] for c in document.get("categories", []) if c.get("name") == "person"}
    boxes: dict[int, list[tuple[float, float, float, float]]] = {image["id"]: [] for image in document["images"]}
    crowd: dict[int, list[bool]] = {key: [] for key in boxes}
    for annotation in document["annotations"]:
        if person and annotation["category_id"] not in person:
            continue
        if annotation["image_id"] not in boxes:
            raise InputError(
                f"{path}: annotation {annotation.get('id')} names image {annotation['image_id']}, "
                "which the file does not list"
            )
        x, y, w, h = annotation["bbox"]
        if w > 0 and h > 0:
            boxes[annotation["image_id"]].append((x, y, x + w, y + h))
            crowd[annotation["image_id"]].append(bool(annotation.get("iscrowd")))
    if not boxes:
        raise InputError(f"{path}: no images in it")
    images = document["images"]
    return BoxSet(
        tuple(find(image["file_name"]) for image in images),
        np.array([image["id"] for image in images], dtype=np.int64),
        np.array([(image["width"], image["height"]) for image in images], dtype=np.int32),
        tuple(np.array(boxes[image["id"]], dtype=np.float32).reshape(-1, 4) for image in images),
        tuple(np.array(crowd[image["id"]], dtype=np.bool_) for image in images),
    )


def concatenate(sets: Sequence[PoseSet]) -> PoseSet:
    """Several pose sets of the same keypoints as one."""
    first = sets[0]
    return PoseSet(
        first.names,
        sum((s.files for s in sets), ()),
        np.concatenate([s.image_ids for s in sets]),
        np.concatenate([s.annotation_ids for s in sets]),
        np.concatenate([s.boxes for s in sets]),
        np.concatenate([s.points for s in sets]),
        np.concatenate([s.visibility for s in sets]),
        np.concatenate([s.weights for s in sets]),
        np.concatenate([s.areas for s in sets]),
        sum((s.empty_files for s in sets), ()),
    )
