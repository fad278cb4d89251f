"""The person finder: small hourglasses that mark people's centres and their boxes.

"Objects as Points" (Zhou, Wang and Krähenbühl 2019, arXiv:1904.07850, sections 3 and 4), whose best
backbone was an hourglass. Boxes are distances to the four sides, as in FCOS (Tian et al. 2019,
arXiv:1904.01355, section 3.1), so a peak off the centre still gives the right box: the cell that sees a
person best need not be the one in the middle of him (see :mod:`hgpose.train.person`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgpose.models.hourglass import (
    Head,
    Hourglass,
    Residual,
    StackedHourglass,
    Stem,
    begin_stacks_as,
)

#: A cell of the finder's maps spans this many input px; cell h is centred on input px 8 h + 3.5. A
#: person is many cells of a pose network's heatmap: to be found they need no more than a few.
FINDER_STRIDE_PX = 8

#: Raw distances are logarithms in units of this many input px, so that 0 is a person of usual size.
_USUAL_PX = 40.0


class PersonFinder(nn.Module):
    """Centre heatmap and box distances of every person on an image.

    The stem and the hourglasses are those of a pose network without its outermost, finest and dearest
    level, so the weights of a trained one fit: see :meth:`begin_as`. Most of the cost is the stem's; a
    second hourglass adds a seventh to it. Each has a head of its own for intermediate supervision (Newell
    et al. 2016, section 3.2), of which only the last one is computed when people are looked for.

    Args:
        width: channels of the hourglasses, a multiple of 8.
        depth: pooling steps inside them.
        stacks: hourglasses one behind the other.
    """

    def __init__(self, width: int = 128, depth: int = 3, stacks: int = 2) -> None:
        super().__init__()
        self.stride_px = FINDER_STRIDE_PX * 2**depth
        self.stem = Stem(width, (width // 4, width // 2, width // 2))
        self.down = Residual(width, width)
        self.hourglasses = nn.ModuleList(Hourglass(depth, width) for _ in range(stacks))
        self.merges = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.heads = nn.ModuleList(Head(width, outputs=5) for _ in range(stacks))
        for head in self.heads:
            assert isinstance(head, Head) and head.score.bias is not None
            # Hardly any cell sees somebody: begin there (Lin et al. 2017, "Focal Loss", sections 3.3, 4.1).
            with torch.no_grad():
                head.score.weight.normal_(std=0.01)
                head.score.bias.zero_()
                head.score.bias[0] = -math.log(99)

    def begin_as(self, trained: nn.Module) -> None:
        """Takes over what a trained network of the same width knows.

        Of a pose network that is what people's parts look like. Of a finder it is everything: see
        :func:`begin_stacks_as`.

        Raises:
            RuntimeError: it is neither, its width or depth is another, or it is a finder of more hourglasses.
        """
        if not isinstance(trained, StackedHourglass | PersonFinder):
            raise RuntimeError(f"a {type(trained).__name__}, not a {type(self).__name__}")
        self.stem.load_state_dict(trained.stem.state_dict())
        if isinstance(trained, StackedHourglass):
            outer = trained.hourglasses[0]
            assert isinstance(outer, Hourglass) and isinstance(outer.inner, Hourglass)
            self.down.load_state_dict(outer.down.state_dict())
            for hourglass in self.hourglasses:
                hourglass.load_state_dict(outer.inner.state_dict())
            return
        self.down.load_state_dict(trained.down.state_dict())
        begin_stacks_as(self, trained)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw centre scores and distances.

        Args:
            images: ``(N, 3, H, W)`` normalised RGB; H and W multiples of ``stride_px``.

        Returns:
            centres ``(N, H/8, W/8)`` raw (a sigmoid makes them probabilities), and distances
            ``(N, 4, H/8, W/8)`` from each cell's centre to the left, top, right and bottom side, input px.
        """
        *_, last = self._features(images)
        return self._read(self.heads[-1], last)

    def every_stack(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What :meth:`forward` returns, of each hourglass; for training."""
        return [self._read(*pair) for pair in zip(self.heads, self._features(images), strict=True)]

    def _features(self, images: Tensor) -> list[Tensor]:
        x = self.down(F.max_pool2d(self.stem(images), 2))
        features = [self.hourglasses[0](x)]
        for merge, hourglass in zip(self.merges, self.hourglasses[1:], strict=True):
            features.append(hourglass(x + merge(features[-1])))
        return features

    @staticmethod
    def _read(head: nn.Module, feature: Tensor) -> tuple[Tensor, Tensor]:
        maps = head(feature)[1].float()
        return maps[:, 0], maps[:, 1:].clamp(-6, 4).exp() * _USUAL_PX

    @staticmethod
    def decode(centres: Tensor, distances: Tensor, max_people: int = 100) -> tuple[Tensor, Tensor]:
        """The boxes at local maxima of the score (paper section 4, "From points to bounding boxes").

        A cell's score, how right it says its box is, is multiplied by how well its neighbours agree on the
        box: the mean overlap (intersection over union) of theirs with its own, weighted by their scores.
        Where they do not, the box is likely to be wrong, and how right it is is part of how sure a found
        person is (as in "IoU-Net", Jiang et al. 2018, arXiv:1807.11590, section 2.1). The box itself is the
        mean of its own and theirs, by their scores and overlaps ("bounding box voting", Gidaris and Komodakis
        2015, arXiv:1505.01749, section 4): each is a guess at the same person, and they err in many ways.

        Stays on the device; the result has a fixed size, padded with scores of 0.

        Args:
            centres, distances: from :meth:`forward`.
            max_people: boxes an image.

        Returns:
            boxes ``(N, max_people, 4)`` xyxy input px, scores ``(N, max_people)`` in [0, 1], falling.
        """
        h, w = centres.shape[1:]
        middles = [torch.arange(size, device=centres.device) * FINDER_STRIDE_PX for size in (h, w)]
        y, x = torch.meshgrid(*(m + (FINDER_STRIDE_PX - 1) / 2 for m in middles), indexing="ij")
        left, upper, right, lower = distances.unbind(1)
        boxes = torch.stack([x - left, y - upper, x + right, y + lower], dim=1)
        scores = centres.sigmoid()
        boxes, agreement = _vote(boxes, scores)
        scores = scores * agreement
        peaks = scores * (F.max_pool2d(scores[:, None], 3, stride=1, padding=1)[:, 0] == scores)
        top, cells = peaks.flatten(1).topk(min(max_people, h * w))
        return boxes.flatten(2).gather(2, cells[:, None].expand(-1, 4, -1)).transpose(1, 2), top


def _vote(boxes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What each cell and the eight around it think of the cell's box.

    Args:
        boxes: ``(N, 4, h, w)`` xyxy.
        weights: ``(N, h, w)``; cells off the map have none.

    Returns:
        ``(N, 4, h, w)`` their mean, by weights and overlaps with the cell's own box, and ``(N, h, w)`` in
        [0, 1] the mean overlap of the eight, by weights.
    """
    n, _, h, w = boxes.shape
    theirs = F.unfold(F.pad(boxes, (1, 1, 1, 1), mode="replicate"), 3).view(n, 4, 9, h, w)
    share = F.unfold(weights[:, None], 3, padding=1).view(n, 9, h, w)
    ours = boxes[:, :, None]
    low, high = torch.maximum(theirs[:, :2], ours[:, :2]), torch.minimum(theirs[:, 2:], ours[:, 2:])
    common = (high - low).clamp_min(0).prod(1)
    sizes = [(box[:, 2:] - box[:, :2]).prod(1) for box in (theirs, ours)]
    votes = share * common / (sizes[0] + sizes[1] - common).clamp_min(1e-6)
    mean = (theirs * votes[:, None]).sum(2) / votes.sum(1, keepdim=True).clamp_min(1e-30)
    around = [i for i in range(9) if i != 4]
    agreement = votes[:, around].sum(1) / share[:, around].sum(1).clamp_min(1e-9)
    return mean, agreement
