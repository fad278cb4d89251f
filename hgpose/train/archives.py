"""Annotated people from the public archives, as their owners ship them.

Every kind is turned into a COCO-style document and read on by :mod:`hgpose.train.datasets`, so that
all are checked alike. The archives count pixels from 1, as MATLAB does; what comes out counts from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError, OptionsError
from hgpose.keypoints import LSP14, MPII16, KeypointSet
from hgpose.sources.images import image_size
from hgpose.train.datasets import (
    ImageFinder,
    PoseSet,
    box_around,
    pose_set_from_coco,
    read_json,
    reading,
)
from hgpose.train.metrics import HEAD_BOX_SHARE

#: The first this many images of Leeds Sports Pose are for training, the rest for testing.
_LSP_TRAIN = 1000
#: MPII's scale is the person's height in this many px.
_MPII_HEIGHT_PX = 200.0
#: Labels of a person in two files of MPII agree but for rounding; those of two people never do.
_SAME_PERSON_PX = 2.0


def load_people(
    path: Path,
    folders: Sequence[Path],
    keypoints: KeypointSet,
    split: str | None = None,
    heads: Path | None = None,
) -> PoseSet:
    """Annotated people from any annotation file this package reads, recognised by its content.

    * COCO-style JSON (:func:`hgpose.train.datasets.load_pose_set`).
    * Leeds Sports Pose ``joints.mat``, ``(3, 14, n)``; splits ``train`` (images 1 to 1000, the
      default) and ``test``. Every joint is labelled, the third row is 1 where it is occluded.
    * Leeds Sports Pose Extended ``joints.mat``, ``(14, 3, n)``; the third column is 1 where a joint
      is labelled at all.
    * MPII Human Pose ``mpii_human_pose_v1_u12_1.mat``: split ``train`` (the default), everybody on its
      training images; the labels of the others were never published. Split ``valid``, the 2,958 people
      of Tompson et al. 2015 by whom everybody validates: those of the ``valid.json`` beside it, or in
      ``annot`` beside it.
    * MPII's common ``annot/train.json`` and ``valid.json`` (MMPose: ``mpii_val.json``), a list of people.
      They have no head boxes, so that PCKh can only be approximated unless ``heads`` has them.

    MPII gives a person's centre and height instead of a box: the box is a square of that height.

    Args:
        path: the annotation file.
        folders: where its images are, searched in order; empty: ``images`` beside the file.
        keypoints: the wanted set, matched by name.
        split: for archives that keep several in one file.
        heads: the head boxes of MPII's list of people: the ``.mat`` of MPII, or the ``gt_valid.mat``
            (MMPose: ``mpii_gt_val.mat``) of Tompson's people, in their order, whose labels then hold.

    Raises:
        InputError: unreadable file or one of no known kind, missing or damaged image, annotation
            outside its image, no person with keypoints, heads of other people.
        OptionsError: there is no such split, or ``heads`` goes with another kind of file.
    """
    kind, content = _open_mat(path) if path.suffix.lower() == ".mat" else _open_json(path)
    if split is not None and split not in kind.splits:
        have = f"it has {' and '.join(kind.splits)}" if kind.splits else "it is not split"
        raise OptionsError(f"{path}: no split {split!r}: {have}")
    find = ImageFinder(path, folders)
    boxes = None if heads is None else (heads, _read_mat(heads))
    if heads is not None and kind.people is not _mpii_json:
        raise OptionsError(f"--heads goes with MPII's list of people (valid.json), which {path} is not")
    if split == "valid":
        path, boxes = _valid_json(path), (path, {"RELEASE": content})
        kind, content = _open_json(path)
    if kind.people is None:
        return pose_set_from_coco(content, path, find, keypoints)
    with reading(f"{path}: the list of people"):
        people = list(kind.people(content, split or "train"))
    if boxes is not None:
        people = _with_heads(people, path, *boxes)
    ids = {name: i + 1 for i, name in enumerate(dict.fromkeys(name for name, _ in people))}
    sizes = {name: image_size(find(name)) for name in ids}
    document = {
        "images": [
            {"id": ids[name], "file_name": name, "width": width, "height": height}
            for name, (width, height) in sizes.items()
        ],
        "annotations": [
            {"id": i + 1, "image_id": ids[name], "category_id": 1} | person
            for i, (name, person) in enumerate(people)
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": kind.names}],
    }
    return pose_set_from_coco(document, path, find, keypoints)


#: An image's file name, and what a COCO annotation says of one person on it.
_Person = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class _Kind:
    """How a kind of file is read; ``people`` is ``None`` where it is a COCO-style document already."""

    names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    people: Callable[[Any, str], Iterator[_Person]] | None = None


def _read_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            content: dict[str, Any] = loadmat(file, squeeze_me=True, struct_as_record=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except NotImplementedError as error:
        raise InputError(f"{path}: in MATLAB's version 7.3 format; save it with -v7") from error
    except Exception as error:  # The library fails in many ways on a damaged file.
        raise InputError(f"{path}: cannot be read as a MATLAB file ({error})") from error
    return content


def _open_mat(path: Path) -> tuple[_Kind, Any]:
    content = _read_mat(path)
    if "RELEASE" in content:
        return _Kind(MPII16.names, ("train", "valid"), _mpii_mat), content["RELEASE"]
    joints = np.asarray(content.get("joints", ()))
    # MATLAB drops the last axis where it is 1, and so does squeezing.
    if joints.shape[:2] == (3, 14):
        return _Kind(LSP14.names, ("train", "test"), _lsp), joints.reshape(3, 14, -1)
    if joints.shape[:2] == (14, 3):
        return _Kind(LSP14.names, (), _lsp_extended), joints.reshape(14, 3, -1)
    raise InputError(
        f"{path}: neither Leeds Sports Pose ('joints' of 3x14xN), its extended set ('joints' of 14x3xN) "
        "nor MPII ('RELEASE')"
    )


def _open_json(path: Path) -> tuple[_Kind, Any]:
    content = read_json(path)
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _Kind(), content
    if isinstance(content, list) and all(
        isinstance(person, dict) and {"image", "joints", "joints_vis"} <= person.keys() for person in content
    ):
        return _Kind(MPII16.names, (), _mpii_json), content
    raise InputError(
        f"{path}: neither COCO-style JSON (an object with 'images' and 'annotations') nor MPII's list of "
        "people (each with 'image', 'joints' and 'joints_vis')"
    )


def _flat(points_xy: NDArray[np.float64], visibility: NDArray[np.integer[Any]]) -> list[float]:
    """COCO's flat x, y, v of K joints counted from 1; zeros where not labelled."""
    table = np.column_stack([points_xy - 1, visibility])
    table[visibility == 0] = 0
    return [float(v) for v in table.ravel()]


def _lsp(joints: NDArray[np.float64], split: str) -> Iterator[_Person]:
    count = joints.shape[2]
    rows = range(min(_LSP_TRAIN, count)) if split == "train" else range(_LSP_TRAIN, count)
    for i in rows:
        x, y, occluded = joints[:, :, i]
        visibility = np.where(occluded > 0, 1, 2)
        yield f"im{i + 1:04d}.jpg", {"keypoints": _flat(np.column_stack([x, y]), visibility)}


def _lsp_extended(joints: NDArray[np.float64], split: str) -> Iterator[_Person]:
    for i in range(joints.shape[2]):
        visibility = np.where(joints[:, 2, i] > 0, 2, 0)
        yield f"im{i + 1:05d}.jpg", {"keypoints": _flat(joints[:, :2, i], visibility)}


def _mpii_mat(release: Any, split: str) -> Iterator[_Person]:
    for image, training in zip(_items(release.annolist), _items(release.img_train), strict=True):
        for person in _items(image.annorect) if training else ():
            for labels in _items(getattr(person, "annopoints", ())):
                points = np.zeros((len(MPII16), 2))
                visibility = np.zeros(len(MPII16), dtype=np.int64)
                for joint in _items(labels.point):
                    points[joint.id] = joint.x, joint.y
                    # Head top and neck come without the flag; some images have it as text.
                    flags = _items(getattr(joint, "is_visible", ()))
                    visibility[joint.id] = 1 if any(str(flag).startswith("0") for flag in flags) else 2
                annotation: dict[str, Any] = {"keypoints": _flat(points, visibility)}
                for center in _items(getattr(person, "objpos", ())):
                    height = getattr(person, "scale", ())
                    annotation |= _mpii_box((center.x, center.y), height, points[visibility > 0])
                if all(_items(getattr(person, side, ())) for side in ("x1", "y1", "x2", "y2")):
                    diagonal = np.hypot(float(person.x2) - person.x1, float(person.y2) - person.y1)
                    annotation["head_size"] = HEAD_BOX_SHARE * float(diagonal)
                yield str(image.image.name), annotation


def _items(value: Any) -> list[Any]:
    """MATLAB makes no difference between one thing and an array of one, nor between none and empty."""
    return list(np.atleast_1d(value))


def _mpii_json(people: list[dict[str, Any]], split: str) -> Iterator[_Person]:
    for person in people:
        points = np.asarray(person["joints"], dtype=np.float64).reshape(len(MPII16), 2)
        # A joint that is not labelled is (-1, -1) or (0, 0), whatever its flag says.
        labelled = (np.asarray(person["joints_vis"]) > 0) & (points > 0).any(1)
        annotation: dict[str, Any] = {"keypoints": _flat(points, np.where(labelled, 2, 0))}
        annotation |= _mpii_box(person.get("center", (-1, -1)), person.get("scale", -1), points[labelled])
        yield str(person["image"]), annotation


def _valid_json(mat: Path) -> Path:
    """The list of validation people that belongs to MPII's archive ``mat``."""
    for place in (mat.parent / "valid.json", mat.parent / "annot" / "valid.json"):
        if place.is_file():
            return place
    raise InputError(
        f"{mat}: does not say who of its people are for validation; put the common annot/valid.json beside "
        f"it, or score that file with --heads {mat.name}"
    )


def _with_heads(people: list[_Person], path: Path, heads: Path, content: dict[str, Any]) -> list[_Person]:
    """The people of MPII's list ``path`` with the sizes of their heads, from one of two kinds of file."""
    with reading(f"{heads}: the list of people"):
        if "RELEASE" in content:
            on_image: dict[str, list[dict[str, Any]]] = {}
            for name, person in _mpii_mat(content["RELEASE"], "train"):
                on_image.setdefault(name, []).append(person)
            found = [min(on_image.get(name, [{}]), key=partial(_apart_px, person)) for name, person in people]
        elif "headboxes_src" in content:
            found = list(_tompson(content))
        else:
            raise InputError(
                f"{heads}: has no head boxes; it must be MPII's mpii_human_pose_v1_u12_1.mat or gt_valid.mat"
            )
    if len(found) != len(people):
        raise InputError(f"{heads}: has {len(found)} people, {path} has {len(people)}: not the same set")
    for i, ((name, person), known) in enumerate(zip(people, found, strict=True)):
        if not _apart_px(known, person) <= _SAME_PERSON_PX:
            raise InputError(f"{heads}: person {i + 1} of {path}, on {name}, is not in it: not the same set")
    # Tompson's labels are those that published scores are counted by.
    kept = ("keypoints", "head_size") if "headboxes_src" in content else ("head_size",)
    return [
        (name, person | {key: known[key] for key in kept if key in known})
        for (name, person), known in zip(people, found, strict=True)
    ]


def _tompson(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Labels and head sizes of Tompson's validation people, from what published scripts evaluate with."""
    boxes = np.asarray(content["headboxes_src"], np.float64).reshape(2, 2, -1)
    points = np.asarray(content["pos_gt_src"], np.float64).reshape(len(MPII16), 2, -1)
    missing = np.asarray(content["jnt_missing"]).reshape(len(MPII16), -1)
    sizes = HEAD_BOX_SHARE * np.linalg.norm(boxes[1] - boxes[0], axis=0)
    for i, size in enumerate(sizes):
        visibility = np.where(missing[:, i] > 0, 0, 2)
        yield {"keypoints": _flat(points[..., i], visibility), "head_size": float(size)}


def _apart_px(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Mean distance of the joints that two annotations label both; infinite without any."""
    one, other = (np.array(person.get("keypoints", np.zeros(3))).reshape(-1, 3) for person in (a, b))
    if len(one) != len(other) or not (both := (one[:, 2] > 0) & (other[:, 2] > 0)).any():
        return float("inf")
    return float(np.linalg.norm(one[both, :2] - other[both, :2], axis=1).mean())


def _mpii_box(center_xy: Sequence[float], height: Any, points_xy: NDArray[np.float64]) -> dict[str, Any]:
    """Box and area of a person from centre (counted from 1) and height; nothing if they are missing."""
    if not (len(points_xy) and np.size(height) and float(height) > 0):
        return {}
    side = _MPII_HEIGHT_PX * float(height)
    x, y = (float(v) - 1 - side / 2 for v in center_xy)
    # The square is far larger than a person: the joints say better what similarity is relative to.
    x1, y1, x2, y2 = box_around(points_xy)
    return {"bbox": [x, y, side, side], "area": (x2 - x1) * (y2 - y1)}
