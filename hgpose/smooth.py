"""Keypoints of one person over time: less jitter, short gaps bridged.

Symbols: W frames of a window, K keypoints. Points are image px.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: Standard deviation of the full filter's window, seconds: keeps what people do, up to about 6 Hz. Where
#: frames are farther apart it is their distance: less would leave a frame to itself.
SIGMA_S = 0.05
#: Longest gap that is bridged, from the last sure frame to the next, seconds.
GAP_S = 0.25
#: Keypoints that score at least this are sure.
SURE = 0.2
#: A keypoint that moves by more than this share of the person's size left the window's centre: full
#: smoothing at rest, little of it in a fast movement, whose turning points so keep their place.
_NEAR = 0.03
#: One Euro filter: cutoff at rest (Hz), its rise (Hz for each person's size a second), and the
#: cutoff of the speed (Hz).
_REST_HZ, _RISE_HZ, _SPEED_HZ = 1.5, 12.0, 3.0
#: Keypoints that score lower than this are followed more slowly.
_FULL_SCORE = 0.5


def smooth_at(
    i: int,
    times_s: NDArray[np.float64],
    points: NDArray[np.floating],
    scores: NDArray[np.floating],
    size_px: float,
    gap_s: float = GAP_S,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """The pose on the i-th frame, from those before and after it: no lag.

    A line is fitted to each keypoint's way through the window, by least squares. Frames weigh by the
    keypoint's score, by a Gaussian in time, and by a Gaussian in distance, as in a bilateral filter
    (Tomasi & Manduchi 1998). A keypoint that is not sure, but was shortly before and is shortly after,
    is taken from these and its score from theirs.

    Args:
        i: position in the window.
        times_s: ``(W,)``, rising.
        points: ``(W, K, 2)``.
        scores: ``(W, K)``; 0 where the person was not seen.
        size_px: of the person.
        gap_s: longest gap that is bridged.

    Returns:
        points ``(K, 2)`` float32, scores ``(K,)`` float32, and ``(K,)`` bool: which keypoints were bridged.
    """
    window, k = scores.shape
    frames = np.arange(window)[:, None]
    sure = scores >= SURE
    last = np.where(sure[:i], frames[:i], -1).max(0, initial=-1)
    following = np.where(sure[i + 1 :], frames[i + 1 :], window).min(0, initial=window)
    bridged = ~sure[i] & (last >= 0) & (following < window)
    # Clipped positions stand for "none" and are masked out.
    a, b = last.clip(0), following.clip(max=window - 1)
    bridged &= times_s[b] - times_s[a] <= gap_s
    column = np.arange(k)
    share = (times_s[i] - times_s[a]) / np.maximum(times_s[b] - times_s[a], 1e-9)
    between = points[a, column] + share[:, None] * (points[b, column] - points[a, column])
    between_scores = scores[a, column] + share * (scores[b, column] - scores[a, column])
    center = np.where(bridged[:, None], between, _undisputed(i, times_s, points, scores))
    new_scores = np.where(bridged, between_scores, scores[i])

    apart = np.square(points - center).sum(-1) / (_NEAR * max(size_px, 1.0)) ** 2
    # While it is bridged a keypoint's neighbours may well be far off.
    apart = np.where(bridged, 0, apart)
    since_s = times_s - times_s[i]
    sigma_s = max(SIGMA_S, float(np.median(np.diff(times_s)))) if window > 1 else SIGMA_S
    weights = (scores + 1e-3) * np.exp(-np.square(since_s / sigma_s)[:, None] / 2 - apart.clip(max=200) / 2)
    weights[:, bridged] *= sure[:, bridged]
    weights /= weights.sum(0)
    mean_s = (weights * since_s[:, None]).sum(0)
    mean = (weights[..., None] * points).sum(0)
    off_s = since_s[:, None] - mean_s
    spread = (weights * np.square(off_s)).sum(0)
    slope = (weights[..., None] * off_s[..., None] * points).sum(0) / np.maximum(spread, 1e-9)[:, None]
    # Where all that is sure lies to one side the line is followed no further than the window's width.
    limit_s = np.where(bridged, np.inf, sigma_s)
    found = mean - slope * mean_s.clip(-limit_s, limit_s)[:, None]
    return found.astype(np.float32), new_scores.astype(np.float32), bridged


def _undisputed(
    i: int, times_s: NDArray[np.float64], points: NDArray[np.floating], scores: NDArray[np.floating]
) -> NDArray[np.floating]:
    """``(K, 2)``: each keypoint on frame i, or where the frames before and after agree to have it instead."""
    near = np.array([i, i - 1, i + 1])
    # In longer time a hand may well go somewhere and back.
    if not 0 < i < len(points) - 1 or times_s[i + 1] - times_s[i - 1] > GAP_S:
        return np.asarray(points[i])
    apart = np.linalg.norm(points[near, None] - points[None, near], axis=-1)
    cost = (apart * scores[None, near]).sum(1)
    return np.asarray(points[near[cost.argmin(0)], np.arange(points.shape[1])])


class OneEuroFilter:
    """Smooths as the frames come (Casiez, Roussel & Vogel, "1 Euro Filter", CHI 2012).

    The cutoff rises with speed: steady at rest, hardly any lag in movement. Speed counts in sizes of
    the person, so that the picture's resolution does not matter. After a gap it begins anew.
    """

    def __init__(self) -> None:
        self._points: NDArray[np.float64] | None = None
        self._time_s = 0.0

    def __call__(
        self, points: NDArray[np.floating], scores: NDArray[np.floating], time_s: float, size_px: float
    ) -> NDArray[np.float32]:
        """The next frame's keypoints: ``(K, 2)`` float32.

        Args:
            points, scores: ``(K, 2)`` and ``(K,)``.
            time_s: of the frame, later than the one before.
            size_px: of the person.
        """
        if self._points is None or time_s - self._time_s > GAP_S:
            self._points, self._velocity = points.astype(np.float64), np.zeros(points.shape)
        else:
            step_s = max(time_s - self._time_s, 1e-3)
            change = points - self._points
            self._velocity += _gain(_SPEED_HZ, step_s) * (change / step_s - self._velocity)
            speed = np.linalg.norm(self._velocity, axis=-1) / max(size_px, 1.0)
            trust = (scores / _FULL_SCORE).clip(0.05, 1)
            gain = _gain(_REST_HZ + _RISE_HZ * speed, step_s) * trust
            self._points = self._points + gain[:, None] * change
        self._time_s = time_s
        return self._points.astype(np.float32)


def _gain(cutoff_hz: float | NDArray[np.floating], step_s: float) -> NDArray[np.float64]:
    """Share of the way to the new value that a first-order low-pass filter goes in one step."""
    turns = 2 * math.pi * np.asarray(cutoff_hz, np.float64) * step_s
    return np.asarray(turns / (turns + 1))
