"""Annotated images from COCO-style JSON, as arrays ready for training and scoring.

Symbols: M people, K keypoints of the wanted set. Points are image px, pixel centres at integers.
"""

from __future__ import annotations

import filecmp
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.geometry import MAX_PX
from hgpose.keypoints import KeypointSet
from hgpose.sources.images import image_size

#: Share of trust in a joint whose ``keypoint_source`` says that human and teacher disagree.
_DISPUTED = 0.3
_SOURCE_WEIGHT = np.array([0.0, 1.0, 1.0, 1.0, _DISPUTED, 1.0], dtype=np.float32)
#: Sources that a teacher, whose answers on image and mirror agree, stands behind.
_SOURCE_CONFIRMED = np.array([False, False, True, True, False, True])


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
        confirmed: ``(M, K)`` bool, labels whose side needs no doubt: somebody else says the same.
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
    confirmed: NDArray[np.bool_]
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
        scores: for every file ``(n,)`` float32 in [0, 1], how sure it is that the box is a person's: 1 unless
            the file says otherwise, as of boxes that a network found. What scores 0 is learnt as little as a
            crowd.
    """

    files: tuple[Path, ...]
    image_ids: NDArray[np.int64]
    sizes_wh: NDArray[np.int32]
    boxes: tuple[NDArray[np.float32], ...]
    crowd: tuple[NDArray[np.bool_], ...]
    scores: tuple[NDArray[np.float32], ...]

    def __len__(self) -> int:
        return len(self.files)


def read_json(path: Path) -> Any:
    """The content of a JSON file; :class:`InputError` names the file if there is none in it."""
    try:
        # Some editors begin UTF-8 with a mark of the byte order.
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    # Besides what is no JSON: numbers of thousands of digits, and lists in thousands of lists.
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what goes wrong with a malformed entry into an error that names the entry."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{where} is malformed ({type(error).__name__}: {error}); correct it") from error


def read_id(value: Any) -> int:
    """An id as a number, though a file may have it as text.

    Raises:
        TypeError, ValueError, OverflowError: it is none of 64 bits.
    """
    number = int(value)
    if (isinstance(value, float) and number != value) or number.bit_length() > 63:
        raise ValueError(f"the id {value} is not a whole number below 2^63")
    return number


def box_around(points_xy: NDArray[np.floating]) -> tuple[float, float, float, float]:
    """The box xyxy of points ``(n, 2)`` with a margin of a tenth of its longer side, same px."""
    low, high = points_xy.min(0), points_xy.max(0)
    margin = 0.1 * float((high - low).max())
    return (*(low - margin).tolist(), *(high + margin).tolist())


def _is_empty(box: tuple[float, float, float, float]) -> bool:
    """Whether nothing is left of a box in float32, which all are kept in."""
    x1, y1, x2, y2 = np.array(box, dtype=np.float32)
    return not (x2 > x1 and y2 > y1)


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

    def __call__(self, name: str, size_wh: tuple[int, int] | None = None) -> Path:
        """The image file called ``name``, a path relative to one of the folders.

        Args:
            name: as the annotations have it.
            size_wh: width and height, px, of the picture as it is displayed: that of another size is
                another picture, which only happens to have the same name.
        """
        found, others = [], []
        for folder in self.folders:
            path = folder / name
            try:
                there = path.is_file()
            except OSError as error:
                raise InputError(
                    f"{self.annotations}: image {name!r} cannot be looked for ({error.strerror}); "
                    "correct its name"
                ) from error
            if there:
                if size_wh is None or (size := image_size(path)) == size_wh:
                    found.append(path)
                else:
                    others.append(f"{path} is {size[0]}x{size[1]} px")
        for other in found[1:]:
            if not (other.samefile(found[0]) or filecmp.cmp(found[0], other, shallow=False)):
                raise InputError(
                    f"{self.annotations}: image {name!r} may be {found[0]} or {other}, which are different "
                    "pictures; give the folder above both with --images, and their names below it"
                )
        if found:
            return found[0]
        if size_wh is not None and others:
            raise InputError(
                f"{self.annotations}: image {name!r} is annotated as {size_wh[0]}x{size_wh[1]} px, but "
                f"{' and '.join(others)} as displayed; give the folder of the very images with --images, or "
                "correct the size"
            )
        places = ", ".join(map(str, self.folders))
        raise InputError(
            f"{self.annotations}: image {name!r} is not in {places}; name its folder with --images"
        )


@dataclass(frozen=True)
class CocoImage:
    """An image as a COCO-style file lists it.

    Attributes:
        id: its id.
        name: its file, a path relative to a folder of images.
        size_wh: width and height, px.
    """

    id: int
    name: str
    size_wh: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name!r} ({self.size_wh[0]}x{self.size_wh[1]} px)"


@dataclass(frozen=True)
class CocoAnnotation:
    """An annotation of a COCO-style file.

    Its methods raise :class:`InputError` for what cannot be true; what is of another type than it should
    be is to be caught by :func:`reading`.

    Attributes:
        where: names it in errors.
        id: its id.
        image: what it lies on.
        category_id: of what it is; -1 where there are no categories.
        is_crowd: it stands for many.
        entry: what the file says of it.
    """

    where: str
    id: int
    image: CocoImage
    category_id: int
    is_crowd: bool
    entry: dict[str, Any]

    def box(self) -> tuple[float, float, float, float] | None:
        """The box as xyxy image px; ``None`` if there is none, or an empty one, which COCO itself has."""
        if (bbox := self.entry.get("bbox")) is None:
            return None
        if isinstance(bbox, str):
            raise TypeError("the bbox is text")
        x, y, w, h = map(float, bbox)
        box = (x, y, x + w, y + h)
        if not (w >= 0 and h >= 0 and np.abs(box).max() <= MAX_PX):
            raise InputError(
                f"{self.where} has the box {bbox}, which must be x, y, width and height within {MAX_PX} px; "
                "correct it"
            )
        return None if _is_empty(box) else box

    def check_inside(self, box: tuple[float, float, float, float]) -> None:
        """Refuses a box that shows nothing of the image."""
        width, height = self.image.size_wh
        if box[2] < 0 or box[3] < 0 or box[0] > width or box[1] > height:
            raise InputError(
                f"{self.where} lies outside its image {self.image}; correct it, or use the images it was "
                "made on"
            )

    def amount(self, key: str, limit: float) -> float | None:
        """A number above 0; ``None`` if it is missing, null or 0."""
        value = float(self.entry.get(key) or 0)
        if not 0 <= value <= limit:
            raise InputError(
                f"{self.where} has the {key} {value}, which must lie between 0 and {limit}; correct it"
            )
        return value or None

    def score(self) -> float:
        """How sure it is that somebody is there, from 0 to 1; 1 where it is not given."""
        value = self.entry.get("score")
        if value is not None and not 0 <= float(value) <= 1:
            raise InputError(
                f"{self.where} has the score {value}, which must lie between 0 and 1; correct it"
            )
        return 1.0 if value is None else float(value)

    def area(self, box: tuple[float, float, float, float]) -> float:
        """The area of the person, px^2; of the box where it is not given."""
        return self.amount("area", MAX_PX**2) or (box[2] - box[0]) * (box[3] - box[1])

    def keypoints(self, names: tuple[str, ...]) -> NDArray[np.float64]:
        """x, y, v of the joints, which are called ``names``: ``(len(names), 3)``, 0 where not labelled."""
        table = np.asarray(self.entry["keypoints"], dtype=np.float64)
        if table.size != 3 * len(names):
            raise InputError(
                f"{self.where} has {table.size} keypoint values, its category wants {3 * len(names)}"
            )
        table = table.reshape(-1, 3)
        if len(odd := table[~np.isin(table[:, 2], (0, 1, 2)), 2]):
            raise InputError(
                f"{self.where} has a keypoint of visibility {odd[0]:g}, which must be 0 (not labelled), "
                "1 (labelled, hidden) or 2 (visible); no score can stand there"
            )
        table = np.where(table[:, 2:] > 0, table, 0.0)
        size = np.array(self.image.size_wh)
        # Annotators guess joints beyond the edge, in the sets known to us by up to a 40th of the image, and
        # bodies that are projected into images reach further. Beyond this nobody sees where a joint is.
        beyond = np.maximum(-table[:, :2], table[:, :2] - size).max(1)
        if not (near := beyond <= size.max()).all():
            i = int(near.argmin())
            raise InputError(
                f"{self.where} has its {names[i]} at ({table[i, 0]:g}, {table[i, 1]:g}), nowhere near its "
                f"image {self.image}; correct it, or use the images it was made on"
            )
        return table


def _joint_names(names: Any) -> tuple[str, ...]:
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a keypoint's name is not text")
    if len(set(names)) < len(names):
        raise ValueError("two keypoints have one name")
    return tuple(names)


class Coco:
    """A COCO-style document, whose entries are checked as they are read.

    Args:
        document: its content.
        path: the file it comes from, named in errors.
        find: finds its images.

    Attributes:
        images: by id.
        categories: their names by id.
        joints: the keypoints' names by category, for categories that have some.
        people: categories called "person".

    Raises:
        InputError: malformed list, or an entry in it.
    """

    def __init__(self, document: Any, path: Path, find: ImageFinder) -> None:
        if not isinstance(document, dict) or not all(
            isinstance(document.get(key), list) for key in ("images", "annotations")
        ):
            raise InputError(
                f"{path}: not COCO-style JSON (an object with the lists 'images' and 'annotations')"
            )
        self.path = path
        self._find = find
        self._files: dict[int, Path] = {}
        self._annotations: list[Any] = document["annotations"]
        with reading(f"{path}: the list of categories"):
            categories = document.get("categories") or []
            self.categories = {read_id(c["id"]): c.get("name") for c in categories}
            self.joints = {
                read_id(c["id"]): _joint_names(c["keypoints"]) for c in categories if c.get("keypoints")
            }
        self.people = frozenset(key for key, name in self.categories.items() if name == "person")
        self.images: dict[int, CocoImage] = {}
        for number, entry in enumerate(document["images"], start=1):
            with reading(f"{path}: image number {number}"):
                size = int(entry["width"]), int(entry["height"])
                image = CocoImage(read_id(entry["id"]), entry["file_name"], size)
                if not isinstance(image.name, str):
                    raise TypeError(f"file_name {image.name} is not text")
                if image.id in self.images:
                    raise InputError(f"{path}: two images have the id {image.id}; give each its own")
                self.images[image.id] = image

    def file(self, image: CocoImage) -> Path:
        """The file of an image, of the size that the annotations say it has."""
        if image.id not in self._files:
            self._files[image.id] = self._find(image.name, image.size_wh)
        return self._files[image.id]

    def annotations(self) -> Iterator[CocoAnnotation]:
        """Every annotation."""
        seen: set[int] = set()
        for number, entry in enumerate(self._annotations, start=1):
            with reading(f"{self.path}: annotation number {number}"):
                where = f"{self.path}: annotation {entry['id']}"
                own_id, image_id = read_id(entry["id"]), read_id(entry["image_id"])
                category_id = read_id(entry["category_id"]) if self.categories else -1
                if (crowd := entry.get("iscrowd") or 0) not in (0, 1):
                    raise InputError(f"{where} has the iscrowd {crowd!r}, which must be 0 or 1; correct it")
            if own_id in seen:
                raise InputError(f"{self.path}: two annotations have the id {own_id}; give each its own")
            if image_id not in self.images:
                raise InputError(f"{where} names image {image_id}, which the file does not list")
            seen.add(own_id)
            yield CocoAnnotation(where, own_id, self.images[image_id], category_id, bool(crowd), entry)


def load_pose_set(path: Path, folders: Sequence[Path], keypoints: KeypointSet) -> PoseSet:
    """People with keypoints from COCO-style JSON, matched to ``keypoints`` by name.

    People without a labelled keypoint of the set, and crowd regions, are left out; a joint that the
    file does not know is not labelled. Who has no box has one around the joints, or is left out with a
    single joint. Images without any annotation are the set's ``empty_files``.
    An optional ``keypoint_source`` per joint lowers that joint's weight (4: disputed) or frees its side of
    doubt (2, 3 and 5: given or confirmed by a teacher).

    Args:
        path: the JSON file.
        folders: where its images are, searched in order; empty: ``images`` beside the file.
        keypoints: the wanted set.

    Raises:
        InputError: unreadable or malformed file, missing image or one of another size, annotation outside
            its image, no person with keypoints.
    """
    return pose_set_from_coco(read_json(path), path, ImageFinder(path, folders), keypoints)


def pose_set_from_coco(document: Any, path: Path, find: ImageFinder, keypoints: KeypointSet) -> PoseSet:
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
    coco = Coco(document, path, find)
    named = dict.fromkeys(name for names in coco.joints.values() for name in names)
    if not named.keys() & set(keypoints.names):
        raise InputError(
            f"{path}: its 'categories' name none of the joints of {keypoints.name} "
            f"({', '.join(keypoints.names)}) as 'keypoints', but {', '.join(named) or 'none at all'}; "
            "name them like that"
        )
    rows: list[tuple[Any, ...]] = []
    annotated: set[str] = set()
    for annotation in coco.annotations():
        with reading(annotation.where):
            entry = annotation.entry
            annotated.add(annotation.image.name)
            names = coco.joints.get(annotation.category_id)
            if names is None or entry.get("keypoints") in (None, []) or annotation.is_crowd:
                continue
            table, weights, confirmed = _keypoint_table(annotation, names, keypoints)
            labelled = table[:, 2] > 0
            if not labelled.any():
                continue
            box = annotation.box() or box_around(table[labelled, :2])
            if _is_empty(box):
                # Of a single joint nobody can say how large the person is.
                continue
            annotation.check_inside(box)
            head = annotation.amount("head_size", MAX_PX) or np.nan
            file = coco.file(annotation.image)
            ids = annotation.image.id, annotation.id
            rows.append((file, *ids, box, table, weights, confirmed, annotation.area(box), head))
    if not rows:
        raise InputError(f"{path}: no person with keypoints of {keypoints.name} in it")
    files, image_ids, ids_, boxes, tables, weights_, confirmed_, areas, heads = zip(*rows, strict=True)
    stacked = np.stack(tables)
    head_sizes = np.array(heads, dtype=np.float32)
    return PoseSet(
        keypoints.names,
        files,
        np.array(image_ids, dtype=np.int64),
        np.array(ids_, dtype=np.int64),
        np.array(boxes, dtype=np.float32),
        np.ascontiguousarray(stacked[..., :2], dtype=np.float32),
        stacked[..., 2].astype(np.int8),
        np.stack(weights_).astype(np.float32),
        np.stack(confirmed_),
        np.array(areas, dtype=np.float32),
        tuple(coco.file(image) for image in coco.images.values() if image.name not in annotated),
        head_sizes if np.isfinite(head_sizes).any() else None,
    )


def _keypoint_table(
    annotation: CocoAnnotation, names: tuple[str, ...], keypoints: KeypointSet
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """One person's x, y, v in the order of the wanted set ``(K, 3)``, weights and confirmed ``(K,)``."""
    table = keypoints.rows_of(annotation.keypoints(names), names).astype(np.float32)
    weights = (table[:, 2] > 0).astype(np.float32)
    confirmed = np.zeros(len(weights), dtype=np.bool_)
    if (source := annotation.entry.get("keypoint_source")) is not None:
        if len(source) != len(names):
            raise InputError(
                f"{annotation.where} has {len(source)} keypoint sources, its category wants {len(names)}"
            )
        if not set(source) <= set(range(len(_SOURCE_WEIGHT))):
            raise InputError(
                f"{annotation.where} has keypoint sources beside 0 to {len(_SOURCE_WEIGHT) - 1}; correct them"
            )
        sources = keypoints.rows_of(np.asarray(source)[:, None], names)[:, 0]
        weights *= _SOURCE_WEIGHT[sources]
        confirmed = _SOURCE_CONFIRMED[sources]
    return table, weights, confirmed


def load_box_set(path: Path, folders: Sequence[Path]) -> BoxSet:
    """Person boxes of every image of a COCO-style JSON file; images without people have none.

    Raises:
        InputError: unreadable or malformed file, missing image or one of another size, box that is none or
            lies outside its image, no image at all.
    """
    if path.suffix.lower() == ".mat":
        raise InputError(
            f"{path}: archives of poses do not say where everybody on an image is; "
            "give COCO-style JSON with a box for each person"
        )
    coco = Coco(read_json(path), path, ImageFinder(path, folders))
    if not coco.images:
        raise InputError(f"{path}: no images in it")
    if len(coco.categories) > 1 and not coco.people:
        names = ", ".join(map(str, coco.categories.values()))
        raise InputError(
            f"{path}: none of its categories {names} is called 'person'; call the one with the people so"
        )
    listed = Counter(image.name for image in coco.images.values())
    if twice := next((name for name, times in listed.items() if times > 1), None):
        raise InputError(f"{path}: image {twice!r} is listed twice; list it once, with all its people")
    boxes: dict[int, list[tuple[float, float, float, float]]] = {key: [] for key in coco.images}
    crowd: dict[int, list[bool]] = {key: [] for key in coco.images}
    scores: dict[int, list[float]] = {key: [] for key in coco.images}
    for annotation in coco.annotations():
        with reading(annotation.where):
            if coco.people and annotation.category_id not in coco.people:
                continue
            if (box := annotation.box()) is not None:
                annotation.check_inside(box)
                boxes[annotation.image.id].append(box)
                crowd[annotation.image.id].append(annotation.is_crowd)
                scores[annotation.image.id].append(annotation.score())
    return BoxSet(
        tuple(coco.file(image) for image in coco.images.values()),
        np.array(list(coco.images), dtype=np.int64),
        np.array([image.size_wh for image in coco.images.values()], dtype=np.int32),
        tuple(np.array(boxes[key], dtype=np.float32).reshape(-1, 4) for key in coco.images),
        tuple(np.array(crowd[key], dtype=np.bool_) for key in coco.images),
        tuple(np.array(scores[key], dtype=np.float32) for key in coco.images),
    )


def keep_joints(people: PoseSet, keep: NDArray[np.bool_]) -> PoseSet:
    """The same people with only the joints where ``keep`` ``(K,)`` is true labelled."""
    return replace(
        people,
        visibility=np.where(keep, people.visibility, np.int8(0)),
        weights=np.where(keep, people.weights, np.float32(0)),
    )


def concatenate_people(sets: Sequence[PoseSet]) -> PoseSet:
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
        np.concatenate([s.confirmed for s in sets]),
        np.concatenate([s.areas for s in sets]),
        sum((s.empty_files for s in sets), ()),
        None if all(s.head_sizes is None for s in sets) else np.concatenate(heads),
    )


def concatenate_boxes(sets: Sequence[BoxSet]) -> BoxSet:
    """Several box sets as one."""
    return BoxSet(
        sum((s.files for s in sets), ()),
        np.concatenate([s.image_ids for s in sets]),
        np.concatenate([s.sizes_wh for s in sets]),
        sum((s.boxes for s in sets), ()),
        sum((s.crowd for s in sets), ()),
        sum((s.scores for s in sets), ()),
    )
