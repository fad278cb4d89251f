"""Who is who over time: the people of a frame joined to those of the frames before.

Each track predicts where its person is next (an alpha-beta filter on the box, Kalman's in its steady
state). Predictions and new poses are compared by box overlap and by object keypoint similarity (OKS, as in
COCO's keypoint evaluation), discounted where the clothes differ in colour, and joined for the best total
(Hungarian assignment, scipy). The libraries at hand join boxes only (trackers, supervision) or need an
older numpy (norfair); it is pose and clothes that tell people apart who cross.

Symbols: M tracks, N poses, K keypoints, R parts of the clothes. Points and boxes are image px.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from hgpose.detect import iou
from hgpose.geometry import CropTransform
from hgpose.keypoints import KeypointSet
from hgpose.smooth import SURE
from hgpose.types import Poses

#: Frames that a new track has to prove itself, the one of its birth among them.
TRIAL_FRAMES = 5
#: Poses it needs within them, and how many of these must come with a detection.
_TRIAL_POSES, _TRIAL_DETECTIONS = 3, 2
#: A pose of lower similarity is another person.
_SAME = 0.35
#: Two poses of one frame that are closer than this (OKS) are the same person, found twice.
_TWICE = 0.6
#: Gains of the box filter for position and velocity. The velocity must be steady: nothing but it tells
#: where somebody comes out who went behind another.
_GAINS = 0.3, 0.03
#: Boxes of people who are too near to each other to be measured well overlap by this.
_NEAR = 0.1
#: Who is out of sight is expected to slow down, with this time constant, seconds,
_COAST_S = 1.0
#: and to be found around there, within a standard deviation of so many own heights for each second.
_STRAY = 0.5
#: On frames farther apart than this, seconds, boxes of who moves hardly overlap,
FAR_S = 0.08
#: each must tell the filter more,
_FAR_GAINS = 1.0, 0.3
#: who just was there may be anywhere within a standard deviation of so many own heights for each second,
_RUN = 3.0
#: and on frames farther apart than this, seconds, a person may well show on but one.
_SPARSE_S = 0.25
#: The clothes of a person: where they are seen, as shares of the way from one keypoint to another.
_CLOTHES = (("shoulder", "hip", 0.25), ("shoulder", "hip", 0.7), ("hip", "knee", 0.5))
#: Difference of clothes (CIE Lab, lightness halved) that speaks against two poses being one person.
_COLOUR = 30.0
#: Share of a track's colours that a new sighting replaces.
_FADE = 0.1
#: A pose whose score is less than this share of the usual is weak.
_WEAK = 0.6
#: Whose keypoints are not sure, on the mean, and whom the detector has passed over so often, has left.
_PASSED_OVER = 3
#: The usual score of a track follows its pose's by this share a frame.
_USUAL = 0.1


@dataclass(eq=False)
class Sighting:
    """A person on one frame.

    Attributes:
        number: of the frame, counted among those taken.
        time_s: of the frame.
        points: ``(K, 2)`` float32, sides corrected where that was needed.
        scores: ``(K,)`` float32.
        raw: ``(K, 3)`` float32: x, y and score as the network gave them.
        box: ``(4,)`` float32 xyxy.
        box_score: of the detection.
        heatmap: the person's maps ``(K, h, w)`` and their crop, where they were asked for.
        sides_checked: left and right were compared with the frames around.
    """

    number: int
    time_s: float
    points: NDArray[np.float32]
    scores: NDArray[np.float32]
    raw: NDArray[np.float32]
    box: NDArray[np.float32]
    box_score: float
    heatmap: tuple[NDArray[np.float32], CropTransform] | None
    sides_checked: bool = False

    @property
    def size_px(self) -> float:
        """The longer side of the box."""
        return float((self.box[2:] - self.box[:2]).max())


class Track:
    """One person over time.

    Attributes:
        sightings: in order; whoever reads them drops what he no longer needs, never the last.
        confirmed: it is a person, not a ghost of one frame.
        traced: its first frames were looked for.
        ended: no sighting will follow.
        missed: frames since the last sighting.
        detections: sightings that came with a detection.
        passed_over: looks of the detector since the last of them.
        usual_score: mean keypoint score, averaged over time.
        clothes: ``(R, 3)`` their colours, averaged over time, see :func:`clothes`; NaN where never seen.
        time_s: of the frame it was moved on to.
        id: given by whoever writes results; -1 until then.
    """

    def __init__(self, box: NDArray[np.floating], time_s: float, confirmed: bool) -> None:
        self.sightings: deque[Sighting] = deque()
        self.confirmed, self.traced, self.ended = confirmed, False, False
        self.missed = self.detections = self.passed_over = self._count = self._age = 0
        self.usual_score = 0.0
        self.clothes = np.full((len(_CLOTHES), 3), np.nan)
        self.id = -1
        # Centre and size, and the velocity of the centre in px/s.
        self._center, self._size = _center_size(box)
        self._velocity = np.zeros(2)
        self._last_box = box
        self._seen_center, self.time_s, self._seen_s = self._center, time_s, time_s
        self._step_s = 0.0

    @property
    def box(self) -> NDArray[np.float32]:
        """Where the person is by now: ``(4,)`` xyxy."""
        half = self._size / 2
        return np.concatenate([self._center - half, self._center + half]).astype(np.float32)

    @property
    def points(self) -> NDArray[np.float64]:
        """Where its keypoints are by now: ``(K, 2)``."""
        return self.sightings[-1].points + (self._center - self._seen_center)

    @property
    def crop_box(self) -> NDArray[np.float32]:
        """Where to look for it: the box of the last pose, moved on."""
        moved = self._center - self._seen_center
        return np.asarray(self._last_box + np.concatenate([moved, moved]), np.float32)

    @property
    def absent_s(self) -> float:
        """Seconds since it was seen."""
        return self.time_s - self._seen_s

    @property
    def on_trial(self) -> bool:
        """A detection or two more would tell whether it is a person."""
        return not self.confirmed and self.detections < _TRIAL_DETECTIONS

    @property
    def weak(self) -> bool:
        """The last pose was much less sure than the track's are as a rule."""
        return float(self.sightings[-1].scores.mean()) < _WEAK * self.usual_score

    def predict(self, time_s: float) -> None:
        """Moves on to the time of the next frame."""
        self._step_s = max(time_s - self.time_s, 0.0)
        coasted_s = min(self._step_s, _COAST_S) * math.exp(-self.absent_s / _COAST_S)
        self._center = self._center + self._velocity * coasted_s
        self.time_s = time_s
        self.missed += 1
        self._age += 1

    def see(self, sighting: Sighting, detected: bool, clothes: NDArray[np.floating], crowded: bool) -> None:
        """Takes in the person's pose on the frame that was predicted.

        Args:
            sighting: the pose.
            detected: it came with a detection.
            clothes: ``(R, 3)`` as they look on this frame.
            crowded: others are so near that the pose may be partly theirs.
        """
        self._last_box = sighting.box
        center, size = _center_size(sighting.box)
        error = center - self._center
        if self.sightings:
            alpha, beta = _FAR_GAINS if self._step_s > FAR_S else _GAINS
            self._center = self._center + alpha * error
            self._size = self._size + alpha * (size - self._size)
            self._velocity = self._velocity + beta * error / max(self.absent_s, 1e-3)
        self._seen_center, self._seen_s = self._center, self.time_s
        score = float(sighting.scores.mean())
        self.usual_score += (_USUAL if self.sightings else 1.0) * (score - self.usual_score)
        if not crowded:
            known = np.where(np.isnan(self.clothes), clothes, self.clothes)
            self.clothes = np.where(np.isnan(clothes), known, known + _FADE * (clothes - known))
        self.sightings.append(sighting)
        self.missed = 0
        self._count += 1
        self.detections += detected
        if self._count >= _TRIAL_POSES and self.detections >= _TRIAL_DETECTIONS:
            self.confirmed = True

    @property
    def is_ghost(self) -> bool:
        """It had its trial, and proved to be nobody."""
        return not self.confirmed and (self.missed >= _TRIAL_POSES or self._age >= TRIAL_FRAMES - 1)


def _center_size(box: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = box[:2].astype(np.float64), box[2:].astype(np.float64)
    return (low + high) / 2, high - low


class Tracker:
    """Joins the poses of each frame to tracks.

    Args:
        keypoint_set: of the poses.
        lost_s: a person out of sight for longer is taken for another one.
        exact_boxes: boxes are kept as they come, not filtered.
        certain: every pose is a person of its own: none is a ghost, none is found twice.
    """

    def __init__(
        self,
        keypoint_set: KeypointSet,
        lost_s: float = 1.0,
        exact_boxes: bool = False,
        certain: bool = False,
    ) -> None:
        self.tracks: list[Track] = []
        self._sigmas = np.array(keypoint_set.sigmas)
        self._lost_s, self._exact_boxes, self._certain = lost_s, exact_boxes, certain
        self._scene_frames = 0
        self._time_s, self._sparse = math.inf, False

    def cut(self) -> None:
        """Ends all tracks: what follows is another scene, or nothing."""
        for track in self.tracks:
            # In so short a scene nobody can prove himself.
            track.confirmed |= self._scene_frames < _TRIAL_POSES
            track.ended = True
        self.tracks, self._scene_frames = [], 0

    def predict(self, time_s: float) -> None:
        """Moves all tracks on to the time of the next frame."""
        self._sparse, self._time_s = time_s - self._time_s > _SPARSE_S, time_s
        for track in self.tracks:
            track.predict(time_s)
            track.confirmed |= self._sparse
            # Who was there on the frame before was not out of sight, however long ago that is.
            track.ended = track.confirmed and track.missed > 1 and track.absent_s > self._lost_s
        self.tracks = [track for track in self.tracks if not track.ended]

    def update(
        self,
        poses: Poses,
        detected: NDArray[np.bool_],
        looked: bool,
        number: int,
        time_s: float,
        image: NDArray[np.uint8],
    ) -> None:
        """Takes in the people of the frame for which :meth:`predict` was called.

        Args:
            poses: N people; the boxes say where they are.
            detected: ``(N,)`` which of them the detector saw on this frame.
            looked: whether it looked at this frame.
            number: of the frame, counted among those taken.
            time_s: of the frame.
            image: ``(H, W, 3)`` uint8 RGB, the frame's.
        """
        self._scene_frames += 1
        worn = clothes(image, poses)
        hidden = [t.box for t in self.tracks if t.confirmed and t.missed > 1]
        around = np.concatenate([poses.boxes, np.array(hidden, np.float32).reshape(-1, 4)])
        # Everybody overlaps himself.
        crowded = np.asarray((iou(poses.boxes, around) > _NEAR).sum(axis=1) > 1)
        left = self._distinct(poses, detected)
        # Those who have been seen before choose first; a ghost must not take their pose.
        for confirmed in (True, False):
            tracks = [track for track in self.tracks if track.confirmed == confirmed]
            rows = join(self._similarity(tracks, poses, left, worn), _SAME)
            for i, j in rows:
                track, row = tracks[i], left[j]
                track.passed_over = 0 if detected[row] else track.passed_over + looked
                if track.passed_over < _PASSED_OVER or poses.person_scores[row] >= SURE:
                    self._see(track, poses, row, bool(detected[row]), number, worn[row], bool(crowded[row]))
            taken = {j for _, j in rows}
            left = [row for j, row in enumerate(left) if j not in taken]
        for row in left:
            # Between detections crops follow tracks: a pose on them that no track takes is no newcomer.
            if detected[row]:
                track = Track(poses.boxes[row], time_s, self._certain or self._sparse)
                self._see(track, poses, row, True, number, worn[row], bool(crowded[row]))
                self.tracks.append(track)
        for track in self.tracks:
            track.ended = track.is_ghost
        self.tracks = [track for track in self.tracks if not track.ended]

    def see_before(self, track: Track, poses: Poses, number: int, time_s: float) -> bool:
        """Takes in a track's person on the frame before its first sighting.

        Args:
            track: whose person was looked for there.
            poses: what was found.
            number, time_s: of the frame.

        Returns:
            Whether the person is there. It is not if the pose is weak, unlike, or already someone else's.
        """
        first = track.sightings[0]
        if not len(poses):
            return False
        spread = 2 * self._sigmas
        box, scores = first.box[None], poses.scores
        alike = _oks(first.points[None], box, poses.keypoints, poses.boxes, scores, spread)
        alike = (alike + iou(box, poses.boxes))[0] / 2
        row = int(alike.argmax())
        if alike[row] < _SAME or poses.person_scores[row] < _WEAK * track.usual_score:
            return False
        sighting = _sighting(poses, row, number, time_s)
        others = [s for t in self.tracks for s in t.sightings if t is not track and s.number == number]
        if others:
            points, boxes = np.stack([s.points for s in others]), np.stack([s.box for s in others])
            same = _oks(points, boxes, sighting.points[None], sighting.box[None], scores[[row]], spread)
            if same.max() > _TWICE:
                return False
        track.sightings.appendleft(sighting)
        return True

    def _see(
        self,
        track: Track,
        poses: Poses,
        row: int,
        detected: bool,
        number: int,
        worn: NDArray[np.floating],
        crowded: bool,
    ) -> None:
        sighting = _sighting(poses, row, number, track.time_s)
        track.see(sighting, detected, worn, crowded)
        if not self._exact_boxes:
            sighting.box = track.box

    def _distinct(self, poses: Poses, detected: NDArray[np.bool_]) -> list[int]:
        """Rows of ``poses`` without those that show a person a second time, best first."""
        best_first = np.lexsort((-poses.person_scores, ~detected)).tolist()
        if self._certain or len(poses) < 2:
            return [int(row) for row in best_first]
        same = _oks(
            poses.keypoints, poses.boxes, poses.keypoints, poses.boxes, poses.scores, 2 * self._sigmas
        )
        kept: list[int] = []
        for row in best_first:
            if not (same[row, kept] > _TWICE).any():
                kept.append(row)
        return kept

    def _similarity(
        self, tracks: list[Track], poses: Poses, rows: list[int], worn: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """``(len(tracks), len(rows))`` in [0, 1]; ``worn`` ``(N, R, 3)`` are the clothes of ``poses``."""
        if not (tracks and rows):
            return np.zeros((len(tracks), len(rows)))
        boxes, others = np.stack([track.box for track in tracks]), poses.boxes[rows]
        points = np.stack([track.points for track in tracks])
        # The longer nobody saw it, the less is known of where it is.
        absent_s = np.array([track.absent_s for track in tracks])[:, None]
        oks = _oks(
            points,
            boxes,
            poses.keypoints[rows],
            others,
            poses.scores[rows],
            2 * self._sigmas * (1 + absent_s[..., None]),
        )
        away, taller = _apart(boxes, others)
        far = np.array([track.missed == 1 and track.absent_s > FAR_S for track in tracks])[:, None]
        stray = np.where(far, _RUN, _STRAY) * np.maximum(absent_s, 1e-3)
        near = np.exp(-np.square(away / stray) / 2) / taller
        # A place alone, where somebody may have gone, is half of the evidence.
        alike = np.maximum(oks + iou(boxes, others), near) / 2
        colours = np.stack([track.clothes for track in tracks])[:, None] - worn[None, rows]
        colours = np.linalg.norm(colours, axis=-1)
        both = np.isfinite(colours)
        unlike = np.where(both, colours, 0).sum(-1) / np.maximum(both.sum(-1), 1)
        return np.asarray(alike * np.exp(-np.square(unlike / _COLOUR) / 2))


def clothes(image: NDArray[np.uint8], poses: Poses) -> NDArray[np.float64]:
    """The colours people wear: ``(N, R, 3)`` CIE Lab, lightness halved; NaN where no keypoint is sure.

    Of each part the mean over the left and the right side.
    """
    if not len(poses):
        return np.zeros((0, len(_CLOTHES), 3))
    height, width = image.shape[:2]
    names = poses.keypoint_set.names
    found = np.full((len(poses), len(_CLOTHES), 2, 3), np.nan)
    for i, (points, scores, box) in enumerate(zip(poses.keypoints, poses.scores, poses.boxes, strict=True)):
        reach = max(1, round(float(box[3] - box[1]) / 60))
        for r, (start, end, share) in enumerate(_CLOTHES):
            for s, side in enumerate(("left", "right")):
                a, b = names.index(f"{side}_{start}"), names.index(f"{side}_{end}")
                if min(scores[a], scores[b]) < SURE:
                    continue
                x, y = np.rint(points[a] + share * (points[b] - points[a])).astype(int)
                if 0 <= x < width and 0 <= y < height:
                    part = image[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
                    found[i, r, s] = part.reshape(-1, 3).mean(0)
    seen = np.isfinite(found)
    colour = np.where(seen, found, 0).sum(2) / np.maximum(seen.sum(2), 1)
    lab = cv2.cvtColor((colour / 255).astype(np.float32).reshape(1, -1, 3), cv2.COLOR_RGB2Lab)
    lab = lab.reshape(colour.shape) * [0.5, 1, 1]
    return np.where(seen.any(2), lab, np.nan)


def _apart(
    boxes: NDArray[np.floating], others: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances of centres in heights, and how many times taller the taller box is, ``(M, N)`` both."""
    (center, size), (other_center, other_size) = (_center_size(b.T) for b in (boxes, others))
    height = np.maximum(size[1], 1.0)[:, None]
    other_height = np.maximum(other_size[1], 1.0)[None]
    away = np.linalg.norm(center[:, :, None] - other_center[:, None], axis=0)
    return away / height, np.maximum(height / other_height, other_height / height)


def _sighting(poses: Poses, row: int, number: int, time_s: float) -> Sighting:
    maps = poses.heatmaps
    heatmap = None if maps is None else (maps.maps[row], maps.transforms[row])
    points, scores = poses.keypoints[row], poses.scores[row]
    raw = np.column_stack([points, scores])
    return Sighting(
        number, time_s, points, scores, raw, poses.boxes[row], float(poses.box_scores[row]), heatmap
    )


def _oks(
    points: NDArray[np.floating],
    boxes: NDArray[np.floating],
    others: NDArray[np.floating],
    other_boxes: NDArray[np.floating],
    other_scores: NDArray[np.floating],
    spread: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Similarity ``(M, N)`` of M poses and N others, whose sure keypoints count more.

    ``spread`` is the standard deviation as a share of the person's size, to broadcast to ``(M, N, K)``.
    """
    # float64: the square of a far point's distance must not overflow.
    apart = np.square(points[:, None].astype(np.float64) - others[None]).sum(-1)
    area, other_area = (
        np.prod((b[:, 2:] - b[:, :2]).astype(np.float64), axis=1) for b in (boxes, other_boxes)
    )
    size = np.maximum(np.sqrt(area[:, None] * other_area[None]), 1.0)[..., None]
    weights = other_scores.astype(np.float64) + 1e-6
    alike = np.exp(-apart / (2 * size * np.square(spread)))
    return np.asarray((alike * weights).sum(-1) / weights.sum(-1))


def join(similarity: NDArray[np.floating], least: float) -> list[tuple[int, int]]:
    """Pairs (row, column) of the highest total similarity, each at least ``least``, none twice."""
    # A pair that must not be joined adds nothing to the total, rather than keeping out two that may.
    rows, columns = linear_sum_assignment(np.where(similarity >= least, similarity, 0), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if similarity[i, j] >= least]
