"""How well people are followed: ids, steadiness and lag against exact truth, or the gain on any video.

With truth, detections come from it too, jittered, dropped and invented with a fixed seed: what is scored is
the following, not the person finder. Keypoints come from the pose network or, to leave it out as well, from
the truth with noise.

Symbols: N people, K keypoints, T frames. Points and boxes are image px.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.detect import iou
from hgpose.errors import InputError
from hgpose.estimate import CropEstimator, Estimator, keypoint_box
from hgpose.follow import Follower
from hgpose.keypoints import KeypointSet
from hgpose.options import EstimatorOptions
from hgpose.smooth import SURE
from hgpose.sources.video import VideoSource
from hgpose.track import join
from hgpose.train.metrics import pck
from hgpose.types import Detections, Frame, Poses

#: Of the detector that is made up: people it misses, people it invents for each there is, and the standard
#: deviation of a box's edges, in widths and heights.
_MISSED, _INVENTED, _JITTER = 0.2, 0.05, 0.06
#: Of the keypoints that are made up: standard deviation, in box heights, of those seen and those hidden.
_NOISE, _HIDDEN_NOISE = 0.012, 0.04
_SEEN_SCORE, _HIDDEN_SCORE = 0.8, 0.4
#: Mean score of a crop that shows nobody, as the network's (exponentially distributed) is about.
_NOBODY_SCORE = 0.05
#: People of whom a smaller share of the keypoints shows are neither asked for nor held against anyone.
_SHOWN = 0.25
#: A box that overlaps a true one by this shows its person (as in the MOT Challenge).
_FOUND = 0.5
#: A keypoint moves that is so fast, px a frame.
_MOVES = 1.0
#: A crop shows the person it overlaps best, if by this.
_IN_CROP = 0.3

SMOOTHINGS = ("none", "live", "full")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TrueFrame:
    """The people of a frame.

    Attributes:
        ids: ``(N,)`` int64.
        joints: ``(N, K, 3)`` float64 x, y and COCO's visibility: 0 outside, 1 hidden, 2 seen.
        outlines: ``(N, 4)`` float32 xyxy, around what shows of their bodies.
        boxes: ``(N, 4)`` float32 xyxy, around their keypoints as the boxes of people found are.
        shot: counts the cuts before it.
    """

    ids: NDArray[np.int64]
    joints: Array
    outlines: NDArray[np.float32]
    boxes: NDArray[np.float32]
    shot: int

    @property
    def shown(self) -> NDArray[np.bool_]:
        """``(N,)`` who can be seen well enough to be asked for."""
        return np.asarray((self.joints[..., 2] == 2).mean(axis=1) >= _SHOWN)


def load_truth(path: Path, keypoint_set: KeypointSet) -> list[TrueFrame]:
    """The truth of a clip: COCO JSON whose images are its frames in order, people with a ``track_id``.

    An image's ``shot``, if it has one, counts the cuts before it.

    Args:
        path: the file.
        keypoint_set: whose keypoints are wanted, in its order; those that the file lacks count as outside.

    Raises:
        InputError: not such a file, or without people.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(document["categories"][0]["keypoints"])
        people: dict[int, list[Any]] = {image["id"]: [] for image in document["images"]}
        for annotation in document["annotations"]:
            people[annotation["image_id"]].append(annotation)
        frames = []
        for image in sorted(document["images"], key=lambda image: image["id"]):
            here = people[image["id"]]
            joints = np.array([a["keypoints"] for a in here], np.float64).reshape(len(here), len(names), 3)
            low_wh = np.array([a["bbox"] for a in here], np.float32).reshape(-1, 4)
            outlines = np.concatenate([low_wh[:, :2], low_wh[:, :2] + low_wh[:, 2:]], axis=1)
            boxes = [
                keypoint_box(j[:, :2].astype(np.float32), np.sign(j[:, 2]).astype(np.float32), outline)
                for j, outline in zip(joints, outlines, strict=True)
            ]
            frames.append(
                TrueFrame(
                    np.array([a["track_id"] for a in here], np.int64),
                    keypoint_set.rows_of(joints, names),
                    outlines,
                    np.array(boxes, np.float32).reshape(-1, 4),
                    int(image.get("shot", 0)),
                )
            )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of truth") from None
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: not COCO JSON of people with keypoints and track_id ({error!r})"
        ) from error
    if not any(len(frame.ids) for frame in frames):
        raise InputError(f"{path}: nobody is in it, so there is nothing to score")
    return frames


def check_packages() -> None:
    """Whether ids can be scored here.

    Raises:
        InputError: motmetrics is not installed.
    """
    if importlib.util.find_spec("motmetrics") is None:
        raise InputError("scores of ids need motmetrics: pip install 'hgpose[train]'")


def lives(truth: Sequence[TrueFrame], fps: float, lost_s: float) -> list[NDArray[np.int64]]:
    """Ids ``(N,)`` of each frame's people as a tracker should give them.

    Behind a cut, and after being out of sight for longer than ``lost_s``, a person is another one.
    """
    last: dict[int, tuple[int, int, int]] = {}
    count, found = 0, []
    for number, frame in enumerate(truth):
        given = np.full(len(frame.ids), -1, np.int64)
        for row, identity in enumerate(frame.ids.tolist()):
            life, before, shot = last.get(identity, (-1, -1, -1))
            if life < 0 or shot != frame.shot or (number - before) / fps > lost_s:
                life, before, count = count, number, count + 1
            if frame.shown[row]:
                before = number
            last[identity] = life, before, frame.shot
            given[row] = life
        found.append(given)
    return found


class MadeUpDetector:
    """Sees the people of the truth, badly: some missed, some invented, boxes jittered.

    A frame's answer depends on the seed and the frame alone, whichever others were looked at.
    """

    name = "truth"
    proposes = True
    threshold = 0.0

    def __init__(self, truth: Sequence[TrueFrame], seed: int) -> None:
        self._truth, self._seed = truth, seed

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        """The people of each frame, best score first."""
        return [self._people(frame) for frame in frames]

    def _people(self, frame: Frame) -> Detections:
        truth = self._truth[frame.index]
        rng = np.random.default_rng((self._seed, frame.index))
        shown = truth.outlines[truth.shown]
        seen = shown[rng.random(len(shown)) >= _MISSED]
        height, width = frame.image.shape[:2]
        tall = height * rng.uniform(0.3, 0.7, rng.binomial(len(shown), _INVENTED))
        half = np.column_stack([0.2 * tall, 0.5 * tall])
        center = rng.uniform(half, np.maximum(half, np.array([width, height]) - half))
        boxes = np.concatenate([seen, np.concatenate([center - half, center + half], axis=1)])
        size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        boxes = boxes + rng.normal(0, _JITTER, boxes.shape) * size
        scores = np.sort(rng.uniform(0.4, 0.9, len(boxes)))[::-1]
        return Detections(boxes.astype(np.float32), scores.astype(np.float32))


Look = Callable[[Frame, Detections], Poses]


def made_up_poses(
    truth: Sequence[TrueFrame], keypoint_set: KeypointSet, least_score: float, seed: int
) -> Look:
    """A pose network that sees in a crop, with noise, whoever fills it best and shows most."""
    shape = next((f.joints[0, :, :2] - f.boxes[0, :2]) / np.ptp(f.boxes[0].reshape(2, 2), axis=0)
                 for f in truth if len(f.ids))  # fmt: skip

    def look(frame: Frame, people: Detections) -> Poses:
        here = truth[frame.index]
        rng = np.random.default_rng((seed, frame.index, 1))
        rows = np.flatnonzero(here.shown)
        overlap = iou(people.boxes, here.boxes[rows])
        likely = overlap * (here.joints[rows, :, 2] == 2).mean(axis=1)
        points = np.zeros((len(people), len(keypoint_set), 2))
        scores = np.zeros(points.shape[:2])
        for i, box in enumerate(people.boxes):
            if len(rows) and overlap[i].max() >= _IN_CROP:
                joints = here.joints[rows[likely[i].argmax()]]
                seen = joints[:, 2] == 2
                points[i], scores[i] = joints[:, :2], np.where(seen, _SEEN_SCORE, _HIDDEN_SCORE)
                # Where a joint outside the picture is nobody can tell.
                outside = joints[:, 2] == 0
                points[i, outside], scores[i, outside] = (box[:2] + box[2:]) / 2, 0.0
                spread = np.where(seen, _NOISE, _HIDDEN_NOISE)
            else:
                points[i] = box[:2] + shape * (box[2:] - box[:2])
                scores[i], spread = rng.exponential(_NOBODY_SCORE), np.full(len(keypoint_set), _HIDDEN_NOISE)
            points[i] += rng.normal(0, 1, points[i].shape) * spread[:, None] * (box[3] - box[1])
        ids = np.full(len(people), -1, np.int64)
        poses = Poses(
            points.astype(np.float32),
            scores.astype(np.float32),
            people.boxes,
            people.scores,
            ids,
            keypoint_set,
        )
        return poses[np.flatnonzero(poses.person_scores >= least_score)]

    return look


class _Rehearsed(Estimator):
    """An estimator whose keypoints come from a function, which is asked only once for the same boxes."""

    def __init__(
        self,
        detector: MadeUpDetector,
        keypoint_set: KeypointSet,
        options: EstimatorOptions,
        look: Look,
        known: dict[tuple[int, bytes], Poses],
    ) -> None:
        self.detector, self.keypoint_set, self.options = detector, keypoint_set, options
        self._look, self._known = look, known

    def poses(self, frames: Sequence[Frame], people: Sequence[Detections]) -> list[Poses]:
        found = []
        for frame, boxes in zip(frames, people, strict=True):
            key = frame.index, boxes.boxes.tobytes()
            if key not in self._known:
                self._known[key] = self._look(frame, boxes)
            found.append(self._known[key])
        return found


@dataclass(frozen=True)
class Followed:
    """A clip once through.

    Attributes:
        poses: T frames' people.
        fps: of the clip.
        detections: frames on which the detector ran.
        seconds: it took, with decoding, without writing anything.
        sides_corrected: poses in which sides were put right.
    """

    poses: list[Poses]
    fps: float
    detections: int
    seconds: float
    sides_corrected: int


def follow_clip(
    video: Path, estimator: Estimator, detect_every: int, start_s: float = 0.0, end_s: float | None = None
) -> Followed:
    """Follows the people of a video, or of a part of it.

    Raises:
        InputError: it cannot be opened or has no frame there.
    """
    started = time.perf_counter()
    with VideoSource(video, start_s=start_s, end_s=end_s) as source:
        follower = Follower(estimator, detect_every, source.info.fps)
        poses = [p for done in follower([frame] for frame in source) for _, p in done]
        fps = float(source.info.fps or 0)
    if not poses:
        raise InputError(f"{video}: no frame to process")
    seconds = time.perf_counter() - started
    return Followed(poses, fps, follower.detections, seconds, follower.sides_corrected)


def score_clip(
    video: Path,
    truth: Sequence[TrueFrame],
    crops: CropEstimator | None,
    keypoint_set: KeypointSet,
    options: EstimatorOptions,
    detect_every: int,
    seeds: int,
) -> tuple[list[Any], dict[str, float]]:
    """Follows the people of a clip with truth, under detections that are made up.

    Args:
        video: the clip.
        truth: its people.
        crops: the pose network; ``None`` for keypoints from the truth, with noise.
        keypoint_set: of the poses.
        options: how people are followed; the smoothing is each of :data:`SMOOTHINGS` in turn.
        detect_every: the detector runs at least on every n-th frame.
        seeds: so many detectors, one after the other.

    Returns:
        motmetrics' accumulators, one a seed, and the scores of :func:`motion_scores` with the
        detections a frame and the poses whose sides were corrected.

    Raises:
        InputError: the clip has another number of frames than the truth.
    """
    with VideoSource(video) as source:
        count = sum(1 for _ in source)
    if count != len(truth):
        raise InputError(f"{video}: {count} frames, but {len(truth)} in its truth")
    accumulators, motions = [], []
    for seed in range(seeds):
        detector = MadeUpDetector(truth, seed)
        if crops is None:
            look = made_up_poses(truth, keypoint_set, options.min_person_score, seed)
        else:
            network = Estimator(detector, crops, options)

            def look(frame: Frame, people: Detections, network: Estimator = network) -> Poses:
                return network.poses([frame], [people])[0]

        known: dict[tuple[int, bytes], Poses] = {}
        runs = {}
        for smooth in SMOOTHINGS:
            how = replace(options, smooth=smooth)
            runs[smooth] = follow_clip(
                video, _Rehearsed(detector, keypoint_set, how, look, known), detect_every
            )
        full = runs["full"]
        true_ids = lives(truth, full.fps, options.lost_s)
        accumulators.append(_events(truth, true_ids, full.poses))
        motion = motion_scores(truth, true_ids, {s: run.poses for s, run in runs.items()}, keypoint_set)
        motions.append({"detections": full.detections / len(truth), "sides": full.sides_corrected} | motion)
    return accumulators, {key: float(np.mean([m[key] for m in motions])) for key in motions[0]}


def _events(truth: Sequence[TrueFrame], true_ids: Sequence[NDArray[np.int64]], found: Sequence[Poses]) -> Any:
    """A motmetrics accumulator of a clip's frames."""
    import motmetrics

    events = motmetrics.MOTAccumulator(auto_id=True)
    for frame, ids, poses in zip(truth, true_ids, found, strict=True):
        overlap = iou(frame.boxes, poses.boxes)
        # Whoever follows somebody who hardly shows does no harm.
        harmless = {j for i, j in join(overlap, _FOUND) if not frame.shown[i]}
        kept = [j for j in range(len(poses)) if j not in harmless]
        apart = 1 - overlap[frame.shown][:, kept]
        events.update(
            ids[frame.shown].tolist(), poses.ids[kept].tolist(), np.where(apart > 1 - _FOUND, np.nan, apart)
        )
    return events


def id_scores(events: dict[str, list[Any]]) -> dict[str, dict[str, float]]:
    """IDF1, MOTA and their parts for each clip, and for ``all``, by motmetrics.

    Args:
        events: for each clip its accumulators, whose counts add up.
    """
    import motmetrics

    metrics = ["idf1", "mota", "num_switches", "num_misses", "num_false_positives", "num_objects"]
    host = motmetrics.metrics.create()

    def summary(accumulators: list[Any]) -> dict[str, float]:
        names = [str(i) for i in range(len(accumulators))]
        table = host.compute_many(accumulators, metrics=metrics, names=names, generate_overall=True)
        return {m.removeprefix("num_"): float(table.loc["OVERALL", m]) for m in metrics}

    found = {name: summary(accumulators) for name, accumulators in events.items()}
    return found | {"all": summary([a for accumulators in events.values() for a in accumulators])}


def motion_scores(
    truth: Sequence[TrueFrame],
    true_ids: Sequence[NDArray[np.int64]],
    found: dict[str, list[Poses]],
    keypoint_set: KeypointSet,
) -> dict[str, float]:
    """What each smoothing does to the keypoints of the people found.

    Args:
        truth: T frames.
        true_ids: from :func:`lives`.
        found: for each smoothing, ``none`` among them, T frames' people.
        keypoint_set: of the poses.

    Returns:
        For each smoothing ``pck_NAME``, PCK@0.2 of the torso in percent; ``lag_NAME``, frames by which it
        makes keypoints come late: the least-squares factor of what it changes on the true velocity; and
        ``jitter_NAME``, the error's mean acceleration, px a frame squared.
    """
    scores: dict[str, float] = {}
    count = max((int(ids.max()) for ids in true_ids if len(ids)), default=-1) + 1
    shape = (count, len(truth), len(keypoint_set), 2)
    right = np.full(shape, np.nan)
    given = {smooth: np.full(shape, np.nan) for smooth in found}
    for t, (frame, ids) in enumerate(zip(truth, true_ids, strict=True)):
        right[ids, t] = np.where(frame.joints[..., 2:] > 0, frame.joints[..., :2], np.nan)
        for smooth, poses in found.items():
            for i, j in join(iou(frame.boxes, poses[t].boxes), _FOUND):
                if frame.shown[i]:
                    given[smooth][ids[i], t] = poses[t].keypoints[j]
    for smooth, points in given.items():
        scores |= {
            f"pck_{smooth}": _pck(right, points, keypoint_set),
            f"lag_{smooth}": _lag(right, points - given["none"]),
            f"jitter_{smooth}": _acceleration(points - right),
        }
    return scores


def _pck(right: Array, given: Array, keypoint_set: KeypointSet) -> float:
    """Of the people who were found."""
    rows = np.asarray(np.isfinite(given[..., 0]).any(axis=-1))
    joints, points = right[rows], given[rows]
    torso = joints[:, keypoint_set.index("left_shoulder")] - joints[:, keypoint_set.index("right_hip")]
    labelled = np.isfinite(joints[..., 0]) & np.isfinite(torso).all(axis=-1, keepdims=True)
    size = np.nan_to_num(np.linalg.norm(torso, axis=-1), nan=1.0)
    return pck(points, np.nan_to_num(joints), labelled, size).weighted_mean


def _lag(right: Array, change: Array) -> float:
    velocity, change = (right[:, 2:] - right[:, :-2]) / 2, change[:, 1:-1]
    both = np.isfinite(change) & np.isfinite(velocity)
    # Whoever hardly moves cannot be late.
    both &= np.linalg.norm(velocity, axis=-1, keepdims=True) >= _MOVES
    moved = float(np.square(velocity[both]).sum())
    return -float((change[both] * velocity[both]).sum()) / moved if moved else float("nan")


def _acceleration(points: Array) -> float:
    """Mean over all ``(..., T, K, 2)`` that are finite on three frames running."""
    size = np.linalg.norm(np.diff(points, 2, axis=-3), axis=-1)
    return float(size[np.isfinite(size)].mean()) if np.isfinite(size).any() else float("nan")


def score_video(
    video: Path,
    estimator: Estimator,
    detect_every: int,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> dict[str, Any]:
    """What following does for a video whose truth nobody knows.

    Args:
        video: the file.
        estimator: whose smoothing is each of :data:`SMOOTHINGS` in turn.
        detect_every: to be compared with detecting on every frame.
        start_s, end_s: the part that is looked at.

    Returns:
        Detections a frame, frames a second and people found, of both; how many people found by detecting
        on every frame are lost; and the mean acceleration of keypoints in each smoothing, px a frame
        squared, where they are sure on three frames running.

    Raises:
        InputError: the video cannot be opened or has no frame there.
    """

    def follow(smooth: str, detect_every: int) -> Followed:
        how = Estimator(estimator.detector, estimator.crops, replace(estimator.options, smooth=smooth))
        return follow_clip(video, how, detect_every, start_s, end_s)

    runs = {smooth: follow(smooth, detect_every) for smooth in SMOOTHINGS}
    each, some = follow("full", 1), runs["full"]
    lost = [
        len(a) - len(join(iou(a.boxes, b.boxes), _IN_CROP))
        for a, b in zip(each.poses, some.poses, strict=True)
    ]
    count = len(some.poses)
    shown = {s: _tracks(run.poses) for s, run in runs.items()}
    judged = np.logical_and.reduce([np.isfinite(points) for points in shown.values()])
    jitter = {s: _acceleration(np.where(judged, points, np.nan)) for s, points in shown.items()}
    return {
        "frames": count,
        "detect_every": detect_every,
        "detections_per_frame": some.detections / count,
        "frames_per_s_detecting_on_each": count / each.seconds,
        "frames_per_s": count / some.seconds,
        "people_detecting_on_each": sum(len(p) for p in each.poses),
        "people": sum(len(p) for p in some.poses),
        "people_lost": sum(lost),
        "frames_that_lost_someone": sum(n > 0 for n in lost),
        "ids": len({i for p in some.poses for i in p.ids.tolist()}),
        "sides_corrected": some.sides_corrected,
        **{f"jitter_{s}": value for s, value in jitter.items()},
        **{
            # Where nothing moves there is none to take away.
            f"jitter_falls_by_{s}_percent": 100 * (1 - jitter[s] / jitter["none"])
            if jitter["none"]
            else math.nan
            for s in SMOOTHINGS[1:]
        },
    }


def _tracks(found: Sequence[Poses]) -> Array:
    """``(ids, T, K, 2)`` the keypoints that are sure; NaN elsewhere."""
    ids = sorted({i for poses in found for i in poses.ids.tolist()})
    points = np.full((len(ids), len(found), len(found[0].keypoint_set), 2), np.nan)
    for t, poses in enumerate(found):
        rows = [ids.index(i) for i in poses.ids.tolist()]
        points[rows, t] = np.where(poses.scores[..., None] >= SURE, poses.keypoints, np.nan)
    return points
