"""Left and right of one person over time: where a network exchanges them they are put right.

Symbols: K keypoints, P pairs of a left and a right keypoint. Points are image px.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hgpose.keypoints import KeypointSet
from hgpose.smooth import SURE
from hgpose.track import Sighting

#: Frames that an exchange of sides lasts, at most, from the last right frame to the next seconds: in longer
#: time legs change places twice, in walking.
SWAP_FRAMES, _SWAP_S = 3, 0.25
#: Frames that are no farther away than this vote on which shoulder, and which hip, is the left one, seconds.
_VOTE_S = 1.0
#: Sides are told apart if they are at least this share of the person's size apart.
_APART = 0.06
#: Shoulders or hips that are so far apart, as a share of the person's size, are not seen from the side.
_ACROSS = 0.08
#: Joints whose sides are those of the shoulders and of the hips.
_LIMBS = (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle"))


class Pairs:
    """The left and right keypoints of a set.

    Attributes:
        all: ``(P, 2)`` positions of left and right keypoints.
        trunk: ``(2, 2)`` those of the shoulders and of the hips.
        limbs: ``(2, P)`` bool: which pairs go by the shoulders, and which by the hips.
    """

    def __init__(self, keypoint_set: KeypointSet) -> None:
        self.all = np.array([(i, j) for i, j in enumerate(keypoint_set.flip_order) if i < j])
        joints = [keypoint_set.names[i].partition("_")[2] for i, _ in self.all]
        self.trunk = np.array([self.all[joints.index(limb[0])] for limb in _LIMBS])
        self.limbs = np.array([[joint in limb for joint in joints] for limb in _LIMBS])


class Sides:
    """Puts right the sides of one person.

    Args:
        pairs: of the keypoints.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._votes = [SideVotes() for _ in _LIMBS]
        self._noted = -1

    def put_right(self, sightings: Iterable[Sighting], upto: int) -> int:
        """Puts right those up to this frame's number not looked at before; says how many it changed.

        Args:
            sightings: in order, with those that follow, as far as they are known, and the one before.
            upto: number of a frame.
        """
        sightings, corrected = list(sightings), 0
        self._note(sightings)
        for i, now in enumerate(sightings):
            if now.sides_checked or now.number > upto:
                continue
            now.sides_checked = True
            before = sightings[max(i - 1, 0)]
            swapped = self._outvoted(before, now)
            after = [
                s
                for s in sightings[i + 1 : i + 1 + SWAP_FRAMES]
                if s.number <= now.number + SWAP_FRAMES and s.time_s - before.time_s <= _SWAP_S
            ]
            if i > 0 and after and now.number - before.number <= SWAP_FRAMES:
                points = np.stack([s.points for s in after])
                swapped |= swapped_sides(before.points, now.points, points, self._pairs.all, now.size_px)
            rows = self._pairs.all[swapped & (now.scores[self._pairs.all] >= SURE).all(axis=1)]
            if len(rows):
                here, there = rows.ravel(), rows[:, ::-1].ravel()
                now.points, now.scores = now.points.copy(), now.scores.copy()
                now.points[here], now.scores[here] = now.points[there], now.scores[there]
                corrected += 1
        return corrected

    def _note(self, sightings: Iterable[Sighting]) -> None:
        """Follows which way round the network has shoulders and hips."""
        for s in sightings:
            if s.number > self._noted:
                self._noted = s.number
                across = _reach(s.raw[:, :2], self._pairs.trunk)
                clear = np.linalg.norm(across, axis=1) > _ACROSS * s.size_px
                clear &= (s.raw[self._pairs.trunk, 2] >= SURE).all(axis=1)
                for i in np.flatnonzero(clear):
                    self._votes[i].note(s.number, s.time_s, across[i])

    def _outvoted(self, before: Sighting, now: Sighting) -> NDArray[np.bool_]:
        """Pairs of arms or legs whose shoulders or hips most frames around have the other way round."""
        outvoted = np.array([votes.outvoted(now.number, now.time_s) for votes in self._votes])
        # Some of a limb may have their sides right all the same.
        was, is_now = (_reach(s.points, self._pairs.all) for s in (before, now))
        return np.asarray((outvoted[:, None] & self._pairs.limbs & ((was * is_now).sum(-1) < 0)).any(axis=0))


class SideVotes:
    """Which way round a network has a person's shoulders, or hips: it may change its mind, they do not.

    Between two frames they cannot change places, so where they do the network has; most frames around say
    whether it was wrong before or is now. Frames on which they are unsure or too close to each other, as from
    the side, need not be told of.
    """

    def __init__(self) -> None:
        #: Number and time of each frame, and whether it has them the other way round than the first.
        self._ways: deque[tuple[int, float, bool]] = deque()
        self._across: NDArray[np.floating] = np.zeros(2)

    def note(self, number: int, time_s: float, across: NDArray[np.floating]) -> None:
        """Takes what the network says on the next frame.

        Args:
            number: of the frame, rising.
            time_s: of the frame.
            across: ``(2,)`` from the left one to the right one, px.
        """
        turned = False
        if self._ways:
            last, last_s, turned = self._ways[-1]
            # After longer than that they may have turned round.
            if number - last <= SWAP_FRAMES and time_s - last_s <= _SWAP_S:
                turned ^= bool(across @ self._across < 0)
        self._ways.append((number, time_s, turned))
        self._across = across

    def outvoted(self, number: int, time_s: float) -> bool:
        """Whether most frames around have them the other way round than this one, or the last told before it.

        Those long before it are forgotten.
        """
        while self._ways and self._ways[0][1] < time_s - _VOTE_S:
            self._ways.popleft()
        ways = [turned for _, t, turned in self._ways if t <= time_s + _VOTE_S]
        own = [turned for n, _, turned in self._ways if n <= number]
        return bool(own) and 2 * ways.count(own[-1]) < len(ways)


def swapped_sides(
    before: NDArray[np.floating],
    now: NDArray[np.floating],
    after: NDArray[np.floating],
    pairs: NDArray[np.int64],
    size_px: float,
) -> NDArray[np.bool_]:
    """Which pairs changed places with this frame and change back with one of those after it: ``(P,)`` bool.

    Args:
        before: ``(K, 2)`` keypoints of the frame before, whose sides are right.
        now: ``(K, 2)``.
        after: ``(R, K, 2)`` of the next frames.
        pairs: ``(P, 2)`` positions of left and right keypoints.
        size_px: of the person.
    """
    was = _reach(before, pairs)
    kept, exchanged = (np.linalg.norm(sign * _reach(now, pairs) - was, axis=-1) for sign in (1, -1))
    kept_after, exchanged_after = (
        np.linalg.norm(sign * _reach(after, pairs) - was, axis=-1) for sign in (1, -1)
    )
    apart = np.linalg.norm(was, axis=-1) > _APART * size_px
    back = (kept_after < exchanged_after / 2).any(0)
    return np.asarray(apart & (exchanged < kept / 2) & back)


def _reach(points: NDArray[np.floating], pairs: NDArray[np.int64]) -> NDArray[np.floating]:
    """From the left to the right of each pair: it turns round if they change places.

    Args:
        points: ``(..., K, 2)``.
        pairs: ``(P, 2)`` positions of left and right keypoints.

    Returns:
        ``(..., P, 2)``.
    """
    return np.asarray(points[..., pairs[:, 1], :] - points[..., pairs[:, 0], :])
