"""Runs a model over an annotated set and scores what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.estimate import Estimator
from hgpose.train.cache import read_rgb
from hgpose.train.datasets import PoseSet

#: People whose crops are prepared at once; bounds the memory for their images.
_CHUNK = 64


def predict_keypoints(
    estimator: Estimator, people: PoseSet
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keypoints of every annotated person, from the annotated boxes, matched by name.

    Returns:
        points ``(M, K, 2)`` image px and scores ``(M, K)`` in the order of ``people.names``; NaN and 0
        for a keypoint that the model does not know.
    """
    order = [estimator.keypoint_set.names.index(n) if n in estimator.keypoint_set.names else -1 for n in people.names]
    points, scores = [], []
    for start in range(0, len(people), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(people)))
        images = [read_rgb(people.files[i]) for i in rows]
        found = estimator(images, [estimator.transform(people.boxes[i]) for i in rows])
        points.append(found.points)
        scores.append(found.scores)
    all_points, all_scores = np.concatenate(points)[:, order], np.concatenate(scores)[:, order]
    unknown = np.array(order) < 0
    all_points[:, unknown], all_scores[:, unknown] = np.nan, 0
    return all_points, all_scores


@dataclass(frozen=True)
class Pck:
    mean: float


def score_pck(people: PoseSet, points: Any) -> Pck:
    a, b = people.names.index("left_shoulder"), people.names.index("right_hip")
    vis = people.visibility > 0
    ref = np.linalg.norm(people.points[:, a] - people.points[:, b], axis=-1)
    use = vis & (vis[:, a] & vis[:, b])[:, None]
    ok = (np.linalg.norm(points - people.points, axis=-1) <= 0.2 * ref[:, None]) & use
    n = use.sum(0)
    return Pck(float(100 * (ok.sum(0)[n > 0] / n[n > 0]).mean()))
