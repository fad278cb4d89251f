"""Keypoints to heatmaps and back: encode stands beside decode, so that they agree.

Symbols: N people, K keypoints, h and w heatmap size in cells. Points are heatmap px, (x, y).

The network's raw maps z become probabilities by a softmax over all h*w cells *and* one more
outcome, "not in this crop", whose raw value is fixed at 0::

    p(cell) = exp(z(cell)) / (1 + sum of exp(z))

So the map of a keypoint is the probability of the joint at every cell, its sum is the probability
that the joint is in the crop at all, and an absent joint is a map near zero everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Cells to either side of the peak that count as "at the peak", in position and score.
_WINDOW = 2


def encode(points_xy: Tensor, present: Tensor, size_hw: tuple[int, int], sigma: float) -> Tensor:
    """Target distributions: a Gaussian of unit sum where the joint is, all zeros where it is not.

    Args:
        points_xy: ``(N, K, 2)`` float, heatmap px.
        present: ``(N, K)`` bool, whether the joint lies in the crop.
        size_hw: (h, w).
        sigma: standard deviation, cells.

    Returns:
        ``(N, K, h, w)`` float.
    """
    h, w = size_hw
    xs = torch.arange(w, device=points_xy.device, dtype=points_xy.dtype)
    ys = torch.arange(h, device=points_xy.device, dtype=points_xy.dtype)
    gx = torch.exp(-((xs - points_xy[..., 0:1]) ** 2) / (2 * sigma**2))
    gy = torch.exp(-((ys - points_xy[..., 1:2]) ** 2) / (2 * sigma**2))
    gx = gx / gx.sum(-1, keepdim=True).clamp_min(1e-12)
    gy = gy / gy.sum(-1, keepdim=True).clamp_min(1e-12)
    return gy[..., :, None] * gx[..., None, :] * present[..., None, None]


def log_likelihood(maps: Tensor, targets: Tensor) -> Tensor:
    """What raw maps say of :func:`encode` targets, "not in this crop" included: minus the cross-entropy.

    Args:
        maps: ``(N, K, h, w)`` raw maps.
        targets: ``(N, K, h, w)`` of sum 1 (joint present) or 0 (absent).

    Returns:
        ``(N, K)`` float32, natural logarithms.
    """
    flat = maps.float().flatten(2)
    log_total = torch.logsumexp(F.pad(flat, (0, 1)), dim=-1)
    return (targets.flatten(2) * flat).sum(-1) - log_total


def probabilities(maps: Tensor) -> Tensor:
    """Raw maps ``(N, K, h, w)`` to the probability of the joint at every cell, float32."""
    flat = F.pad(maps.float().flatten(2), (0, 1)).softmax(-1)
    return flat[..., :-1].reshape(maps.shape)


def flip(heatmaps: Tensor, flip_order: tuple[int, ...], shift: bool = False) -> Tensor:
    """Heatmaps ``(N, K, h, w)`` of a mirrored crop as those of the crop itself (sides swapped back).

    Args:
        heatmaps: of the mirrored crop.
        flip_order: where each keypoint is found after mirroring.
        shift: move the result by one cell to the right, its first column staying. For networks whose
            cell h stands for crop px 4 h: mirroring takes 4 h to S - 1 - 4 h, which is no multiple of 4,
            and the next cell to the right is nearest to where it belongs.
    """
    back = heatmaps[:, list(flip_order)].flip(-1)
    return torch.cat([back[..., :1], back[..., :-1]], dim=-1) if shift else back


def decode(heatmaps: Tensor, flip_order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Position and score by probability heatmaps, without leaving the device.

    The joint is in the 5x5 window that holds it most probably, at the mean of the distribution inside
    (a local soft-argmax), not at the highest cell: a spike beside nothing weighs less than a broad hill.
    And a place holds one joint of a pair: with p and q the probabilities that a window holds a joint and
    its other side, p (1 - q) / (1 - p q) is that it holds the joint alone, given that it does not hold
    both. Of two windows between which the network cannot tell left from right, each side takes the one
    that suits it better. The highest such value is the score.

    Args:
        heatmaps: ``(N, K, h, w)``, from :func:`probabilities`.
        flip_order: of each keypoint its other side, or itself.

    Returns:
        points ``(N, K, 2)`` float32 heatmap px, scores ``(N, K)`` float32 in [0, 1].
    """
    h, w = heatmaps.shape[2:]
    size = 2 * _WINDOW + 1
    held = (F.avg_pool2d(heatmaps, size, 1, _WINDOW) * size**2).clamp(0, 1)
    paired = torch.tensor([i != k for k, i in enumerate(flip_order)], device=heatmaps.device)
    other = held[:, list(flip_order)] * paired[:, None, None]
    alone = held * (1 - other) / (1 - held * other).clamp_min(1e-6)
    score, best = alone.flatten(2).max(-1)
    offsets = torch.arange(-_WINDOW, _WINDOW + 1, device=heatmaps.device)
    x = (best % w)[..., None] + offsets
    y = torch.div(best, w, rounding_mode="floor")[..., None] + offsets
    inside = ((y >= 0) & (y < h))[..., :, None] & ((x >= 0) & (x < w))[..., None, :]
    cells = y.clamp(0, h - 1)[..., :, None] * w + x.clamp(0, w - 1)[..., None, :]
    window = heatmaps.flatten(2).gather(2, cells.flatten(2)).reshape(cells.shape) * inside
    total = window.sum((-2, -1)).clamp_min(1e-12)
    px = (window.sum(-2) * x).sum(-1) / total
    py = (window.sum(-1) * y).sum(-1) / total
    return torch.stack([px, py], dim=-1), score


def decode_peak(
    heatmaps: Tensor, refine_from: int, offset_cells: float, empty_cell: int = -1
) -> tuple[Tensor, Tensor]:
    """Peak position and score as most published hourglasses read their maps, which are no probabilities.

    The highest cell (of equals the first in reading order), a quarter of a cell towards the higher one of
    its two neighbours in x, and in y.

    The published families count in other frames than :mod:`hgpose.geometry`, in which the middle of
    cell h lies at heatmap px h and at crop px 4 h + 1.5:

    * Family A says ``(h + 0.5) * 4`` in a frame that counts from the corner of the first pixel. From its
      middle that is 4 h + 1.5: the same place, ``offset_cells`` is 0.
    * MMPose and its relatives say ``h * 4``, counted from the middle of the first pixel, for so they
      placed the targets. That is 1.5 crop px, or 0.375 cells, before the middle of cell h:
      ``offset_cells`` is -0.375.

    Args:
        heatmaps: ``(N, K, h, w)`` raw maps.
        refine_from: a peak is refined in both directions, or in none if its x or y is below this or in
            the last column or row.
        offset_cells: from the middle of a cell to where a peak in it means the joint to be.
        empty_cell: x and y of the cell that is named where a map is positive nowhere.

    Returns:
        points ``(N, K, 2)`` float32 heatmap px, scores ``(N, K)`` float32: the highest value, in [0, 1].
    """
    h, w = heatmaps.shape[2:]
    flat = heatmaps.float().flatten(2)
    value, peak = flat.amax(-1), flat.argmax(-1)
    x, y = peak % w, torch.div(peak, w, rounding_mode="floor")
    inside = (x >= refine_from) & (x < w - 1) & (y >= refine_from) & (y < h - 1)

    def higher_side(step: int) -> Tensor:
        after, before = (
            flat.gather(2, (peak + sign * step).clamp(0, h * w - 1)[..., None])[..., 0] for sign in (1, -1)
        )
        return 0.25 * (after - before).sign() * inside

    points = torch.stack([x + higher_side(1), y + higher_side(w)], dim=-1)
    points = torch.where((value > 0)[..., None], points, float(empty_cell)) + offset_cells
    return points, value.clamp(0, 1)


def decode_princeton(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Peak position and score as princeton-vl/pytorch_stacked_hourglass reads its maps.

    As :func:`decode_peak` for family A, but maps are cut off at 1 first; every peak is refined, at the
    border against the border's own cell; and neighbours of the same height count as "before". Where a map
    is positive nowhere it names cell (0, 0), of which that code then takes the corner, not the middle.

    Args:
        heatmaps: ``(N, K, h, w)`` raw maps.

    Returns:
        points ``(N, K, 2)`` float32 heatmap px, scores ``(N, K)`` float32: the highest value, in [0, 1].
    """
    h, w = heatmaps.shape[2:]
    flat = heatmaps.float().clamp(max=1).flatten(2)
    value, peak = flat.amax(-1), flat.argmax(-1)
    x, y = peak % w, torch.div(peak, w, rounding_mode="floor")

    def at(x: Tensor, y: Tensor) -> Tensor:
        return flat.gather(2, (y.clamp(0, h - 1) * w + x.clamp(0, w - 1))[..., None])[..., 0]

    dx = torch.where(at(x + 1, y) > at(x - 1, y), 0.25, -0.25)
    dy = torch.where(at(x, y + 1) > at(x, y - 1), 0.25, -0.25)
    points = torch.where((value > 0)[..., None], torch.stack([x + dx, y + dy], dim=-1), -0.5)
    return points, value.clamp(0, 1)
