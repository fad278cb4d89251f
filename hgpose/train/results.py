"""A user's own keypoints file, read as predictions for an annotated set.

Symbols: M annotated people, P predicted people, K keypoints. Points are image px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.results import open_results
from hgpose.train.datasets import PoseSet
from hgpose.train.metrics import CocoImages, oks

#: Id of the image, keypoints ``(k, 3)`` as x, y, score, and the person's score.
_Person = tuple[int, NDArray[np.float32], float]


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


def load_results(path: Path, truth: PoseSet, images: CocoImages | None = None) -> PoseResults:
    """Predicted people from whatever :func:`hgpose.results.open_results` reads, but YOLO's.

    Images are matched by file name, a path relative to any folder above them, or by COCO's image id;
    people on other images are left out. Keypoints are matched by name; COCO results have none, there
    the number of keypoints tells the set. Who has no score has the mean of the keypoints'.

    Args:
        path: the results.
        truth: the annotated set.
        images: all images of the COCO file the set comes from, also those without annotated people, on
            which whoever is found is wrong; by default only those of ``truth``.

    Raises:
        InputError: unreadable or malformed file, results of a video, no image of the annotated set.
    """
    ids = _Ids(truth.files, truth.image_ids) if images is None else _Ids(images.files, images.image_ids)
    rows: list[_Person] = []
    stranger: str | int | None = None
    with open_results(path) as results:
        if results.is_relative:
            raise InputError(
                f"{path}: its points are shares of the pictures; give the JSON that "
                "hgpose convert --to json --source IMAGES makes of it"
            )
        names = results.keypoint_set.names
        for frame in results.frames:
            if not frame.name and results.kind != "coco":
                raise InputError(
                    f"{path}: its frames have no image names; run hgpose on the folder of annotated images, "
                    "not on a video"
                )
            image_id = ids(frame.name or frame.index)
            if image_id is None:
                stranger = frame.name or frame.index if len(frame.poses) else stranger
                continue
            poses = frame.poses
            of_people = np.where(np.isnan(poses.box_scores), poses.person_scores, poses.box_scores)
            for points, scores, score in zip(poses.keypoints, poses.scores, of_people, strict=True):
                rows.append((image_id, np.column_stack([points, scores]), float(score)))
    if stranger is not None and not rows:
        raise InputError(
            f"{path}: none of its images, such as {stranger!r}, is in the annotations; "
            "results must come from the annotated images"
        )
    order = np.array([names.index(name) if name in names else -1 for name in truth.names])
    known = order >= 0
    if not known.any():
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

    def __init__(self, files: Sequence[Path], image_ids: NDArray[np.int64]) -> None:
        self.ids = set(image_ids.tolist())
        self.of_file: dict[Path, set[int]] = {}
        for file, image_id in zip(files, image_ids.tolist(), strict=True):
            self.of_file.setdefault(file, set()).add(image_id)
        self.by_name: dict[str, Path | None] = {}
        for file in self.of_file:
            parts = file.parts
            for i in range(len(parts)):
                name = "/".join(parts[i:])
                # The same name in two folders says too little to tell them apart.
                self.by_name[name] = None if name in self.by_name else file

    def __call__(self, image: str | int) -> int | None:
        if not isinstance(image, str):
            return image if image in self.ids else None
        if (file := self.by_name.get(image.replace("\\", "/"))) is None:
            # Some write ids as text.
            return self(int(image)) if image.isdecimal() else None
        image_id, *others = self.of_file[file]
        if others:
            raise InputError(
                f"{file}: the annotations have it under the ids {image_id} and {others[0]}, so that its name "
                "does not tell which is meant; list it once"
            )
        return image_id
