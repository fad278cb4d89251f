"""A short clip of two rendered people with exact truth; ``make_clip`` renders it, nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: The clip: H.264, 640x360, 25 frames a second.
CLIP = Path(__file__).with_name("hgpose-demo.mp4")
#: Its truth: COCO-style JSON with body19 keypoints, image px; image ids are 0-based frame indices.
TRUTH = Path(__file__).with_name("hgpose-demo.json")


@dataclass(frozen=True)
class DemoScore:
    """How well a result fits the truth: the share of people found, and PCK@0.2 of all joints, percent."""

    found: float
    pck: float


def score_demo(results: Path) -> DemoScore:
    """Scores an hgpose JSON of the demo clip; a person who was not found has all joints wrong.

    Args:
        results: as ``hgpose demo`` writes it.
    """
    import json

    import numpy as np

    from hgpose.keypoints import keypoint_set
    from hgpose.train.metrics import oks, pck

    truth = json.loads(TRUTH.read_text(encoding="utf-8"))
    document = json.loads(results.read_text(encoding="utf-8"))
    keypoints = keypoint_set(document["keypoint_set"])
    names = truth["categories"][0]["keypoints"]
    frames = {frame["frame"]: frame["people"] for frame in document["frames"]}
    wanted, given = [], []
    for image in truth["images"]:
        people = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        if not people:
            continue
        joints = np.array([a["keypoints"] for a in people], np.float64).reshape(len(people), len(names), 3)
        joints = keypoints.rows_of(joints, names)
        areas = np.array([a["area"] for a in people])
        found = np.array([p["keypoints"] for p in frames[image["id"]]], np.float64)
        best = np.full_like(joints[..., :2], np.nan)
        if len(found):
            likeness = oks(found[..., :2], joints[..., :2], joints[..., 2] > 0, areas, keypoints.sigmas)
            # Best pairs first, each person once.
            while likeness.size and likeness.max() > 0:
                row, column = np.unravel_index(likeness.argmax(), likeness.shape)
                best[column] = found[row, :, :2]
                likeness[row], likeness[:, column] = -1, -1
        wanted.append(joints)
        given.append(best)
    joints, points = np.concatenate(wanted), np.concatenate(given)
    torso = joints[:, keypoints.index("left_shoulder"), :2] - joints[:, keypoints.index("right_hip"), :2]
    score = pck(points, joints[..., :2], joints[..., 2] > 0, np.linalg.norm(torso, axis=-1))
    return DemoScore(float(np.isfinite(points[:, 0, 0]).mean()), score.weighted_mean)
