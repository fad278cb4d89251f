"""A user's own keypoints file, read as predictions for an annotated set.

Symbols: M annotated people, P predicted people, K keypoints. Points are image px.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.keypoints import KEYPOINT_SETS
from hgpose.train.datasets import PoseSet, read_json
from hgpose.train.metrics import oks

#: Image (file name or COCO id), keypoints ``(k, 3)`` as x, y, score, and the person's score.
_Person = tuple[str | int, NDArray[np.float64], float]


@dataclass(frozen=True)
class PoseResults:
    """P predicted people on the images of an annotated set.

    Attributes:
        image_ids: ``(P,)`` int64, as in the annotated set.
        points: ``(P, K, 2)`` float32, joints in the order of the annotated set; NaN where not predicted.
        joint_scores: ``(P, K)`` float32; 0 where not predicted.
        scores: ``(P,)`` float32, of the person.
        known: ``(K,)`` bool, joints that the results' keypoint set has at all.
    """

    image_ids: NDArray[np.int64]
    points: NDArray[np.float32]
    joint_scores: NDArray[np.float32]
    scores: NDArray[np.float32]
    known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.scores)


def load_results(path: Path, truth: PoseSet) -> PoseResults:
    """Predicted people from hgpose JSON, hgpose CSV (wide) or COCO results.

    Images are matched by file name, a path relative to any folder above them, or by COCO's image id;
    people on other images are left out. Keypoints are matched by name; COCO results have none, there
    the number of keypoints tells the set.

    Args:
        path: the results.
        truth: the annotated set.

    Raises:
        InputError: unreadable or malformed file, results of a video, no image of the annotated set.
    """
    read = _read_csv if path.suffix.lower() == ".csv" else _read_json
    names, people = read(path)
    ids = _Ids(truth)
    rows = [
        (image_id, joints, score) for image, joints, score in people if (image_id := ids(image)) is not None
    ]
    if people and not rows:
        raise InputError(
            f"{path}: none of its images, such as {people[0][0]!r}, is in the annotations; "
            "results must come from the annotated images"
        )
    order = np.array([names.index(name) if name in names else -1 for name in truth.names])
    known = order >= 0
    if names and not known.any():
        raise InputError(f"{path}: it has none of the keypoints {', '.join(truth.names)}")
    tables = np.full((len(rows), len(order), 3), np.nan)
    for table, (_, joints, _) in zip(tables, rows, strict=True):
        table[known] = joints[order[known]]
    return PoseResults(
        np.array([image_id for image_id, _, _ in rows], dtype=np.int64),
        tables[..., :2].astype(np.float32),
        np.nan_to_num(tables[..., 2]).astype(np.float32),
        np.array([score for _, _, score in rows], dtype=np.float32),
        known,
    )


def match_people(
    results: PoseResults, truth: PoseSet, sigmas: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For every annotated person the predicted one that fits best, each used once.

    Pairs are taken by falling object keypoint similarity over the joints that both have.

    Args:
        results: from :func:`load_results` with the same ``truth``.
        truth: the annotated set.
        sigmas: K per-keypoint constants.

    Returns:
        points ``(M, K, 2)`` float32, all NaN for a person that was missed, and scores ``(M, K)``
        float32, 0 there.
    """
    points = np.full(truth.points.shape, np.nan, dtype=np.float32)
    scores = np.zeros(truth.points.shape[:2], dtype=np.float32)
    labelled = (truth.visibility > 0) & results.known
    for image_id in np.intersect1d(truth.image_ids, results.image_ids):
        wanted, found = (np.flatnonzero(ids == image_id) for ids in (truth.image_ids, results.image_ids))
        fit = oks(results.points[found], truth.points[wanted], labelled[wanted], truth.areas[wanted], sigmas)
        while fit.max(initial=0) > 0:
            row, column = np.unravel_index(fit.argmax(), fit.shape)
            points[wanted[column]] = results.points[found[row]]
            scores[wanted[column]] = results.joint_scores[found[row]]
            fit[row], fit[:, column] = 0, 0
    return points, scores


class _Ids:
    """Image ids of an annotated set by file name or id, ``None`` for other images."""

    def __init__(self, truth: PoseSet) -> None:
        self.ids = set(truth.image_ids.tolist())
        self.by_name: dict[str, int | None] = {}
        for file, image_id in dict(zip(truth.files, truth.image_ids.tolist(), strict=True)).items():
            parts = file.parts
            for i in range(len(parts)):
                name = "/".join(parts[i:])
                # The same name in two folders says too little to tell them apart.
                self.by_name[name] = image_id if self.by_name.get(name, image_id) == image_id else None

    def __call__(self, image: str | int) -> int | None:
        if isinstance(image, str):
            return self.by_name.get(image.replace("\\", "/"))
        return image if image in self.ids else None


def _read_csv(path: Path) -> tuple[tuple[str, ...], list[_Person]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or ()
            names = tuple(c.removesuffix("_x") for c in columns if c.endswith("_x"))
            wanted = {"score", *(f"{n}_{v}" for n in names for v in ("x", "y", "score"))}
            if not names or not wanted <= set(columns):
                raise InputError(
                    f"{path}: not hgpose's wide CSV, whose columns are frame, time_s, person, ..."
                )
            if "name" not in columns:
                raise InputError(_NO_NAMES.format(path=path))
            people = []
            for row in rows:
                # A frame with nobody has no score; the person's id may be empty all the same.
                if row["score"] != "":
                    joints = [[_number(row[f"{n}_{v}"]) for v in ("x", "y", "score")] for n in names]
                    people.append((row["name"], np.array(joints), float(row["score"])))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: line {rows.line_num} is malformed ({error})") from error
    return names, people


def _number(field: str) -> float:
    return float(field) if field != "" else float("nan")


_NO_NAMES = (
    "{path}: its frames have no image names; run hgpose on the folder of annotated images, not on a video"
)


def _read_json(path: Path) -> tuple[tuple[str, ...], list[_Person]]:
    content = read_json(path)
    try:
        if isinstance(content, dict) and content.get("schema") == "hgpose/1":
            return tuple(content["keypoints"]), list(_hgpose_people(content, path))
        if isinstance(content, list) and all(isinstance(p, dict) and "image_id" in p for p in content):
            return _coco_names(content, path), list(_coco_people(content))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: malformed ({type(error).__name__}: {error})") from error
    raise InputError(
        f"{path}: neither hgpose JSON (schema 'hgpose/1') nor COCO results (a list with 'image_id')"
    )


def _hgpose_people(content: dict[str, Any], path: Path) -> Iterator[_Person]:
    for frame in content["frames"]:
        if "name" not in frame:
            raise InputError(_NO_NAMES.format(path=path))
        for person in frame["people"]:
            joints = np.array(person["keypoints"], dtype=np.float64).reshape(len(content["keypoints"]), 3)
            yield frame["name"], joints, float(person["score"])


def _coco_people(content: list[dict[str, Any]]) -> Iterator[_Person]:
    for person in content:
        joints = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
        yield person["image_id"], joints, float(person["score"])


def _coco_names(content: list[dict[str, Any]], path: Path) -> tuple[str, ...]:
    counts = {len(person["keypoints"]) // 3 for person in content}
    if not counts:
        return ()
    for known in KEYPOINT_SETS.values():
        if counts == {len(known)}:
            return known.names
    sizes = ", ".join(f"{len(s)} ({s.name})" for s in KEYPOINT_SETS.values())
    raise InputError(f"{path}: its people have {sorted(counts)} keypoints; known are {sizes}")
