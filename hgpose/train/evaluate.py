"""Runs a model over an annotated set and scores what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.atomic import atomic_path
from hgpose.detect import Detector
from hgpose.draw import draw_poses
from hgpose.estimate import CropEstimator
from hgpose.geometry import CropTransform
from hgpose.keypoints import KeypointSet
from hgpose.options import Style
from hgpose.sources.images import read_image
from hgpose.train.datasets import BoxSet, PoseSet
from hgpose.train.metrics import (
    auc,
    box_ap,
    correct_joints,
    head_px,
    keypoint_ap,
    match_boxes,
    pck,
    torso_px,
)
from hgpose.train.results import PoseResults
from hgpose.types import Detections, Frame, Poses

#: People whose crops are prepared at once; bounds the memory for their images.
_CHUNK = 64
#: Side of the pictures of the worst people.
_WORST_PX = 384
_LIMB_JOINTS = {"shoulder", "elbow", "wrist", "hip", "knee", "ankle"}


def predict_keypoints(
    estimator: CropEstimator, people: PoseSet, whole_image: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keypoints of every annotated person, matched by name.

    Args:
        estimator: with the network.
        people: annotated; their boxes are what the network is shown.
        whole_image: show it the whole image instead, for sets with one person an image.

    Returns:
        points ``(M, K, 2)`` image px and scores ``(M, K)`` in the order of ``people.names``; NaN and 0
        for a keypoint that the model does not know.
    """
    order = [
        estimator.keypoint_set.names.index(n) if n in estimator.keypoint_set.names else -1
        for n in people.names
    ]
    points, scores = [], []
    for start in range(0, len(people), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(people)))
        images = [read_image(people.files[i]) for i in rows]
        if whole_image:
            boxes = np.array([[-0.5, -0.5, im.shape[1] - 0.5, im.shape[0] - 0.5] for im in images])
        else:
            boxes = people.boxes[rows.start : rows.stop]
        found, found_scores, _ = estimator(images, [estimator.transform(box) for box in boxes])
        points.append(found)
        scores.append(found_scores)
    all_points, all_scores = np.concatenate(points)[:, order], np.concatenate(scores)[:, order]
    unknown = np.array(order) < 0
    all_points[:, unknown], all_scores[:, unknown] = np.nan, 0
    return all_points, all_scores


def predict_boxes(detector: Detector, images: BoxSet) -> list[Detections]:
    """The detector's people on every image of the set."""
    found: list[Detections] = []
    for start in range(0, len(images), _CHUNK):
        files = images.files[start : start + _CHUNK]
        found += detector([Frame(read_image(file), start + i, 0.0) for i, file in enumerate(files)])
    return found


def pose_scores(
    people: PoseSet,
    points: NDArray[np.float32],
    scores: NDArray[np.float32],
    sigmas: Sequence[float],
    results: PoseResults | None = None,
) -> dict[str, Any]:
    """All scores of predicted keypoints that the annotations allow.

    Args:
        people: M annotated people.
        points: ``(M, K, 2)`` image px, the prediction for each; NaN where there is none.
        scores: ``(M, K)`` in [0, 1].
        sigmas: K per-keypoint constants.
        results: what average precision is computed from, if it is not one prediction for each person.

    Returns:
        ``people``; ``pck@0.2`` and, where a head is labelled, ``pckh@0.5``, each with ``mean`` (over
        joints), ``weighted_mean`` (over labels), ``limbs`` (mean over shoulders to wrists and hips to
        ankles) and ``per_joint``, percent, PCKh as published without pelvis and thorax; ``AP``,
        ``AP50``, ``AP75``, ``recall`` by object keypoint similarity, shares; ``auc`` of score against
        correct@0.2, a share.
    """
    labelled = people.visibility > 0
    scored: dict[str, Any] = {"people": len(people)}
    # MPII's evaluation leaves out the two joints whose place the annotators could only guess.
    published = labelled & ~np.isin(people.names, ("pelvis", "thorax"))
    for name, judged_labels, reference, alpha in (
        ("pck@0.2", labelled, torso_px(people), 0.2),
        ("pckh@0.5", published, head_px(people), 0.5),
    ):
        result = pck(points, people.points, judged_labels, reference, alpha)
        if not result.people:
            continue
        judged = {
            joint: float(value)
            for joint, value, n in zip(people.names, result.per_joint, result.counts, strict=True)
            if n
        }
        limbs = [
            value
            for joint, value in judged.items()
            if joint.removeprefix("left_").removeprefix("right_") in _LIMB_JOINTS
        ]
        scored[name] = {
            "mean": result.mean,
            "weighted_mean": result.weighted_mean,
            "limbs": float(np.mean(limbs)) if limbs else None,
            "per_joint": judged,
        }
    if results is None:
        ap = keypoint_ap(people, sigmas, people.image_ids, points, scores.mean(1))
    else:
        ap = keypoint_ap(people, sigmas, results.image_ids, results.points, results.scores)
    scored |= {"AP": ap.ap, "AP50": ap.ap50, "AP75": ap.ap75, "recall": ap.recall}
    correct, judged_joints = correct_joints(points, people.points, labelled, torso_px(people), 0.2)
    scored["auc"] = auc(scores[judged_joints], correct[judged_joints])
    return scored


def box_scores(boxes: BoxSet, found: Sequence[Detections], threshold: float) -> dict[str, Any]:
    """All scores of detected boxes; people shorter than a tenth of the image do not count either way.

    Args:
        boxes: annotated.
        found: for each image, detections of any score.
        threshold: from which score on a detection is shown to the user.

    Returns:
        ``images``; ``AP``, ``AP50``, ``AP75``, ``recall`` as COCO has them, shares; and at the
        threshold ``recall@0.5_tall`` of people taller than a quarter of the image, a share,
        ``false_per_image`` and ``false_per_100_empty`` images.
    """
    ap = box_ap(boxes, found, min_height=0.1)
    rates = match_boxes(boxes, found).at(threshold)
    return {
        "images": len(boxes),
        "AP": ap.ap,
        "AP50": ap.ap50,
        "AP75": ap.ap75,
        "recall": ap.recall,
        "threshold": threshold,
        "recall@0.5_tall": rates.recall_tall,
        "false_per_image": rates.false_per_image,
        "false_per_100_empty": rates.false_per_100_empty,
    }


def write_worst(
    folder: Path,
    count: int,
    people: PoseSet,
    points: NDArray[np.float32],
    scores: NDArray[np.float32],
    keypoints: KeypointSet,
) -> list[Path]:
    """Writes the people with the most wrong joints, worst first, the annotation beside the prediction.

    Returns:
        The PNG files, ``<rank>_<wrong joints>_<image>.png``, left the truth, right the prediction.
    """
    correct, judged = correct_joints(points, people.points, people.visibility > 0, torso_px(people), 0.2)
    wrong = (judged & ~correct).sum(1)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for rank, i in enumerate(np.argsort(-wrong, kind="stable")[:count]):
        view = CropTransform.from_box(people.boxes[i], _WORST_PX, 1.3)
        picture = view.warp(read_image(people.files[i]))
        sides = []
        for xy, seen in ((people.points[i], people.visibility[i] > 0), (points[i], scores[i])):
            poses = Poses(
                view.to_crop(xy)[None].astype(np.float32),
                np.asarray(seen, np.float32)[None],
                np.zeros((1, 4), np.float32),
                np.ones(1, np.float32),
                np.full(1, -1, np.int64),
                keypoints,
            )
            sides.append(draw_poses(picture, poses, Style(boxes=False, threshold=0.05)))
        path = folder / f"{rank:03d}_{wrong[i]}_{people.files[i].stem}.png"
        with atomic_path(path, overwrite=True) as partial:
            _, data = cv2.imencode(".png", np.hstack(sides)[..., ::-1])
            partial.write_bytes(data.tobytes())
        files.append(path)
    return files
