"""Runs a model over an annotated set and scores what it says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hgpose.detect import Detector
from hgpose.estimate import CropEstimator
from hgpose.sources.images import read_image
from hgpose.train.datasets import BoxSet, PoseSet
from hgpose.types import Detections, Frame

#: People whose crops are prepared at once; bounds the memory for their images.
_CHUNK = 64


def predict_keypoints(
    estimator: CropEstimator, people: PoseSet
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keypoints of every annotated person, from the annotated boxes, matched by name.

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
        found, found_scores, _ = estimator(images, [estimator.transform(people.boxes[i]) for i in rows])
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
