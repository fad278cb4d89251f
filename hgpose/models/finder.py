"""The person finder: one small hourglass that marks people's centres and their boxes.

"Objects as Points" (Zhou, Wang and Krähenbühl 2019, arXiv:1904.07850, sections 3 and 4), whose best
backbone was an hourglass. Boxes are distances to the four sides, as in FCOS (Tian et al. 2019,
arXiv:1904.01355, section 3.1), so a peak one cell off the centre still gives the right box.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgpose.geometry import HEATMAP_STRIDE_PX
from hgpose.models.hourglass import StackedHourglass

#: Raw distances are logarithms in units of this many cells, so that 0 is a person of usual size.
_USUAL_CELLS = 10.0


class PersonFinder(nn.Module):
    """Centre heatmap and box distances of every person on an image.

    Args:
        width: channels of the hourglass, a multiple of 8.
        depth: pooling steps inside it.
        growth: channels that each pooling step adds: what tells people from posts is worth more
            channels where cells are few.
    """

    def __init__(self, width: int = 64, depth: int = 4, growth: int = 0) -> None:
        super().__init__()
        self.hourglass = StackedHourglass(outputs=5, stacks=1, width=width, depth=depth, growth=growth)
        self.stride_px = self.hourglass.stride_px
        # A cell is hardly ever a centre: begin there (Lin et al. 2017, "Focal Loss", section 3.3).
        bias = self.hourglass.get_parameter("heads.0.score.bias")
        with torch.no_grad():
            bias.zero_()
            bias[0] = -math.log(99)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw centre scores and distances.

        Args:
            images: ``(N, 3, H, W)`` normalised RGB; H and W multiples of ``stride_px``.

        Returns:
            centres ``(N, H/4, W/4)`` raw (a sigmoid makes them probabilities), and distances
            ``(N, 4, H/4, W/4)`` from each cell's centre to the left, top, right and bottom side, input px.
        """
        maps = self.hourglass(images)[-1].float()
        return maps[:, 0], maps[:, 1:].clamp(-6, 4).exp() * (_USUAL_CELLS * HEATMAP_STRIDE_PX)

    @staticmethod
    def decode(centres: Tensor, distances: Tensor, max_people: int = 100) -> tuple[Tensor, Tensor]:
        """The boxes at local maxima of the centre heatmap (paper section 4, "From points to bounding boxes").

        Stays on the device; the result has a fixed size, padded with scores of 0.

        Args:
            centres, distances: from :meth:`forward`.
            max_people: boxes an image.

        Returns:
            boxes ``(N, max_people, 4)`` xyxy input px, scores ``(N, max_people)`` in [0, 1], falling.
        """
        h, w = centres.shape[1:]
        scores = centres.sigmoid()
        peaks = scores * (F.max_pool2d(scores[:, None], 3, stride=1, padding=1)[:, 0] == scores)
        top, cells = peaks.flatten(1).topk(min(max_people, h * w))
        middle = (HEATMAP_STRIDE_PX - 1) / 2
        x = (cells % w) * HEATMAP_STRIDE_PX + middle
        y = torch.div(cells, w, rounding_mode="floor") * HEATMAP_STRIDE_PX + middle
        sides = distances.flatten(2).gather(2, cells[:, None].expand(-1, 4, -1))
        left, upper, right, lower = sides.unbind(1)
        return torch.stack([x - left, y - upper, x + right, y + lower], dim=-1), top
