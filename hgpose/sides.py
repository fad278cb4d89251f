"""Left and right of one person over time: where a network exchanges them they are put right.

Symbols: K keypoints, P pairs of a left and a right keypoint. Points are image px.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hgpose.keypoints import KeypointSet
from hgpose.smooth import SURE
from hgpose.track import Sighting

#: Frames that an exchange of sides lasts, at most, from the last right frame to the next seconds: in longer
#: time legs change places twice, in walking.
SWAP_FRAMES, _SWAP_S = 3, 0.25
#: Frames that are no farther away than this vote on which shoulder, and which hip, is the left one, seconds;
#: of those that follow only the few that are known.
_VOTE_S = 1.0
#: In less time nobody turns round and back, seconds.
_BACK_S = 0.3
#: Who is not looked at for longer may have turned round unseen, seconds.
_UNSEEN_S = 0.12
#: Who turns is seen narrow in between: sides that change places do it at no less than this share of the
#: greatest width within that time.
_WIDE = 0.5
#: Sides are told apart if they are at least this share of the person's size apart.
_APART = 0.06
#: Shoulders or hips that are so far apart, as a share of the person's size, are not seen from the side.
_ACROSS = 0.08
#: A pair of limbs crosses over if its bones were so much shorter the other way.
_TWIST = 1.3
#: Joints whose sides are those of the shoulders and of the hips, from there outwards.
_LIMBS = (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle"))


class Pairs:
    """The left and right keypoints of a set.

    Attributes:
        all: ``(P, 2)`` positions of left and right keypoints.
        trunk: ``(2, 2)`` those of the shoulders and of the hips.
        limbs: ``(2, 3)`` positions in ``all`` of the pairs that go by the shoulders, and by the hips, from
            there outwards.
    """

    def __init__(self, keypoint_set: KeypointSet) -> None:
        self.all = np.array([(i, j) for i, j in enumerate(keypoint_set.flip_order) if i < j])
        joints = [keypoint_set.names[i].partition("_")[2] for i, _ in self.all]
        self.limbs = np.array([[joints.index(joint) for joint in limb] for limb in _LIMBS])
        self.trunk = self.all[self.limbs[:, 0]]


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
            changed = self._outvoted(before, now, first=i == 0)
            after = [
                s
                for s in sightings[i + 1 : i + 1 + SWAP_FRAMES]
                if s.number <= now.number + SWAP_FRAMES and s.time_s - before.time_s <= _SWAP_S
            ]
            if i > 0 and after and now.number - before.number <= SWAP_FRAMES:
                points = np.stack([s.points for s in after])
                swapped = swapped_sides(before.points, now.points, points, self._pairs.all, now.size_px)
                changed |= swapped & (now.scores[self._pairs.all] >= SURE).all(axis=1)
            rows = self._pairs.all[changed]
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
                for i in np.flatnonzero((s.raw[self._pairs.trunk, 2] >= SURE).all(axis=1)):
                    self._votes[i].note(s.number, s.time_s, across[i], s.size_px)

    def _outvoted(self, before: Sighting, now: Sighting, first: bool) -> NDArray[np.bool_]:
        """Pairs of arms or legs whose shoulders or hips most frames around have the other way round."""
        changed = np.zeros(len(self._pairs.all), dtype=np.bool_)
        outvoted = np.array([votes.outvoted(now.number, now.time_s) for votes in self._votes])
        shoulders, hips = _reach(now.points, self._pairs.trunk)
        if shoulders @ hips > 0:
            # Exchanged they are together: of the broader ones more is known.
            outvoted[:] = outvoted[0 if shoulders @ shoulders > hips @ hips else 1]
        for limb, is_outvoted in zip(self._pairs.limbs, outvoted, strict=True):
            if is_outvoted:
                rows = self._pairs.all[limb]
                was, is_now = (_reach(s.points, rows) for s in (before, now))
                # Some of a limb may have their sides right all the same.
                other = first | ((was * is_now).sum(-1) < 0)
                points = now.points[rows]
                righted = np.where(other[:, None, None], points[:, ::-1], points)
                # Not, if that would twist it.
                changed[limb] = other | (_twisted(righted) & ~_twisted(points)).any()
        return changed


class _Look(NamedTuple):
    """What a network says on a frame: ``across`` ``(2,)`` px, and whether it is ``clear`` enough to count.

    It has them the other way round than at first if ``turned``.
    """

    number: int
    time_s: float
    across: NDArray[np.floating]
    clear: bool
    turned: bool


class SideVotes:
    """Which way round a network has a person's shoulders, or hips: it may change its mind, they do not.

    Between two frames they cannot change places as if in a mirror, both wide apart: where they do the network
    has exchanged them, and most frames around say whether it was wrong before or is now. Who turns is seen
    from the side in between. Frames on which they are unsure need not be told of.
    """

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque()

    def note(self, number: int, time_s: float, across: NDArray[np.floating], size_px: float) -> None:
        """Takes what the network says on the next frame.

        Args:
            number: of the frame, rising.
            time_s: of the frame.
            across: ``(2,)`` from the left one to the right one, px.
            size_px: of the person.
        """
        turned = False
        if self._looks:
            last = self._looks[-1]
            unseen_s = _SWAP_S if number - last.number == 1 else _UNSEEN_S
            if time_s - last.time_s <= unseen_s:
                turned = self._follow_on(time_s, across, size_px)
            else:
                # They may have turned round unseen; the network is as right as it mostly was.
                ways = [look.turned for look in self._looks if look.clear]
                turned = 2 * sum(ways) > len(ways)
        clear = bool(np.linalg.norm(across) > _ACROSS * size_px)
        self._looks.append(_Look(number, time_s, across, clear, turned))

    def outvoted(self, number: int, time_s: float) -> bool:
        """Whether most frames around have them the other way round than this one, or the last told before it.

        Those long before it are forgotten.
        """
        while self._looks and self._looks[0].time_s < time_s - _VOTE_S:
            self._looks.popleft()
        ways = [look.turned for look in self._looks if look.clear and look.time_s <= time_s + _VOTE_S]
        if not ways:
            return False
        # Frames before the first, on which the person was looked for later, are as that one is.
        own = next((look.turned for look in reversed(self._looks) if look.number <= number), ways[0])
        return 2 * ways.count(own) < len(ways)

    def _follow_on(self, time_s: float, across: NDArray[np.floating], size_px: float) -> bool:
        """Whether the next frame, which follows on the last look, has them turned."""
        least = max(_ACROSS * size_px, _WIDE * max(float(np.linalg.norm(s.across)) for s in self._looks))
        # Where an exchange begins or ends they may be too narrow to tell that.
        for i in range(len(self._looks) - 1, -1, -1):
            look = self._looks[i]
            if time_s - look.time_s > _BACK_S:
                break
            if _mirrored(look.across, -across, least):
                for k in range(i + 1, len(self._looks)):
                    if _mirrored(self._looks[k].across, across, least):
                        self._looks[k] = self._looks[k]._replace(turned=not look.turned)
                return look.turned
        last = self._looks[-1]
        return last.turned ^ _mirrored(last.across, across, least)


def _mirrored(was: NDArray[np.floating], now: NDArray[np.floating], least: float) -> bool:
    """Whether what reaches across is as in a mirror, and at least so wide on both frames, px."""
    alike = np.linalg.norm(now + was) < np.linalg.norm(now - was) / 2
    return bool(alike and min(np.linalg.norm(was), np.linalg.norm(now)) > least)


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


def _twisted(limb: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Between which joints a pair of limbs ``(J, 2, 2)``, left and right, crosses over: ``(J - 1,)`` bool."""
    bones, crossed = (
        np.linalg.norm(limb[1:] - inner, axis=-1).sum(axis=-1) for inner in (limb[:-1], limb[:-1, ::-1])
    )
    return np.asarray(bones > _TWIST * crossed)


def _reach(points: NDArray[np.floating], pairs: NDArray[np.int64]) -> NDArray[np.floating]:
    """From the left to the right of each pair: it turns round if they change places.

    Args:
        points: ``(..., K, 2)``.
        pairs: ``(P, 2)`` positions of left and right keypoints.

    Returns:
        ``(..., P, 2)``.
    """
    return np.asarray(points[..., pairs[:, 1], :] - points[..., pairs[:, 0], :])
