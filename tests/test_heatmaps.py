"""Encode beside decode, and the outcome "not in this crop"."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hgpose import heatmaps
from hgpose.keypoints import COCO17


def raw_maps(targets: Tensor, presence: float) -> Tensor:
    """Raw maps whose probabilities are ``presence * targets``, where ``targets`` sums to 1."""
    return (targets * presence / (1 - presence)).clamp_min(1e-30).log()


@given(x=st.floats(3, 28), y=st.floats(3, 20), sigma=st.floats(0.7, 1.2), presence=st.floats(0.05, 0.99))
def test_decode_undoes_encode(x: float, y: float, sigma: float, presence: float) -> None:
    points = torch.tensor([[[x, y]]])
    targets = heatmaps.encode(points, torch.ones(1, 1, dtype=torch.bool), (24, 32), sigma)
    assert targets.sum().item() == pytest.approx(1, abs=1e-5)
    maps = heatmaps.probabilities(raw_maps(targets, presence))
    assert torch.allclose(maps, presence * targets, atol=1e-5)
    found, scores = heatmaps.decode(maps, (0,))
    # The 5x5 window cuts the Gaussian's tail off unevenly.
    assert (found - points).norm().item() < 0.3
    assert 0.8 * presence < scores.item() <= presence + 1e-5


@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 30.0, 1e4]))
def test_probabilities_are_probabilities(seed: int, spread: float) -> None:
    maps = torch.randn((2, 3, 8, 16), generator=torch.Generator().manual_seed(seed)) * spread
    p = heatmaps.probabilities(maps)
    assert p.shape == maps.shape and p.dtype == torch.float32
    assert (p >= 0).all()
    assert (p.sum((-2, -1)) <= 1 + 1e-5).all()
    points, scores = heatmaps.decode(p, (0, 2, 1))
    assert ((scores >= 0) & (scores <= 1)).all()
    # Rounding can push a mean of positions a little over the last of them.
    assert ((points >= -1e-4) & (points <= torch.tensor([15.0, 7.0]) + 1e-4)).all()


def test_nothing_seen_scores_nothing() -> None:
    p = heatmaps.probabilities(torch.full((1, 1, 16, 16), -30.0))
    points, scores = heatmaps.decode(p, (0,))
    assert scores.item() < 1e-6 and points.isfinite().all()


def test_all_zero_map_is_finite() -> None:
    points, scores = heatmaps.decode(torch.zeros(1, 2, 16, 16), (1, 0))
    assert points.isfinite().all() and (scores == 0).all()


def test_flat_map_scores_its_window_only() -> None:
    _, scores = heatmaps.decode(torch.full((1, 1, 16, 16), 1 / 256), (0,))
    assert 0 < scores.item() <= 25 / 256


def test_tie_takes_one_of_the_peaks() -> None:
    maps = torch.zeros(1, 1, 16, 16)
    maps[0, 0, 4, 3] = maps[0, 0, 12, 13] = 0.5
    points, scores = heatmaps.decode(maps, (0,))
    assert points[0, 0].tolist() in ([3, 4], [13, 12])
    assert scores.item() == 0.5


@pytest.mark.parametrize(("x", "y"), [(0, 0), (15, 0), (0, 7), (15, 7), (8, 0), (0, 4)])
def test_peak_on_the_border(x: int, y: int) -> None:
    maps = torch.zeros(1, 1, 8, 16)
    maps[0, 0, y, x] = 0.75
    points, scores = heatmaps.decode(maps, (0,))
    assert points[0, 0].tolist() == [x, y]
    assert scores.item() == 0.75


def test_window_does_not_wrap_around_rows() -> None:
    maps = torch.zeros(1, 1, 8, 16)
    maps[0, 0, 3, 15], maps[0, 0, 4, 0] = 0.5, 0.25
    points, scores = heatmaps.decode(maps, (0,))
    assert points[0, 0].tolist() == [15, 3]
    assert scores.item() == 0.5


def test_a_broad_hill_beats_a_spike() -> None:
    maps = torch.zeros(1, 1, 16, 16)
    maps[0, 0, 3, 3] = 0.3
    maps[0, 0, 9:12, 9:12] = 0.06
    points, scores = heatmaps.decode(maps, (0,))
    assert points[0, 0].tolist() == pytest.approx([10, 10])
    assert scores.item() == pytest.approx(0.54)


def test_a_place_holds_one_side() -> None:
    # Left is a little surer of the place that right is sure of: it takes its second choice there.
    maps = torch.zeros(1, 3, 16, 16)
    maps[0, 0, 4, 4], maps[0, 0, 12, 12] = 0.5, 0.4
    maps[0, 1, 4, 4], maps[0, 1, 12, 12] = 0.9, 0.05
    maps[0, 2, 4, 4] = 0.9
    points, scores = heatmaps.decode(maps, (1, 0, 2))
    assert points[0].tolist() == [[12, 12], [4, 4], [4, 4]]
    by_hand = [0.4 * 0.95 / (1 - 0.4 * 0.05), 0.9 * 0.5 / (1 - 0.9 * 0.5), 0.9]
    assert scores[0].tolist() == pytest.approx(by_hand)


@given(st.integers(0, 2**31))
def test_decoding_a_mirrored_crop_mirrors_the_points(seed: int) -> None:
    raw = torch.randn((2, 17, 12, 16), generator=torch.Generator().manual_seed(seed)) * 3
    p, order = heatmaps.probabilities(raw), COCO17.flip_order
    points, scores = heatmaps.decode(p, order)
    mirrored, mirrored_scores = heatmaps.decode(heatmaps.flip(p, order), order)
    assert torch.allclose(mirrored[:, list(order), 0], 15 - points[..., 0], atol=1e-3)
    assert torch.allclose(mirrored_scores[:, list(order)], scores, atol=1e-5)


def test_no_people_no_points() -> None:
    points, scores = heatmaps.decode(torch.zeros(0, 17, 16, 16), COCO17.flip_order)
    assert points.shape == (0, 17, 2) and scores.shape == (0, 17)


def test_absent_joint_is_an_empty_target() -> None:
    points = torch.tensor([[[4.0, 4.0], [-1e6, 1e6]]])
    targets = heatmaps.encode(points, torch.tensor([[False, False]]), (16, 16), 1.0)
    assert (targets == 0).all()


def test_likelihood_by_hand() -> None:
    # Two cells and "not in this crop", all equally likely: a third, whatever is true.
    targets = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])
    likelihood = heatmaps.log_likelihood(torch.zeros(1, 2, 1, 2), targets).exp()
    assert likelihood.flatten().tolist() == pytest.approx([1 / 3, 1 / 3])


def test_likelihood_is_greatest_at_the_target() -> None:
    targets = heatmaps.encode(torch.tensor([[[5.0, 6.0]]]), torch.tensor([[True]]), (16, 16), 1.0)
    right = heatmaps.log_likelihood(raw_maps(targets, 0.999), targets)
    wrong = heatmaps.log_likelihood(raw_maps(targets.flip(-1), 0.999), targets)
    unsure = heatmaps.log_likelihood(raw_maps(targets, 0.5), targets)
    assert right > unsure > wrong


def test_flip_mirrors_and_swaps_sides() -> None:
    maps = torch.zeros(1, 17, 4, 8)
    maps[0, COCO17.index("left_wrist"), 1, 2] = 1
    back = heatmaps.flip(maps, COCO17.flip_order)
    assert back[0, COCO17.index("right_wrist"), 1, 5] == 1
    assert back.sum() == 1
    assert torch.equal(heatmaps.flip(back, COCO17.flip_order), maps)
