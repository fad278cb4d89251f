"""CornerNet's hourglass (Law and Deng 2018, arXiv:1808.01244, section 5.1), as MMPose trains it for pose.

It differs from :mod:`hgpose.models.hourglass`: post-activation basic blocks of two 3x3 convolutions,
strided convolutions instead of pooling, more channels and blocks the deeper it gets, one stack.

Symbols: N batch, C channels, K outputs, H and W the input size in px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

#: Channels and number of blocks at each of the six resolutions.
_CHANNELS = (256, 256, 384, 384, 384, 512)
_BLOCKS = (2, 2, 2, 2, 2, 4)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation and, if wanted, ReLU."""

    folds: ClassVar = (("conv", "bn"),)

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        y: Tensor = self.bn(self.conv(x))
        return F.relu(y, inplace=True) if self.relu else y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a skip (He et al. 2016, arXiv:1512.03385, figure 5 left).

    Maps ``(N, in_channels, H, W)`` to ``(N, out_channels, H/stride, W/stride)``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels, 3, stride)
        self.second = ConvNorm(out_channels, out_channels, 3, relu=False)
        same = in_channels == out_channels and stride == 1
        self.skip = nn.Identity() if same else ConvNorm(in_channels, out_channels, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return F.relu(self.second(self.first(x)) + self.skip(x), inplace=True)


def _blocks(count: int, channels: int) -> list[BasicBlock]:
    return [BasicBlock(channels, channels) for _ in range(count)]


class Hourglass(nn.Module):
    """One hourglass: ``(N, C, H, W)`` to the same shape.

    H and W must be multiples of 2 to the power of the steps down.

    Args:
        channels, blocks: at each resolution, from fine to coarse, at least two of them.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        here, below, count = channels[0], channels[1], blocks[0]
        self.branch = nn.Sequential(*_blocks(count, here))
        self.down = nn.Sequential(BasicBlock(here, below, stride=2), *_blocks(count - 1, below))
        self.inner = (
            Hourglass(channels[1:], blocks[1:])
            if len(channels) > 2
            else nn.Sequential(*_blocks(blocks[1], below))
        )
        # On the way up the width changes in the last block, not in the first.
        self.up = nn.Sequential(*_blocks(count - 1, below), BasicBlock(below, here))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        low = self.up(self.inner(self.down(x)))
        y: Tensor = self.branch(x)
        return y + F.interpolate(low, scale_factor=2.0, mode="nearest")


class Hourglass52(nn.Module):
    """One hourglass of 52 layers' depth with a stem before it and heatmaps after it.

    Args:
        outputs: K, the number of output channels (one heatmap a keypoint).
    """

    stride_px = 4 * 2 ** (len(_CHANNELS) - 1)

    def __init__(self, outputs: int) -> None:
        super().__init__()
        width = _CHANNELS[0]
        self.stem = nn.Sequential(ConvNorm(3, 128, 7, 2), BasicBlock(128, width, stride=2))
        self.hourglass = Hourglass(_CHANNELS, _BLOCKS)
        # MMPose makes and saves the block before a next stack, which there is not, and counts its 1.2 of the
        # published 94.85 million parameters. It is never run.
        self.between = BasicBlock(width, width)
        self.feature = ConvNorm(width, width, 3)
        self.score = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The raw maps of the only stack.

        Args:
            images: ``(N, 3, H, W)`` normalised RGB; H and W multiples of ``stride_px``, 128.

        Returns:
            One tensor ``(N, K, H/4, W/4)``.
        """
        return [self.score(self.feature(self.hourglass(self.stem(images))))]
