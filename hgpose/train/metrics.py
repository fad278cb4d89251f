"""Scores of keypoints and boxes against annotations.

Symbols: M annotated people, P predicted people, K keypoints. Points are image px. A predicted point
that is NaN is missing, and wrong wherever that joint is labelled.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.train.datasets import BoxSet, PoseSet
from hgpose.types import Detections

FloatArray = NDArray[np.floating]
Bools = NDArray[np.bool_]

#: MPII's evaluation takes this share of the head box's diagonal as the length of the head.
HEAD_BOX_SHARE = 0.6
#: People shorter than this share of their image do not count when a finder is judged.
COUNTED_HEIGHT = 0.1


@dataclass(frozen=True)
class Pck:
    """Percentage of correct keypoints.

    Attributes:
        per_joint: ``(K,)`` float64 percent, NaN where no person has the joint labelled.
        counts: ``(K,)`` int64, how many labels each joint was judged by.
        people: how many people were judged.
    """

    per_joint: NDArray[np.float64]
    counts: NDArray[np.int64]
    people: int

    @property
    def mean(self) -> float:
        """Percent, every joint counting the same; NaN if nothing was judged."""
        judged = self.per_joint[self.counts > 0]
        return float(judged.mean()) if judged.size else float("nan")

    @property
    def weighted_mean(self) -> float:
        """Percent, every label counting the same; NaN if nothing was judged."""
        judged = self.counts > 0
        total = int(self.counts.sum())
        return float(self.per_joint[judged] @ self.counts[judged] / total) if total else float("nan")


def torso_px(people: PoseSet) -> NDArray[np.float64]:
    """Left shoulder to right hip ``(M,)`` px, NaN where either is not labelled: PCK's reference on LSP."""
    return _distance(people, "left_shoulder", "right_hip")


def head_px(people: PoseSet) -> NDArray[np.float64]:
    """Head size ``(M,)`` px, NaN where unknown: PCKh's reference.

    It is MPII's where the annotations have head boxes, else the distance from head top to neck,
    which only approximates it.
    """
    if people.head_sizes is not None:
        return people.head_sizes.astype(np.float64)
    return _distance(people, "head_top", "neck")


def _distance(people: PoseSet, start: str, end: str) -> NDArray[np.float64]:
    if not {start, end} <= set(people.names):
        return np.full(len(people), np.nan)
    ends = [people.names.index(start), people.names.index(end)]
    points = people.points[:, ends].astype(np.float64)
    length = np.linalg.norm(points[:, 0] - points[:, 1], axis=-1)
    return np.where((people.visibility[:, ends] > 0).all(-1), length, np.nan)


def correct_joints(
    points: FloatArray, truth: FloatArray, labelled: Bools, reference_px: FloatArray, alpha: float
) -> tuple[Bools, Bools]:
    """Which joints are right, and which are judged at all.

    Args:
        points: ``(M, K, 2)`` predicted.
        truth: ``(M, K, 2)`` annotated.
        labelled: ``(M, K)``, whether the annotation has the joint.
        reference_px: ``(M,)``; people where it is NaN or not positive are not judged.
        alpha: a joint is right up to this share of its person's reference.

    Returns:
        correct ``(M, K)`` bool and judged ``(M, K)`` bool; what is not judged is not correct.
    """
    known = reference_px > 0
    judged = labelled & known[:, None]
    reach = alpha * np.where(known, reference_px, 0)
    near = np.linalg.norm(np.asarray(points, np.float64) - truth, axis=-1) <= reach[:, None]
    return near & judged, judged


def pck(
    points: FloatArray, truth: FloatArray, labelled: Bools, reference_px: FloatArray, alpha: float = 0.2
) -> Pck:
    """Percentage of correct keypoints (Yang and Ramanan 2013); arguments as :func:`correct_joints`.

    With :func:`torso_px` this is the person-centric PCK@0.2 of LSP, with :func:`head_px` and
    ``alpha=0.5`` the PCKh@0.5 of MPII (Andriluka et al. 2014).
    """
    correct, judged = correct_joints(points, truth, labelled, reference_px, alpha)
    counts = judged.sum(0)
    per_joint = np.where(counts > 0, 100 * correct.sum(0) / np.maximum(counts, 1), np.nan)
    return Pck(per_joint, counts.astype(np.int64), int(judged.any(1).sum()))


def auc(scores: FloatArray, correct: Bools) -> float:
    """The probability that a right keypoint scores above a wrong one, ties counting half.

    The area under the ROC curve as the Mann-Whitney statistic.

    Args:
        scores: ``(n,)``.
        correct: ``(n,)``.

    Returns:
        A share in [0, 1]; NaN unless there are both right and wrong ones.
    """
    right = int(correct.sum())
    wrong = correct.size - right
    if not (right and wrong):
        return float("nan")
    _, position, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[position]
    return float((ranks[correct].sum() - right * (right + 1) / 2) / (right * wrong))


def oks(
    points: FloatArray, truth: FloatArray, labelled: Bools, areas: FloatArray, sigmas: Sequence[float]
) -> NDArray[np.float64]:
    """Object keypoint similarity (Lin et al., cocodataset.org, "Keypoint Evaluation").

    Args:
        points: ``(P, K, 2)`` predicted.
        truth: ``(M, K, 2)`` annotated.
        labelled: ``(M, K)``.
        areas: ``(M,)`` px^2, or ``(P, M)`` where they depend on the prediction.
        sigmas: K per-keypoint constants.

    Returns:
        ``(P, M)`` in [0, 1]; 0 for a person without labelled joints.
    """
    squared = ((np.asarray(points, np.float64)[:, None] - truth[None]) ** 2).sum(-1)
    variance = (2 * np.asarray(sigmas, np.float64)) ** 2
    spread = 2 * variance * (np.asarray(areas, np.float64)[..., None] + np.spacing(1.0))
    similarity = np.exp(-np.where(np.isnan(squared), np.inf, squared) / spread)
    return np.asarray((similarity * labelled).sum(-1) / np.maximum(labelled.sum(-1), 1))


def oks_nms(
    points: FloatArray, scores: FloatArray, areas: FloatArray, sigmas: Sequence[float], limit: float
) -> list[int]:
    """Non-maximum suppression of the people of one image by object keypoint similarity.

    As published top-down results have it (Xiao, Wu and Wei 2018, and MMPose): the area of a pair is the
    mean of both.

    Args:
        points: ``(P, K, 2)``.
        scores: ``(P,)``, of the person.
        areas: ``(P,)`` px^2.
        sigmas: K per-keypoint constants.
        limit: a person more similar than this to a better one is left out.

    Returns:
        Rows of ``points``, best first.
    """
    every = np.ones(points.shape[:2], np.bool_)
    similarity = oks(points, points, every, (areas[:, None] + areas[None]) / 2, sigmas)
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable").tolist():
        if not (similarity[row, kept] > limit).any():
            kept.append(row)
    return kept


@dataclass(frozen=True)
class CocoImages:
    """All images of a COCO file, and who is on them besides the people who must be found.

    Attributes:
        files: I image files.
        image_ids: ``(I,)`` int64.
        category_ids: the file's categories of people.
        joints: ``(K,)`` bool, which joints of the people's set the file knows at all; J of them.
        ignored: annotations of crowds and of people without keypoints, as COCO has them but with x, y, v
            of the J joints. Whoever is found there is neither right nor wrong.
    """

    files: tuple[Path, ...]
    image_ids: NDArray[np.int64]
    category_ids: frozenset[int]
    joints: Bools
    ignored: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's summary, shares in [0, 1]; NaN where there is nobody to find.

    Attributes:
        ap: mean over thresholds 0.50 to 0.95 of the similarity.
        ap50, ap75: at one threshold.
        recall: COCO's average recall, over the same thresholds.
        recall50: at 0.50.
    """

    ap: float
    ap50: float
    ap75: float
    recall: float
    recall50: float


#: What stands for a missing keypoint where NaN cannot: px so far away that its similarity is 0.
_NOWHERE_PX = -1e6


def keypoint_ap(
    truth: PoseSet,
    sigmas: Sequence[float],
    image_ids: NDArray[np.int64],
    points: FloatArray,
    scores: FloatArray,
    images: CocoImages | None = None,
) -> AveragePrecision:
    """Average precision by object keypoint similarity, through a COCO evaluation library.

    Args:
        truth: annotated people.
        sigmas: K per-keypoint constants.
        image_ids: ``(P,)``, the image of each predicted person, as in ``truth``.
        points: ``(P, K, 2)``, joints in the order of ``truth.names``.
        scores: ``(P,)``, of the person.
        images: of the COCO file that ``truth`` comes from; with them the result is COCO's own. By default
            only images with annotated people are judged, and nobody else is on them.
    """
    judged_ids = truth.image_ids if images is None else images.image_ids
    joints = np.ones(len(truth.names), np.bool_) if images is None else images.joints
    people = np.concatenate([truth.points, truth.visibility[..., None]], axis=-1).astype(np.float64)
    annotations: list[dict[str, Any]] = [
        {
            "image_id": int(truth.image_ids[i]),
            "bbox": _xywh(truth.boxes[i]),
            "area": float(truth.areas[i]),
            "iscrowd": 0,
            "keypoints": people[i, joints].ravel().tolist(),
            "num_keypoints": int((truth.visibility[i] > 0).sum()),
        }
        for i in range(len(truth))
    ]
    if images is not None:
        annotations += [dict(annotation) for annotation in images.ignored]
    placed = np.nan_to_num(np.asarray(points, np.float64)[:, joints], nan=_NOWHERE_PX)
    triples = np.concatenate([placed, np.ones((*placed.shape[:2], 1))], axis=-1)
    results = [
        {
            "image_id": int(image_ids[i]),
            # Not used to match, but a detection whose area the library finds too large is ignored.
            "bbox": [0.0, 0.0, 1.0, 1.0],
            "keypoints": triples[i].ravel().tolist(),
            "score": float(scores[i]),
        }
        for i in np.flatnonzero(np.isin(image_ids, judged_ids))
    ]
    return _coco_summary(
        "keypoints", judged_ids, annotations, results, np.asarray(sigmas, np.float64)[joints].tolist()
    )


def box_ap(truth: BoxSet, detections: Sequence[Detections], min_height: float = 0.0) -> AveragePrecision:
    """Average precision by box overlap (IoU), through a COCO evaluation library.

    Args:
        truth: annotated boxes.
        detections: one for every file of ``truth``.
        min_height: people shorter than this share of their image are neither to be found nor wrong
            to find: like crowds they take any number of detections that lie mostly on them.
    """
    annotations = [
        {
            "image_id": int(image_id),
            "bbox": _xywh(box),
            "area": float((box[2] - box[0]) * (box[3] - box[1])),
            "iscrowd": int(ignored),
        }
        for i, image_id in enumerate(truth.image_ids)
        for box, ignored in zip(truth.boxes[i], _ignored(truth, i, min_height), strict=True)
    ]
    results = [
        {"image_id": int(image_id), "bbox": _xywh(box), "score": float(score)}
        for image_id, found in zip(truth.image_ids, detections, strict=True)
        for box, score in zip(found.boxes, found.scores, strict=True)
    ]
    return _coco_summary("bbox", truth.image_ids, annotations, results, None)


def _coco_summary(
    kind: str,
    image_ids: NDArray[np.int64],
    annotations: list[dict[str, Any]],
    results: list[dict[str, Any]],
    sigmas: Sequence[float] | None,
) -> AveragePrecision:
    from faster_coco_eval import COCO, COCOeval_faster

    for i, annotation in enumerate(annotations):
        annotation["id"] = i + 1
    for entry in (*annotations, *results):
        entry["category_id"] = 1
    truth = COCO(
        {
            "images": [{"id": int(i)} for i in np.unique(image_ids)],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}],
        }
    )
    evaluation = COCOeval_faster(
        truth, truth.loadRes(results), kind, kpt_oks_sigmas=None if sigmas is None else list(sigmas)
    )
    evaluation.run()
    # The library says -1 where there is nobody to find.
    stats = {k: v if v >= 0 else float("nan") for k, v in evaluation.stats_as_dict.items()}
    # Its "AR_all" is the recall of one detection an image for boxes, of all for keypoints.
    recall = stats["AR_third" if kind == "bbox" else "AR_all"]
    return AveragePrecision(stats["AP_all"], stats["AP_50"], stats["AP_75"], recall, stats["AR_50"])


def _xywh(box: FloatArray) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _heights(truth: BoxSet, i: int) -> NDArray[np.float64]:
    """Heights of the boxes of image ``i`` ``(n,)``, as shares of the image's."""
    boxes = truth.boxes[i].astype(np.float64)
    return np.asarray((boxes[:, 3] - boxes[:, 1]) / truth.sizes_wh[i, 1])


def _ignored(truth: BoxSet, i: int, min_height: float) -> Bools:
    return truth.crowd[i] | (_heights(truth, i) < min_height)


def count_people(truth: BoxSet) -> int:
    """How many people a finder is judged by: neither crowds nor those shorter than :data:`COUNTED_HEIGHT`."""
    return sum(int((~_ignored(truth, i, COUNTED_HEIGHT)).sum()) for i in range(len(truth)))


def _overlaps(found: FloatArray, boxes: FloatArray, ignored: Bools) -> NDArray[np.float64]:
    """IoU ``(P, n)``; for an ignored box the share of the found one that lies on it, as COCO does."""
    found, boxes = found.astype(np.float64), boxes.astype(np.float64)
    low = np.maximum(found[:, None, :2], boxes[None, :, :2])
    high = np.minimum(found[:, None, 2:], boxes[None, :, 2:])
    common = np.maximum(high - low, 0).prod(-1)
    area_found = np.maximum(found[:, 2:] - found[:, :2], 0).prod(-1)[:, None]
    area_boxes = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    union = np.where(ignored, area_found, area_found + area_boxes - common)
    return np.asarray(common / np.maximum(union, 1e-9))


@dataclass(frozen=True)
class BoxRates:
    """How a detector does at one score threshold.

    Attributes:
        recall_tall: share of tall people found, NaN if there are none.
        false_per_image: false boxes an image, over all images.
        false_per_100_empty: false boxes per 100 images without people, NaN if there are none.
    """

    recall_tall: float
    false_per_image: float
    false_per_100_empty: float


@dataclass(frozen=True)
class BoxMatches:
    """D detections of a whole set, matched to people once, to be judged at any threshold.

    COCO's matching goes from high scores to low, so leaving out low scores changes no other match.

    Attributes:
        scores: ``(D,)``.
        false: ``(D,)`` bool, neither on a person nor on an ignored one.
        tall: ``(D,)`` bool, finds a tall person.
        empty: ``(D,)`` bool, on an image without people.
        tall_people, images, empty_images: how many there are.
    """

    scores: NDArray[np.float32]
    false: Bools
    tall: Bools
    empty: Bools
    tall_people: int
    images: int
    empty_images: int

    def at(self, threshold: float) -> BoxRates:
        """The rates when detections that score at least ``threshold`` are kept."""
        kept = self.scores >= threshold
        return BoxRates(
            _share((kept & self.tall).sum(), self.tall_people),
            _share((kept & self.false).sum(), self.images),
            100 * _share((kept & self.false & self.empty).sum(), self.empty_images),
        )

    def choose_threshold(self, max_false_per_image: float, max_false_per_100_empty: float) -> float:
        """The lowest score at which neither rate of false boxes is exceeded: the best recall.

        Raises:
            InputError: there is no such score.
        """

        def allowed(score: np.float32) -> bool:
            rates = self.at(float(score))
            # Written so that NaN, no image without people, passes.
            return not (
                rates.false_per_image > max_false_per_image
                or rates.false_per_100_empty > max_false_per_100_empty
            )

        levels = np.unique(self.scores)
        # Fewer boxes are kept at a higher score, so what is allowed stays allowed.
        lowest = bisect_left(levels, True, key=allowed)
        if lowest < len(levels):
            return float(levels[lowest])
        raise InputError(
            f"no score keeps false boxes to {max_false_per_image} an image and {max_false_per_100_empty} "
            "per 100 images without people; train the detector longer or allow more"
        )


def match_boxes(
    truth: BoxSet,
    detections: Sequence[Detections],
    min_height: float = COUNTED_HEIGHT,
    tall_height: float = 0.25,
    min_iou: float = 0.5,
) -> BoxMatches:
    """Matches detections to people, one to one, as COCO does.

    Args:
        truth: annotated boxes.
        detections: one for every file of ``truth``.
        min_height: people shorter than this share of their image are ignored, as in :func:`box_ap`.
        tall_height: people taller than this share of their image count as tall.
        min_iou: overlap from which a box is found.
    """
    scores, false, tall, empty = [], [], [], []
    tall_people = empty_images = 0
    for i, found in zip(range(len(truth)), detections, strict=True):
        ignored = _ignored(truth, i, min_height)
        is_tall = (_heights(truth, i) > tall_height) & ~ignored
        by_score = np.argsort(-found.scores, kind="stable")
        matched = _match(_overlaps(found.boxes[by_score], truth.boxes[i], ignored), ignored, min_iou)
        scores.append(found.scores[by_score])
        false.append(matched < 0)
        tall.append(np.append(is_tall, False)[matched])
        empty.append(np.full(len(found), not len(ignored)))
        tall_people += int(is_tall.sum())
        empty_images += not len(ignored)
    return BoxMatches(
        np.concatenate(scores),
        np.concatenate(false),
        np.concatenate(tall),
        np.concatenate(empty),
        tall_people,
        len(truth),
        empty_images,
    )


def _match(overlaps: NDArray[np.float64], ignored: Bools, min_iou: float) -> NDArray[np.int64]:
    """For detections by falling score, the box each finds, -1 for none: ``(P,)`` int64.

    Every box is found once, an ignored one any number of times but only if no other is.
    """
    free = ~ignored
    matched = np.full(len(overlaps), -1)
    for row, overlap in enumerate(overlaps):
        for candidates in (free, ignored):
            value = np.where(candidates & (overlap >= min_iou), overlap, -1.0)
            if value.size and value.max() >= 0:
                matched[row] = value.argmax()
                break
        if matched[row] >= 0:
            free[matched[row]] = False
    return matched


def _share(part: np.integer[Any], whole: int) -> float:
    return float(part) / whole if whole else float("nan")
