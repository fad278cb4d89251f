"""The stacked hourglass network (Newell, Yang and Deng, ECCV 2016, arXiv:1603.06937).

Symbols: N batch, C channels, K outputs, S stacks, H and W the input size in px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: A convolution with fewer outputs sums up in an order that depends on the number of threads (oneDNN's
#: on AVX2): at inference it gets outputs that nobody reads.
_FEWEST_OUTPUTS = 16


class Residual(nn.Module):
    """Pre-activation bottleneck residual (paper section 3.3, figure 4 left).

    Maps ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``. All convolutions carry a bias;
    the skip is a plain 1x1 convolution where the widths differ and the identity where they agree.
    """

    folds: ClassVar = (("conv1", "bn2"), ("conv2", "bn3"))

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, out_channels, 1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        y: Tensor = self.conv1(F.relu(self.bn1(x), inplace=True))
        y = self.conv2(F.relu(self.bn2(y), inplace=True))
        y = self.conv3(F.relu(self.bn3(y), inplace=True))
        y = y + self.skip(x)
        return y


class Hourglass(nn.Module):
    """One hourglass (paper section 3.1, figure 3): ``(N, C, H, W)`` to the same shape.

    Convolution and max pooling ``depth`` times, a residual branch at every pooling step,
    nearest-neighbour upsampling and elementwise addition back up. ``H`` and ``W`` must be
    multiples of ``2 ** depth``.

    Args:
        depth: pooling steps.
        width: C.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.branch = Residual(width, width)
        self.down = Residual(width, width)
        self.inner = Hourglass(depth - 1, width) if depth > 1 else Residual(width, width)
        self.up = Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        y: Tensor = self.branch(x)
        return y + F.interpolate(low, scale_factor=2.0, mode="nearest")


class Stem(nn.Module):
    """7x7 stride-2 convolution, residuals and a max pool: ``(N, 3, H, W)`` to ``(N, width, H/4, W/4)``.

    Paper section 3.3.

    Args:
        width: channels of the result.
        channels: of the convolution and of the two residuals before the last.
    """

    folds: ClassVar = (("conv", "bn"),)

    def __init__(self, width: int, channels: Sequence[int]) -> None:
        super().__init__()
        a, b, c = channels
        self.conv = nn.Conv2d(3, a, 7, stride=2, padding=3)
        self.bn = nn.BatchNorm2d(a)
        self.residual1 = Residual(a, b)
        self.residual2 = Residual(b, c)
        self.residual3 = Residual(c, width)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        x = F.relu(self.bn(self.conv(x)), inplace=True)
        x = F.max_pool2d(self.residual1(x), 2)
        y: Tensor = self.residual3(self.residual2(x))
        return y


class Head(nn.Module):
    """What follows an hourglass: a residual, then two rounds of 1x1 convolutions (paper section 3.2).

    ``forward`` maps ``(N, width, h, w)`` to the feature ``(N, width, h, w)`` and the heatmaps
    ``(N, outputs, h, w)``.
    """

    folds: ClassVar = (("conv", "bn"),)

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.residual = Residual(width, width)
        self.conv = nn.Conv2d(width, width, 1)
        self.bn = nn.BatchNorm2d(width)
        self.score = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the class says."""
        feature = F.relu(self.bn(self.conv(self.residual(x))), inplace=True)
        return feature, self._scores(feature)

    def _scores(self, feature: Tensor) -> Tensor:
        outputs, bias = self.score.out_channels, self.score.bias
        if self.training or bias is None or outputs >= _FEWEST_OUTPUTS:
            scores: Tensor = self.score(feature)
            return scores
        weight = self.score.weight
        spare = weight.new_zeros(_FEWEST_OUTPUTS - outputs, self.score.in_channels, 1, 1)
        padded = F.conv2d(feature, torch.cat([weight, spare]), torch.cat([bias, spare[:, 0, 0, 0]]))
        return padded[:, :outputs]


class Merge(nn.Module):
    """Feeds features and heatmaps of one stack into the next (paper section 3.2, figure 4 right).

    ``forward`` maps the stack's input ``(N, width, h, w)``, feature and heatmaps to the next one's input.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.feature = nn.Conv2d(width, width, 1)
        self.score = nn.Conv2d(outputs, width, 1)

    def forward(self, x: Tensor, feature: Tensor, score: Tensor) -> Tensor:
        """As the class says."""
        y: Tensor = x + self.feature(feature) + self.score(score)
        return y


def fold_batch_norms(model: nn.Module) -> None:
    """Folds every batch normalisation that follows a convolution into it, in place; for inference only.

    Modules name these pairs in ``folds``. The first normalisation of a residual stands before its
    convolution and stays.
    """
    for module in model.modules():
        for conv, bn in getattr(module, "folds", ()):
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn)))
            setattr(module, bn, nn.Identity())


class Stacked(Protocol):
    """A network of hourglasses one behind the other, a head after each and a merge before the next."""

    hourglasses: nn.ModuleList
    heads: nn.ModuleList
    merges: nn.ModuleList


def begin_stacks_as(network: Stacked, trained: Stacked) -> None:
    """Gives the stacks of a network the weights of a trained one's.

    Each that is new begins as the last of the trained ones and hears nothing of it yet, so that the answers
    are the same at first.

    Raises:
        RuntimeError: they do not fit, or the trained ones are more.
    """
    if len(trained.hourglasses) > len(network.hourglasses):
        raise RuntimeError(f"{len(trained.hourglasses)} stacks, not {len(network.hourglasses)}")
    pairs = (network.hourglasses, trained.hourglasses), (network.heads, trained.heads)
    for mine, theirs in pairs:
        for i, module in enumerate(mine):
            module.load_state_dict(theirs[min(i, len(theirs) - 1)].state_dict())
    for i, merge in enumerate(network.merges):
        if i < len(trained.merges):
            merge.load_state_dict(trained.merges[i].state_dict())
        else:
            for parameter in merge.parameters():
                nn.init.zeros_(parameter)


class StackedHourglass(nn.Module):
    """Hourglasses one behind the other, a prediction after each (paper section 3.2).

    Args:
        outputs: K, the number of output channels (one heatmap a keypoint).
        stacks: S, the number of hourglasses.
        width: channels of the hourglasses, a multiple of 8.
        depth: pooling steps inside an hourglass; 4 takes a 256 px input down to 4x4 cells.
        stem: channels of the stem's convolution and of its first two residuals. By default width/4,
            width/2, width/2: at width 256 that is the published 64, 128, 128; in a narrow network a fixed
            stem would cost more than the hourglasses.
    """

    def __init__(
        self,
        outputs: int,
        stacks: int = 4,
        width: int = 128,
        depth: int = 4,
        stem: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.stride_px = 4 * 2**depth
        self.stem = Stem(width, stem or (width // 4, width // 2, width // 2))
        self.hourglasses = nn.ModuleList(Hourglass(depth, width) for _ in range(stacks))
        self.heads = nn.ModuleList(Head(width, outputs) for _ in range(stacks))
        self.merges = nn.ModuleList(Merge(width, outputs) for _ in range(stacks - 1))

    def begin_as(self, trained: nn.Module) -> None:
        """Takes over all that a trained network of the same outputs and width, and no more stacks, knows.

        If it has fewer, this one still gives the same answers at first: see :func:`begin_stacks_as`.

        Raises:
            RuntimeError: it is of another kind, has more stacks, or its outputs, width or depth are others.
        """
        if not isinstance(trained, StackedHourglass):
            raise RuntimeError(f"a {type(trained).__name__}, not a {type(self).__name__}")
        self.stem.load_state_dict(trained.stem.state_dict())
        begin_stacks_as(self, trained)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The raw maps of every stack, the last the best.

        Args:
            images: ``(N, 3, H, W)`` normalised RGB; H and W multiples of ``stride_px`` (64 at depth 4).

        Returns:
            S tensors ``(N, K, H/4, W/4)``.
        """
        x = self.stem(images)
        scores: list[Tensor] = []
        for i, (hourglass, head) in enumerate(zip(self.hourglasses, self.heads, strict=True)):
            feature, score = head(hourglass(x))
            scores.append(score)
            if i < len(self.merges):
                x = self.merges[i](x, feature, score)
        return scores
