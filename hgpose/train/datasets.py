"""Annotated images from COCO-style JSON, as arrays ready for training and scoring.

Symbols: M people, K keypoints of the wanted set. Points are image px, pixel centres at integers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
        head_sizes: ``(M,)`` float32 px, the reference length of PCKh, NaN where unknown; ``None``
            where the file they came from has no head boxes.
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
    head_sizes: NDArray[np.float32] | None = None

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


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turns what goes wrong with a malformed entry into an error that names the entry."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} is malformed ({type(error).__name__}: {error})") from error


def _images_by_id(document: dict[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    with _reading(f"{path}: the list of images"):
        return {int(image["id"]): image for image in document["images"]}


def _image_of(annotation: dict[str, Any], images: dict[int, dict[str, Any]], where: str) -> dict[str, Any]:
    image = images.get(annotation["image_id"])
    if image is None:
        raise InputError(f"{where} names image {annotation['image_id']}, which the file does not list")
    return image


def _check_inside(box: tuple[float, ...], image: dict[str, Any], where: str) -> None:
    if box[2] < 0 or box[3] < 0 or box[0] > image["width"] or box[1] > image["height"]:
        raise InputError(
            f"{where} lies outside its image {image['file_name']!r} ({image['width']}x{image['height']} px); "
            "correct it, or use the images it was made on"
        )


def box_around(points_xy: NDArray[np.floating]) -> tuple[float, float, float, float]:
    """The box xyxy of points ``(n, 2)`` with a margin of a tenth of its longer side, same px."""
    low, high = points_xy.min(0), points_xy.max(0)
    margin = 0.1 * float((high - low).max())
    return (*(low - margin).tolist(), *(high + margin).tolist())


class ImageFinder:
    """Finds an annotation's image below one of several folders.

    Args:
        annotations: the file that names the images; where no folder is given, they are in
            ``images`` beside it, or beside it.
        folders: searched in order.

    Raises:
        InputError: a folder, or the wanted image, is not there.
    """

    def __init__(self, annotations: Path, folders: Sequence[Path]) -> None:
        self.annotations = annotations
        self.folders = tuple(folders) or (annotations.parent / "images", annotations.parent)
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder of images")

    def __call__(self, name: str) -> Path:
        """The image file called ``name``, a path relative to one of the folders."""
        for folder in self.folders:
            if (path := folder / name).is_file():
                return path
        places = ", ".join(map(str, self.folders))
        raise InputError(
            f"{self.annotations}: image {name!r} is not in {places}; name its folder with --images"
        )


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
        InputError: unreadable or malformed file, missing image, annotation outside its image, no
            person with keypoints.
    """
    return pose_set_from_coco(_read_coco(path), path, ImageFinder(path, folders), keypoints)


def pose_set_from_coco(
    document: dict[str, Any], path: Path, find: ImageFinder, keypoints: KeypointSet
) -> PoseSet:
    """What :func:`load_pose_set` makes of a COCO-style document, which may have been converted.

    An annotation may carry a ``head_size``, px.

    Args:
        document: as in COCO's JSON.
        path: the file it comes from, named in errors.
        find: finds its images.
        keypoints: the wanted set.

    Raises:
        InputError: as :func:`load_pose_set`.
    """
    with _reading(f"{path}: the list of categories"):
        names_by_category = {
            c["id"]: tuple(c["keypoints"]) for c in document.get("categories", []) if c.get("keypoints")
        }
    images = _images_by_id(document, path)
    found: dict[int, Path] = {}
    rows: list[tuple[Any, ...]] = []
    annotated: set[int] = set()
    for i, annotation in enumerate(document["annotations"]):
        with _reading(f"{path}: annotation number {i + 1}"):
            where = f"{path}: annotation {annotation['id']}"
        with _reading(where):
            annotated.add(annotation["image_id"])
            names = names_by_category.get(annotation["category_id"])
            if names is None or not annotation.get("keypoints") or annotation.get("iscrowd"):
                continue
            image = _image_of(annotation, images, where)
            table, weights = _keypoint_table(annotation, names, keypoints, where)
            labelled = table[:, 2] > 0
            if not labelled.any():
                continue
            box = _box_of(annotation) or box_around(table[labelled, :2])
            if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
                raise InputError(f"{where} has an empty box {annotation.get('bbox')}")
            _check_inside(box, image, where)
            if image["id"] not in found:
                found[image["id"]] = find(image["file_name"])
            area = annotation.get("area") or (box[2] - box[0]) * (box[3] - box[1])
            head = annotation.get("head_size", np.nan)
            numbers = int(image["id"]), int(annotation["id"])
            rows.append((found[image["id"]], *numbers, box, table, weights, area, head))
    if not rows:
        raise InputError(f"{path}: no person with keypoints of {keypoints.name} in it")
    files, image_ids, ids, boxes, tables, weights_, areas, heads = zip(*rows, strict=True)
    stacked = np.stack(tables)
    head_sizes = np.array(heads, dtype=np.float32)
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
        tuple(find(image["file_name"]) for key, image in images.items() if key not in annotated),
        head_sizes if np.isfinite(head_sizes).any() else None,
    )


def _keypoint_table(
    annotation: dict[str, Any], names: tuple[str, ...], keypoints: KeypointSet, where: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One person's x, y, v in the order of the wanted set ``(K, 3)``, and the weights ``(K,)``."""
    table = np.asarray(annotation["keypoints"], dtype=np.float32)
    if table.size != 3 * len(names):
        raise InputError(f"{where} has {table.size} keypoint values, its category wants {3 * len(names)}")
    order = keypoints.order_from(names)
    table = np.where((order >= 0)[:, None], table.reshape(-1, 3)[order], np.float32(0))
    if not np.isfinite(table).all():
        raise InputError(f"{where} has a keypoint that is not a number")
    weights = (table[:, 2] > 0).astype(np.float32)
    if (source := annotation.get("keypoint_source")) is not None:
        if len(source) != len(names):
            raise InputError(f"{where} has {len(source)} keypoint sources, its category wants {len(names)}")
        weights *= np.where(order >= 0, _SOURCE_WEIGHT[np.asarray(source)[order]], 0)
    return table, weights


def _box_of(annotation: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """An annotation's box as xyxy image px, ``None`` if it has none."""
    if "bbox" not in annotation:
        return None
    x, y, w, h = annotation["bbox"]
    return (x, y, x + w, y + h)


def load_box_set(path: Path, folders: Sequence[Path]) -> BoxSet:
    """Person boxes of every image of a COCO-style JSON file; images without people have none.

    Raises:
        InputError: unreadable or malformed file, missing image, box outside its image, no image at all.
    """
    document = _read_coco(path)
    find = ImageFinder(path, folders)
    with _reading(f"{path}: the list of categories"):
        person = {c["id"] for c in document.get("categories", []) if c.get("name") == "person"}
    images = _images_by_id(document, path)
    if not images:
        raise InputError(f"{path}: no images in it")
    boxes: dict[int, list[tuple[float, float, float, float]]] = {key: [] for key in images}
    crowd: dict[int, list[bool]] = {key: [] for key in images}
    for i, annotation in enumerate(document["annotations"]):
        with _reading(f"{path}: annotation number {i + 1}"):
            where = f"{path}: annotation {annotation['id']}"
        with _reading(where):
            if person and annotation["category_id"] not in person:
                continue
            image = _image_of(annotation, images, where)
            box = _box_of(annotation)
            if box is not None and box[2] > box[0] and box[3] > box[1]:
                _check_inside(box, image, where)
                boxes[image["id"]].append(box)
                crowd[image["id"]].append(bool(annotation.get("iscrowd")))
    with _reading(f"{path}: the list of images"):
        return BoxSet(
            tuple(find(image["file_name"]) for image in images.values()),
            np.array(list(images), dtype=np.int64),
            np.array([(image["width"], image["height"]) for image in images.values()], dtype=np.int32),
            tuple(np.array(boxes[key], dtype=np.float32).reshape(-1, 4) for key in images),
            tuple(np.array(crowd[key], dtype=np.bool_) for key in images),
        )


def keep_joints(people: PoseSet, keep: NDArray[np.bool_]) -> PoseSet:
    """The same people with only the joints where ``keep`` ``(K,)`` is true labelled."""
    return replace(
        people,
        visibility=np.where(keep, people.visibility, np.int8(0)),
        weights=np.where(keep, people.weights, np.float32(0)),
    )


def concatenate(sets: Sequence[PoseSet]) -> PoseSet:
    """Several pose sets of the same keypoints as one."""
    first = sets[0]
    heads = [np.full(len(s), np.nan, np.float32) if s.head_sizes is None else s.head_sizes for s in sets]
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
        None if all(s.head_sizes is None for s in sets) else np.concatenate(heads),
    )
