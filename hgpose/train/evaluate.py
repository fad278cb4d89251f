"""Runs a model over an annotated set and scores what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.atomic import atomic_path, output_errors
from hgpose.detect import Detector
from hgpose.draw import draw_poses
from hgpose.errors import InputError
from hgpose.estimate import CropEstimator
from hgpose.geometry import MAX_PX, CropTransform
from hgpose.keypoints import KeypointSet
from hgpose.options import Style
from hgpose.sources.images import read_image
from hgpose.train.datasets import (
    BoxSet,
    Coco,
    ImageFinder,
    PoseSet,
    keep_joints,
    read_id,
    read_json,
    reading,
)
from hgpose.train.metrics import (
    COUNTED_HEIGHT,
    CocoImages,
    auc,
    box_ap,
    correct_joints,
    head_px,
    keypoint_ap,
    match_boxes,
    oks_nms,
    pck,
    torso_px,
)
from hgpose.train.results import PoseResults
from hgpose.types import Detections, Frame, Poses

#: People whose crops are prepared at once; bounds the memory for their images.
_CHUNK = 64
#: Side of the pictures of the worst people.
_WORST_PX = 384
#: MMPose's ``vis_thr`` and ``oks_thr`` for COCO, which are those of Xiao, Wu and Wei 2018: joints that score
#: more count in a person's score, and people more similar than this are the same one.
_COUNTED_SCORE, _SAME_PERSON_OKS = 0.2, 0.9
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
    return _keypoints(estimator, people.files, None if whole_image else people.boxes, people.names)


def _keypoints(
    estimator: CropEstimator,
    files: Sequence[Path],
    boxes: NDArray[np.float32] | None,
    names: Sequence[str],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keypoints in boxes ``(n, 4)`` on n files, or on the whole files, as :func:`predict_keypoints`."""
    order = [
        estimator.keypoint_set.names.index(n) if n in estimator.keypoint_set.names else -1 for n in names
    ]
    points, scores = [], []
    for start in range(0, len(files), _CHUNK):
        rows = slice(start, start + _CHUNK)
        pictures = {file: read_image(file) for file in dict.fromkeys(files[rows])}
        images = [pictures[file] for file in files[rows]]
        if boxes is None:
            shown = np.array([[-0.5, -0.5, im.shape[1] - 0.5, im.shape[0] - 0.5] for im in images])
        else:
            shown = boxes[rows]
        found, found_scores, _ = estimator(images, [estimator.transform(box) for box in shown])
        points.append(found)
        scores.append(found_scores)
    all_points, all_scores = np.concatenate(points)[:, order], np.concatenate(scores)[:, order]
    unknown = np.array(order) < 0
    all_points[:, unknown], all_scores[:, unknown] = np.nan, 0
    return all_points, all_scores


def load_coco_images(path: Path, folders: Sequence[Path], people: PoseSet) -> CocoImages | None:
    """What AP must know of a COCO-style file besides its people with keypoints.

    Args:
        path: the annotation file.
        folders: where its images are, as for ``people``.
        people: loaded from it.

    Returns:
        ``None`` if the file is of another kind.

    Raises:
        InputError: malformed annotation, missing image or one of another size.
    """
    document = None if path.suffix.lower() == ".mat" else read_json(path)
    if not isinstance(document, dict):
        return None
    coco = Coco(document, path, ImageFinder(path, folders))
    joints = np.array([any(name in known for known in coco.joints.values()) for name in people.names])
    names = [name for name, known in zip(people.names, joints, strict=True) if known]
    must_be_found = set(people.annotation_ids.tolist())
    ignored = []
    for annotation in coco.annotations():
        with reading(annotation.where):
            known_joints = coco.joints.get(annotation.category_id)
            if known_joints is None or annotation.id in must_be_found:
                continue
            # Without a box nobody can say whether a prediction lies on an unlabelled person.
            if (box := annotation.box()) is None:
                continue
            labelled = bool(annotation.entry.get("keypoints"))
            table = annotation.keypoints(known_joints) if labelled else np.zeros((len(known_joints), 3))
            row = dict(zip(known_joints, table.tolist(), strict=True))
            wanted = np.array([row.get(name, (0.0, 0.0, 0.0)) for name in names])
            ignored.append(
                {
                    "image_id": annotation.image.id,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": annotation.area(box),
                    "iscrowd": int(annotation.is_crowd),
                    "keypoints": wanted.ravel().tolist(),
                    "num_keypoints": int((wanted[:, 2] > 0).sum()),
                }
            )
    files = tuple(coco.file(image) for image in coco.images.values())
    ids = np.array(list(coco.images), dtype=np.int64)
    return CocoImages(files, ids, frozenset(coco.joints), joints, tuple(ignored))


def load_detections(path: Path, images: CocoImages) -> list[Detections]:
    """Detected people from COCO detection results, for every image of the set.

    The file is a list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``. Other categories
    and other images are left out.

    Raises:
        InputError: unreadable or malformed file, no person on any image of the set.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: not COCO detection results (a list of boxes)")
    rows = {image_id: i for i, image_id in enumerate(images.image_ids.tolist())}
    found: list[list[tuple[float, ...]]] = [[] for _ in rows]
    for number, entry in enumerate(entries, start=1):
        try:
            wanted = entry["category_id"] in images.category_ids
            row = rows.get(read_id(entry["image_id"])) if wanted else None
            x, y, w, h, score = (float(v) for v in (*entry["bbox"], entry["score"]))
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: entry {number} lacks a good image_id, category_id, bbox or score ({error!r}); "
                "it must be a list of COCO detections"
            ) from error
        far = np.abs([x, y, x + w, y + h]).max()
        if not (far <= MAX_PX and np.isfinite(score) and w >= 0 and h >= 0):
            raise InputError(
                f"{path}: entry {number}: {entry['bbox']} is not a box within {MAX_PX} px, with a score; "
                "remove it"
            )
        if row is not None:
            found[row].append((x, y, x + w, y + h, score))
    if not any(found):
        raise InputError(f"{path}: no person on the annotated images; it must come from the same images")
    tables = [np.array(people, np.float32).reshape(-1, 5) for people in found]
    return [Detections(table[:, :4], table[:, 4]) for table in tables]


def predict_people(
    estimator: CropEstimator,
    images: CocoImages,
    detections: Sequence[Detections],
    names: Sequence[str],
    sigmas: Sequence[float],
) -> PoseResults:
    """People in detected boxes, as published COCO results of top-down networks are made.

    As MMPose does (``TopDownCocoDataset.evaluate``, which follows Xiao, Wu and Wei 2018): a person's score
    is the box's times the mean score of the joints that score above 0.2, and of people whose object keypoint
    similarity is above 0.9 the best is kept, where a person's area is that of the crop.

    Args:
        estimator: with the network.
        images: the annotated ones.
        detections: one for every image.
        names: K keypoints, the order of the result.
        sigmas: K per-keypoint constants.
    """
    counts = [len(found) for found in detections]
    boxes = np.concatenate([found.boxes for found in detections])
    files = [file for file, n in zip(images.files, counts, strict=True) for _ in range(n)]
    points, joint_scores = _keypoints(estimator, files, boxes, names)
    counted = images.joints & (joint_scores > _COUNTED_SCORE)
    scores = np.concatenate([found.scores for found in detections])
    scores *= (joint_scores * counted).sum(1) / np.maximum(counted.sum(1), 1)
    areas = np.array([estimator.transform(box).width_px ** 2 for box in boxes])
    judged_sigmas = np.asarray(sigmas)[images.joints].tolist()
    kept: list[int] = []
    start = 0
    for n in counts:
        rows = slice(start, start + n)
        same_image = points[rows][:, images.joints]
        best = oks_nms(same_image, scores[rows], areas[rows], judged_sigmas, _SAME_PERSON_OKS)
        kept += [start + row for row in best]
        start += n
    image_ids = np.repeat(images.image_ids, counts)
    known = np.isin(names, estimator.keypoint_set.names)
    return PoseResults(image_ids[kept], points[kept], joint_scores[kept], scores[kept], known)


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
    images: CocoImages | None = None,
) -> dict[str, Any]:
    """All scores of predicted keypoints that the annotations allow.

    Args:
        people: M annotated people.
        points: ``(M, K, 2)`` image px, the prediction for each; NaN where there is none.
        scores: ``(M, K)`` in [0, 1].
        sigmas: K per-keypoint constants.
        results: what average precision is computed from, if it is not one prediction for each person;
            joints that they do not have at all are not judged.
        images: of the COCO file the people come from, for COCO's own average precision.

    Returns:
        ``people``; of ``results``, ``people_without_result``;
        ``pck@0.2`` and, where a head is labelled, ``pckh@0.5``, each with ``mean`` (over
        joints), ``weighted_mean`` (over labels), ``limbs`` (mean over shoulders to wrists and hips to
        ankles) and ``per_joint``, percent, PCKh as published without pelvis and thorax; ``head``, what
        PCKh measures by; ``AP``,
        ``AP50``, ``AP75``, ``recall`` by object keypoint similarity, shares; ``auc`` of score against
        correct@0.2, a share.
    """
    judged_people = _judged(people, results)
    labelled = judged_people.visibility > 0
    scored: dict[str, Any] = {"people": len(people)}
    if results is not None:
        scored["people_without_result"] = int(np.isnan(points).all(axis=(1, 2)).sum())
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
    if "pckh@0.5" in scored:
        scored["head"] = (
            "head box" if people.head_sizes is not None else "head top to neck, for want of boxes"
        )
    if results is None:
        ap = keypoint_ap(judged_people, sigmas, people.image_ids, points, scores.mean(1), images)
    else:
        ap = keypoint_ap(judged_people, sigmas, results.image_ids, results.points, results.scores, images)
    scored |= {"AP": ap.ap, "AP50": ap.ap50, "AP75": ap.ap75, "recall": ap.recall}
    correct, judged_joints = correct_joints(points, people.points, labelled, torso_px(people), 0.2)
    scored["auc"] = auc(scores[judged_joints], correct[judged_joints])
    return scored


def _judged(people: PoseSet, results: PoseResults | None) -> PoseSet:
    """The people, with only those joints labelled that the results have at all.

    Lengths that errors are measured by are to be taken from all labels, since another network's joints do
    not change how large a person is.
    """
    return people if results is None else keep_joints(people, results.known)


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
    ap = box_ap(boxes, found, COUNTED_HEIGHT)
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
    results: PoseResults | None = None,
) -> list[Path]:
    """Writes the people with the most wrong joints, worst first, the annotation beside the prediction.

    Args:
        folder: for the pictures; made if it is not there.
        count: of people.
        people, points, scores, results: as for :func:`pose_scores`.
        keypoints: the K joints.

    Returns:
        The PNG files, ``<rank>_<wrong joints>_<image>.png``, left the truth, right the prediction.

    Raises:
        OutputError: the folder cannot be written to, or the disk is full.
    """
    labelled = _judged(people, results).visibility > 0
    correct, judged = correct_joints(points, people.points, labelled, torso_px(people), 0.2)
    wrong = (judged & ~correct).sum(1)
    files = []
    for rank, i in enumerate(np.argsort(-wrong, kind="stable")[:count]):
        view = CropTransform.from_box(people.boxes[i], _WORST_PX, 1.3)
        picture = view.warp(read_image(people.files[i]))
        sides = []
        for xy, seen in ((people.points[i], labelled[i]), (points[i], scores[i])):
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
        _, data = cv2.imencode(".png", np.hstack(sides)[..., ::-1])
        with atomic_path(path, overwrite=True) as partial, output_errors(path):
            partial.write_bytes(data.tobytes())
        files.append(path)
    return files
