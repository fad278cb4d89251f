"""Shapes, size and cost of the networks, and what folding must not change."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hgpose.keypoints import BODY19
from hgpose.models import build_model
from hgpose.models.finder import PersonFinder
from hgpose.models.hourglass import StackedHourglass, fold_batch_norms


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def gmac(model: nn.Module, side_px: int) -> float:
    """Billions of multiplications with addition for one image, counted without computing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta").eval()(torch.empty(1, 3, side_px, side_px))
    return float(counter.get_total_flops()) / 2e9


def with_random_statistics(model: nn.Module) -> nn.Module:
    """The network in evaluation mode, its normalisations as they might be after training."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


@pytest.mark.parametrize("size_hw", [(64, 64), (128, 64), (64, 192)])
@pytest.mark.parametrize("stacks", [1, 3])
def test_hourglass_shapes(size_hw: tuple[int, int], stacks: int) -> None:
    h, w = size_hw
    maps = StackedHourglass(outputs=5, stacks=stacks, width=16)(torch.zeros(2, 3, h, w))
    assert [m.shape for m in maps] == [(2, 5, h // 4, w // 4)] * stacks


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_depth_sets_the_stride(depth: int) -> None:
    network = StackedHourglass(outputs=2, stacks=1, width=16, depth=depth)
    side = network.stride_px
    assert side == 4 * 2**depth
    assert network(torch.zeros(2, 3, side, 2 * side))[0].shape == (2, 2, side // 4, side // 2)


@pytest.mark.parametrize(("stacks", "millions"), [(1, 3.43), (2, 6.57), (8, 25.43)])
def test_published_size(stacks: int, millions: float) -> None:
    with torch.device("meta"):
        network = StackedHourglass(outputs=16, stacks=stacks, width=256)
    assert parameters(network) / 1e6 == pytest.approx(millions, abs=0.005)


def test_shipped_pose_network_is_small() -> None:
    network = StackedHourglass(outputs=len(BODY19))
    assert parameters(network) <= 4e6
    # Not far below either, or the counter missed the convolutions.
    assert 1 < gmac(network, 256) <= 4


def test_shipped_person_finder_is_small() -> None:
    assert 0.1 < gmac(PersonFinder(), 256) <= 1


def test_every_stack_learns() -> None:
    network = StackedHourglass(outputs=3, stacks=2, width=16)
    losses = torch.stack([m.square().mean() for m in network(torch.randn(2, 3, 64, 64))])
    torch.autograd.backward(losses.sum())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim == 4)


def test_folding_changes_no_output() -> None:
    network = with_random_statistics(StackedHourglass(outputs=4, stacks=2, width=32))
    image = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        before = network(image)
        count = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
        fold_batch_norms(network)
        after = network(image)
    # One of three in each residual stays.
    assert 0 < sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) < count / 2
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_finder_folds_too() -> None:
    finder = with_random_statistics(PersonFinder(width=16))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = finder(image)
        fold_batch_norms(finder)
        after = finder(image)
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)


def test_finder_begins_as_a_pose_network() -> None:
    pose = with_random_statistics(StackedHourglass(outputs=4, stacks=2, width=16))
    finder = with_random_statistics(PersonFinder(width=16))
    scores = [head.score.weight.clone() for head in finder.heads]
    finder.begin_as(pose)
    image = torch.randn(1, 3, 64, 64)
    ours, theirs = finder.eval(), pose.eval()
    with torch.no_grad():
        assert torch.equal(ours.stem(image), theirs.stem(image))
    trained = pose.state_dict()
    for name, value in finder.state_dict().items():
        if name.startswith(("heads.", "merges.")):
            continue
        # Both hourglasses begin as the inner part of the first.
        inner = re.sub(r"^hourglasses\.\d+\.", "hourglasses.0.inner.", name)
        assert torch.equal(value, trained[re.sub(r"^down\.", "hourglasses.0.down.", inner)])
    assert all(
        torch.equal(head.score.weight, score) for head, score in zip(finder.heads, scores, strict=True)
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        PersonFinder(width=32).begin_as(pose)


def test_finder_grows_without_changing_its_answers() -> None:
    small = with_random_statistics(PersonFinder(width=16, stacks=1))
    large = with_random_statistics(PersonFinder(width=16, stacks=2))
    large.begin_as(small)
    image = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        for stack in large.every_stack(image):
            for ours, theirs in zip(stack, small(image), strict=True):
                assert torch.equal(ours, theirs)
    # What it grew can learn.
    loss = torch.stack([d.log().square().mean() for _, d in large.train().every_stack(image)]).sum()
    torch.autograd.backward(loss)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in large.merges.parameters())
    again = PersonFinder(width=16, stacks=2)
    again.begin_as(large)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), large.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="2 stacks, not 1"):
        small.begin_as(large)


def test_pose_network_grows_without_changing_its_answers() -> None:
    small = with_random_statistics(StackedHourglass(outputs=4, stacks=2, width=16))
    large = with_random_statistics(StackedHourglass(outputs=4, stacks=4, width=16))
    large.begin_as(small)
    image = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        first, *others = large(image)
        assert torch.equal(first, small(image)[0])
        assert all(torch.equal(maps, small(image)[1]) for maps in others)
    loss = torch.stack([maps.square().mean() for maps in large.train()(image)]).sum()
    torch.autograd.backward(loss)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in large.merges.parameters())
    with pytest.raises(RuntimeError, match="4 stacks, not 2"):
        small.begin_as(large)
    with pytest.raises(RuntimeError, match="a PersonFinder, not a StackedHourglass"):
        small.begin_as(PersonFinder(width=16))


def test_finder_shapes_and_first_guess() -> None:
    finder = PersonFinder(width=16).eval()
    centres, distances = finder(torch.zeros(2, 3, 64, 128))
    assert centres.shape == (2, 8, 16) and distances.shape == (2, 4, 8, 16)
    assert (distances > 0).all()
    # Before training nearly every cell says "nobody".
    assert centres.sigmoid().mean() < 0.1


def test_finder_decodes_a_peak() -> None:
    centres = torch.full((1, 16, 24), -9.0)
    centres[0, 5, 7] = 3
    centres[0, 5, 8] = 2  # beside a peak, so none itself
    centres[0, 12, 20] = 1
    distances = torch.tensor([10.0, 20.0, 30.0, 40.0]).view(1, 4, 1, 1).repeat(1, 1, 16, 24)
    # The neighbour that counts means the same box; around the other peak all mean boxes of their own.
    distances[0, :, 5, 8] += torch.tensor([8.0, 0, -8, 0])
    boxes, scores = PersonFinder.decode(centres, distances, max_people=10)
    assert boxes.shape == (1, 10, 4)
    # The middle of cell (7, 5) lies at input px (59.5, 43.5).
    assert boxes[0, 0].tolist() == pytest.approx([49.5, 23.5, 89.5, 83.5], abs=0.01)
    assert boxes[0, 1].tolist() == pytest.approx([153.5, 79.5, 193.5, 139.5], abs=0.01)
    # Boxes of 40 x 60 px, of which four lie 8 px beside, and as many 8 px over corners.
    shared = [32 * 60, 32 * 60, 40 * 52, 40 * 52, *[32 * 52] * 4]
    agreement = sum(both / (2 * 2400 - both) for both in shared) / 8
    expected = torch.tensor([3.0, 1.0]).sigmoid() * torch.tensor([1.0, agreement])
    assert scores[0, :2].tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert (scores[0, 2:] < 0.01).all()


def test_finder_boxes_are_their_neighbours_too() -> None:
    centres = torch.full((1, 8, 8), -30.0)
    centres[0, 3, 3], centres[0, 3, 4] = 2, 1
    distances = torch.full((1, 4, 8, 8), 20.0)
    # 10 px to the right of the box of the peak, of whose 40 x 40 px it shares 30 x 40.
    distances[0, :, 3, 4] += torch.tensor([-2.0, 0, 2, 0])
    boxes, scores = PersonFinder.decode(centres, distances, max_people=1)
    peak, beside = torch.tensor([2.0, 1.0]).sigmoid().tolist()
    overlap = 1200 / 2000
    shift = 10 * beside * overlap / (peak + beside * overlap)
    assert boxes[0, 0].tolist() == pytest.approx([7.5 + shift, 7.5, 47.5 + shift, 47.5], abs=1e-3)
    assert scores[0, 0].item() == pytest.approx(peak * overlap, abs=1e-3)


def test_finder_decodes_small_maps() -> None:
    boxes, scores = PersonFinder.decode(torch.zeros(1, 2, 2), torch.ones(1, 4, 2, 2), max_people=100)
    assert boxes.shape == (1, 4, 4) and scores.shape == (1, 4)


def test_build_model() -> None:
    network = build_model({"kind": "stacked_hourglass", "outputs": 3, "stacks": 1, "width": 16})
    assert isinstance(network, StackedHourglass)
    with pytest.raises(ValueError, match=r"'transformer'; known: stacked_hourglass, person_finder"):
        build_model({"kind": "transformer"})
