"""People through the frames of a source: where to look for them, who they are, how they move.

Between two detections each person is looked for where the last pose and its motion say. Frames wait
for as many later ones as it takes to tell a person from a ghost and to smooth without lag; memory is
bounded by that, however long the source.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.detect import WholeFrame, choose, iou
from hgpose.errors import OptionsError
from hgpose.estimate import Estimator, keypoint_box
from hgpose.keypoints import KeypointSet
from hgpose.options import EstimatorOptions
from hgpose.sides import SWAP_FRAMES, Pairs, Sides
from hgpose.smooth import GAP_S, SURE, OneEuroFilter, smooth_at
from hgpose.track import FAR_S, TRIAL_FRAMES, Sighting, Track, Tracker, join
from hgpose.types import Detections, Frame, Heatmaps, Poses

Finished = list[tuple[Frame, Poses]]

#: The full filter looks so far ahead and back, seconds, but over no more frames than this.
_WINDOW_S, _WINDOW_FRAMES = 0.2, 10
#: Who was found between two detections is looked for on the frames before, over no more than these.
_BACK_FRAMES = 10
#: A person is seen as a whole if at least this share of the keypoints is sure, leaving out the face.
_WHOLE, _FACE = 0.8, ("nose", "eye", "ear")
#: A detection that overlaps a track's box by this shows the track's person.
_SAME_BOX = 0.3
#: People whose boxes overlap by more may be mistaken for each other: the detector looks on every n-th frame.
_CROWDED, _CROWDED_EVERY = 0.3, 2
#: Frames for which a person out of sight is still looked for where he should be by now.
_LOOK_FRAMES = 2
#: Pictures are compared at this size, px.
_THUMBNAIL_WH = (24, 16)
#: On a picture grey differs by less than this, levels: it is a flash, or black, and shows no scene at all.
_FLAT_LEVELS = 1.0
#: At a cut pictures correlate less than this, and differ by at least so many grey levels;
_CUT_CORRELATION, _CUT_LEVELS = 0.5, 8.0
#: or less than this, if that is so many times as much of a change as has been usual lately.
_SIMILAR_CORRELATION, _CUT_CHANGE = 0.75, 15.0
#: Share of the usual change that a new one replaces.
_USUAL_CHANGE = 0.1


class CutDetector:
    """Sees where one scene ends and the next begins at once (a hard cut).

    Neighbouring frames of a scene look alike when small, whatever moves on them, and also if the light
    changes; frames of two scenes do not, or less than has been usual if both are of one place. A flash or
    a black frame is passed over: what follows it is compared with what was before it.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._change = 0.0

    def __call__(self, image: NDArray[np.uint8]) -> bool:
        """Whether a new scene begins with this image ``(H, W, 3)`` uint8 RGB."""
        # Every n-th pixel will do, and costs the same for every size of the image.
        few = cv2.resize(image, (8 * _THUMBNAIL_WH[0], 8 * _THUMBNAIL_WH[1]), interpolation=cv2.INTER_NEAREST)
        small = cv2.resize(few, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA)
        grey = small.astype(np.float32).mean(axis=-1)
        grey -= grey.mean()
        if float(np.abs(grey).mean()) < _FLAT_LEVELS:
            return False
        before, self._before = self._before, grey
        if before is None:
            return False
        alike = float((grey * before).sum()) / max(float(np.linalg.norm(grey) * np.linalg.norm(before)), 1e-6)
        usual, self._change = self._change, self._change + _USUAL_CHANGE * (1 - alike - self._change)
        if float(np.abs(grey - before).mean()) <= _CUT_LEVELS:
            return False
        sudden = alike < _SIMILAR_CORRELATION and 1 - alike > _CUT_CHANGE * usual
        return alike < _CUT_CORRELATION or sudden


class Chooser:
    """Of the people who are followed those who are asked for, frame after frame."""

    def __init__(self, options: EstimatorOptions) -> None:
        self._options, self._before = options, -1

    def __call__(self, frame: Frame, poses: Poses) -> Poses:
        """The rows of ``poses``, who have their ids, that are asked for."""
        height, width = frame.image.shape[:2]
        options = self._options
        rows = choose(
            poses.boxes, poses.ids, (width, height), options.person, options.max_people, self._before
        )
        poses = poses[rows]
        if options.person in {"largest", "center"} and len(poses):
            self._before = int(poses.ids[0])
        return poses


class Follower:
    """Finds the people of a source's frames and follows them.

    Args:
        estimator: its options say who is looked for and whether and how people are followed.
        detect_every: the detector runs at least on every n-th frame; twice as often where nobody is or
            people get lost, on every second one where they overlap, on each where frames are far apart.
        fps: of the frames taken; ``None`` for an image set, whose images are each by itself.
        live: the source is a camera: no frame waits for another.

    Attributes:
        follows: whether people are followed at all.
        detector_s, pose_s: time in the detector, and in crops, pose network and decoding.
        detections: on how many frames the detector ran.

    Raises:
        OptionsError: full smoothing of a camera, which would have to look ahead; or an image set's
            people by id.
    """

    def __init__(
        self, estimator: Estimator, detect_every: int = 1, fps: Fraction | None = None, live: bool = False
    ) -> None:
        options = estimator.options
        if live and options.smooth == "full":
            raise OptionsError("--smooth full looks ahead, which a camera cannot: choose live or none")
        if fps is None and options.person.startswith("id:"):
            raise OptionsError(f"--person {options.person}: people on images have no ids; choose another")
        self._options, self._detector, self._live = options, estimator.detector, live
        self.detector_s = self.pose_s = 0.0
        self.detections = 0
        self._choose = Chooser(options)
        self.follows = options.track and fps is not None
        self._estimator = estimator
        # Boxes that do not follow from what is seen are the same without looking.
        self._exact = not self._detector.proposes or isinstance(self._detector, WholeFrame)
        self._detect_every = 1 if self._exact else detect_every
        self._since, self._time_s = self._detect_every, -math.inf
        self._tracker = Tracker(
            estimator.keypoint_set, options.lost_s, self._exact, certain=not self._detector.proposes
        )
        self._is_cut = CutDetector()
        #: Number of the scene's first frame.
        self._scene = 0
        self._line = DelayLine(
            estimator.keypoint_set,
            options,
            float(fps or 0),
            live,
            fills=self._detector.proposes,
            back=min(self._detect_every, _BACK_FRAMES),
        )

    @property
    def sides_corrected(self) -> int:
        """Poses in which a left and a right keypoint had changed places and were put right."""
        return self._line.sides_corrected

    def __call__(self, batches: Iterable[Sequence[Frame]]) -> Iterator[Finished]:
        """Every frame with its people, by id, in the frames' order.

        Args:
            batches: the frames in order, some at a time.

        Yields:
            Frames that are finished, some at a time; the last ones after the batches' end.
        """
        for frames in batches:
            yield self._chosen(self.push(frames))
        yield self._chosen(self.flush())

    def push(self, frames: Sequence[Frame]) -> Finished:
        """Takes the next frames; returns those that are finished by now, with everybody who is followed."""
        if self.follows:
            return [done for frame in frames for done in self._follow(frame)]
        people = self._pose(frames, self._detect(frames))
        return list(zip(frames, self._estimator.choose(frames, people), strict=True))

    def flush(self) -> Finished:
        """The frames that still wait: no other will follow."""
        self._tracker.cut()
        return self._line.flush()

    def _chosen(self, finished: Finished) -> Finished:
        if not self.follows:
            return finished
        return [(frame, self._choose(frame, poses)) for frame, poses in finished]

    def _follow(self, frame: Frame) -> Finished:
        tracker = self._tracker
        if self._is_cut(frame.image):
            tracker.cut()
            self._since, self._scene = self._detect_every, self._line.taken
        # A camera whose frames are slow in coming would be slowed down even more.
        if frame.time_s - self._time_s > FAR_S and not self._live:
            self._since = self._detect_every
        self._time_s = frame.time_s
        tracker.predict(frame.time_s)
        followed = [t for t in tracker.tracks if t.missed <= _LOOK_FRAMES]
        boxes = np.array([t.crop_box for t in followed], np.float32).reshape(-1, 4)
        scores = np.array([t.sightings[-1].box_score for t in followed], np.float32)
        again = found = 0
        looks = self._due(followed, boxes)
        if looks:
            people = self._detect([frame])[0]
            self._since = 0
            if self._exact:
                boxes, scores = boxes[:0], scores[:0]
            sure = people.scores >= self._detector.threshold
            # What is faint may be a thing beside the person: where he should be is looked at, too.
            pairs = [(i, j) for i, j in join(iou(boxes, people.boxes), _SAME_BOX) if sure[j]]
            unseen = sorted(set(range(len(boxes))) - {i for i, _ in pairs})
            known = [j for _, j in pairs]
            people = people[[*known, *(j for j in range(len(people)) if j not in known)]]
            boxes = np.concatenate([people.boxes, boxes[unseen]])
            scores = np.concatenate([people.scores, scores[unseen]])
            again, found = len(known), len(people)
        self._since += 1
        poses = self._pose([frame], [Detections(boxes, scores)])[0]
        unknown = _among(poses.boxes, boxes[again:found])
        poses = poses[np.flatnonzero(~unknown | self._estimator.is_person(poses))]
        detected = _among(poses.boxes, boxes[:found])
        if not self._exact:
            poses = replace(poses, boxes=_measured(poses, detected))
        tracker.update(poses, detected, looks, self._line.taken, frame.time_s, frame.image)
        for track in tracker.tracks:
            if track.confirmed and not track.traced and not self._exact:
                self._trace(track)
        return self._line.push(frame, tracker.tracks)

    def _trace(self, track: Track) -> None:
        """Follows a person who has just been confirmed back to where it came into the picture."""
        track.traced = True
        for number, frame in self._line.before(track.sightings[0].number):
            if number < self._scene:
                break
            first = track.sightings[0]
            if first.time_s - frame.time_s > FAR_S:
                break
            there = Detections(first.box[None], np.array([first.box_score], np.float32))
            poses = self._pose([frame], [there])[0]
            poses = replace(poses, boxes=_measured(poses, np.zeros(len(poses), np.bool_)))
            if not self._tracker.see_before(track, poses, number, frame.time_s):
                break

    def _due(self, followed: Sequence[Track], boxes: NDArray[np.float32]) -> bool:
        """Whether the detector must look at this frame."""
        if any(t.on_trial for t in self._tracker.tracks):
            return True
        crowded = bool((np.triu(iou(boxes, boxes), 1) > _CROWDED).any())
        uneasy = (
            not followed
            or len(followed) < len(self._tracker.tracks)
            or any(t.weak or t.missed > 1 for t in followed)
        )
        enough = math.ceil(self._detect_every / 2) if uneasy else self._detect_every
        return self._since >= (min(enough, _CROWDED_EVERY) if crowded else enough)

    def _detect(self, frames: Sequence[Frame]) -> list[Detections]:
        started = time.perf_counter()
        people = self._detector(frames)
        self.detector_s += time.perf_counter() - started
        self.detections += len(frames)
        return people

    def _pose(self, frames: Sequence[Frame], people: Sequence[Detections]) -> list[Poses]:
        started = time.perf_counter()
        found = self._estimator.poses(frames, people)
        self.pose_s += time.perf_counter() - started
        return found


def _among(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of ``boxes`` ``(N, 4)`` are among ``others`` ``(M, 4)``."""
    return np.asarray((boxes[:, None] == others[None]).all(axis=-1).any(axis=1))


def _measured(poses: Poses, detected: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Boxes ``(N, 4)`` by keypoints, and by the detector where it looked: it sees what no keypoint shows.

    Where it did not, and many keypoints are not sure, a box grows only: crops that lose the feet would lose
    the knees next.
    """
    people = zip(poses.keypoints, poses.scores, poses.boxes, strict=True)
    by_keypoints = np.array([keypoint_box(*person) for person in people], np.float32).reshape(-1, 4)
    body = [not name.endswith(_FACE) for name in poses.keypoint_set.names]
    partly = (poses.scores[:, body] >= SURE).mean(axis=1) < _WHOLE
    grown = np.concatenate(
        [
            np.minimum(by_keypoints[:, :2], poses.boxes[:, :2]),
            np.maximum(by_keypoints[:, 2:], poses.boxes[:, 2:]),
        ],
        axis=1,
    )
    seen = np.where(detected[:, None], (by_keypoints + poses.boxes) / 2, by_keypoints)
    return np.where((partly & ~detected)[:, None], grown, seen).astype(np.float32)


@dataclass(eq=False)
class _Person:
    """A track whose sightings are still to be written."""

    track: Track
    sides: Sides
    filter: OneEuroFilter = field(default_factory=OneEuroFilter)


class DelayLine:
    """Frames wait here until enough is known of what follows.

    Args:
        keypoint_set: of the poses.
        options: which smoothing, whether sides are corrected, what is kept.
        fps: of the frames taken, about.
        live: no frame waits.
        fills: where a person is missing on a few frames it is put in.
        back: frames before its first detection on which a person may still be put in.

    Attributes:
        delay: frames that wait, at most.
        taken: frames so far; the number of the next one.
        sides_corrected: poses in which a pair was put right.
    """

    def __init__(
        self,
        keypoint_set: KeypointSet,
        options: EstimatorOptions,
        fps: float,
        live: bool = False,
        fills: bool = True,
        back: int = 1,
    ) -> None:
        self._keypoint_set, self._keeps_raw, self._fills = keypoint_set, options.keep_raw, fills
        self._smooth = options.smooth or ("live" if live else "full")
        # A full window's frames must have their sides right before it is smoothed.
        self._window = min(math.ceil(_WINDOW_S * fps), _WINDOW_FRAMES) if self._smooth == "full" else 0
        # A gap is bridged as a whole or not at all: each of its frames must see both ends.
        self._gap_s = min(GAP_S, (self._window + 1.5) / fps) if self._window else 0.0
        self._fixes_sides = options.fix_sides
        ahead = self._window + SWAP_FRAMES * self._fixes_sides
        self.delay = 0 if live else max(ahead, back + TRIAL_FRAMES - 2)
        self._pairs = Pairs(keypoint_set)
        self._waiting: deque[Frame] = deque()
        self._people: list[_Person] = []
        self._next_id = 1
        self.taken = self.sides_corrected = 0

    def push(self, frame: Frame, tracks: Sequence[Track]) -> Finished:
        """Takes the next frame and all tracks that go on; returns the frame that need not wait longer."""
        known = {person.track for person in self._people}
        self._people += [_Person(track, Sides(self._pairs)) for track in tracks if track not in known]
        self._waiting.append(frame)
        self.taken += 1
        return [self._finish()] if len(self._waiting) > self.delay else []

    def before(self, number: int) -> list[tuple[int, Frame]]:
        """The frames that wait before this one, and their numbers, backwards."""
        first = self.taken - len(self._waiting)
        return [(n, self._waiting[n - first]) for n in range(min(number, self.taken) - 1, first - 1, -1)]

    def flush(self) -> Finished:
        """The frames that still wait: no other will follow."""
        return [self._finish() for _ in range(len(self._waiting))]

    def _finish(self) -> tuple[Frame, Poses]:
        number = self.taken - len(self._waiting)
        frame = self._waiting.popleft()
        rows = []
        for person in self._people:
            if self._fixes_sides:
                self.sides_corrected += person.sides.put_right(person.track.sightings, number + self._window)
            if person.track.confirmed and (row := self._row(person, number, frame.time_s)):
                if person.track.id < 0:
                    person.track.id, self._next_id = self._next_id, self._next_id + 1
                rows.append((person.track.id, *row))
        for person in self._people:
            sightings = person.track.sightings
            while len(sightings) > 1 and sightings[1].number < number - self._window:
                sightings.popleft()
        self._people = [
            p for p in self._people if not (p.track.ended and p.track.sightings[-1].number <= number)
        ]
        return frame, self._poses(sorted(rows, key=lambda row: row[0]))

    def _row(self, person: _Person, number: int, time_s: float) -> tuple[Sighting, NDArray[np.bool_]] | None:
        """The person on a frame, and which keypoints were bridged; ``None`` where nobody is."""
        window = [s for s in person.track.sightings if abs(s.number - number) <= self._window]
        i = next((i for i, s in enumerate(window) if s.number >= number), len(window))
        if i == len(window) or window[i].number != number:
            fills = self._fills and 0 < i < len(window)
            if not fills or window[i].time_s - window[i - 1].time_s > self._gap_s:
                return None
            window.insert(i, _between(window[i - 1], window[i], number, time_s))
        now = window[i]
        if self._smooth == "full":
            points, scores, bridged = smooth_at(
                i,
                np.array([s.time_s for s in window]),
                np.stack([s.points for s in window]),
                np.stack([s.scores for s in window]),
                now.size_px,
                self._gap_s,
            )
            return replace(now, points=points, scores=scores), bridged
        if self._smooth == "live":
            now = replace(now, points=person.filter(now.points, now.scores, time_s, now.size_px))
        return now, np.zeros(len(now.scores), np.bool_)

    def _poses(self, rows: Sequence[tuple[int, Sighting, NDArray[np.bool_]]]) -> Poses:
        if not rows:
            return Poses.empty(self._keypoint_set)
        people = [sighting for _, sighting, _ in rows]
        maps = [s.heatmap for s in people if s.heatmap is not None]
        return Poses(
            np.stack([s.points for s in people]),
            np.stack([s.scores for s in people]),
            np.stack([s.box for s in people]),
            np.array([s.box_score for s in people], np.float32),
            np.array([identity for identity, _, _ in rows], np.int64),
            self._keypoint_set,
            Heatmaps(np.stack([m for m, _ in maps]), tuple(t for _, t in maps)) if maps else None,
            np.stack([s.raw for s in people]) if self._keeps_raw else None,
            np.stack([bridged for _, _, bridged in rows]),
        )


def _between(a: Sighting, b: Sighting, number: int, time_s: float) -> Sighting:
    """A person on a frame between two, where it was not seen: nothing is sure but the box."""
    share = (time_s - a.time_s) / max(b.time_s - a.time_s, 1e-9)
    return Sighting(
        number,
        time_s,
        (a.points + share * (b.points - a.points)).astype(np.float32),
        np.zeros_like(a.scores),
        np.full_like(a.raw, np.nan),
        (a.box + share * (b.box - a.box)).astype(np.float32),
        min(a.box_score, b.box_score),
        a.heatmap and (np.zeros_like(a.heatmap[0]), a.heatmap[1]),
    )
