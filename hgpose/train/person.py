"""The person task: varied views of whole images, which cells learn whom, and average precision.

Who learns a person is decided by who sees him best so far, as in "TOOD: Task-aligned One-stage Object
Detection" (Feng et al. 2021, arXiv:2108.07755, section 3.2): the score of a cell then tells how right its
box is, and not only how near to the middle it lies.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hgpose.detect import PersonDetector
from hgpose.errors import InputError
from hgpose.geometry import CropTransform, heatmap_to_crop
from hgpose.models import build_model
from hgpose.models.finder import FINDER_STRIDE_PX, PersonFinder
from hgpose.network import Network
from hgpose.options import TrainOptions
from hgpose.train.augment import Augmentation, random_fill, random_look
from hgpose.train.cache import ImageCache, Window, build_cache
from hgpose.train.datasets import BoxSet
from hgpose.train.evaluate import predict_boxes
from hgpose.train.loop import IMAGENET_MEAN, IMAGENET_STD, Samples, checksum, normalise
from hgpose.train.metrics import COUNTED_HEIGHT, box_ap, count_people, match_boxes
from hgpose.weights import Card

#: So many cells learn a person, and score and overlap count so much in their choice (paper section 3.2,
#: m, alpha and beta; less for the overlap than there, as people's boxes are annotated loosely).
_LEARNERS, _SCORE_POWER, _OVERLAP_POWER = 10, 0.5, 4.0
#: Weight of the boxes' loss against the scores'.
_BOX_WEIGHT = 2.5
#: People of a view; more, the smallest, are neither wanted nor wrong.
_MOST_PEOPLE = 80
#: A person of whom less than this share is left in the view is neither wanted nor wrong.
_LEAST_VISIBLE = 0.35
#: Nor is one smaller than this, input px.
_LEAST_HEIGHT_PX = 10.0
#: How much larger or smaller than the view an image is shown: from far to near, alone and in a mosaic.
_WHOLE_ZOOM, _QUARTER_ZOOM = (0.6, 2.2), (0.9, 2.8)
#: False boxes allowed an image, and per 100 images without people, when the threshold is chosen.
_FALSE_BOXES = (0.28, 1.8)

#: Boxes ``(n, 4)`` and how sure it is that they show people ``(n,)``, in [0, 1]: 0 are regions where people
#: are neither wanted nor wrong.
_Boxes = tuple[NDArray[np.floating], NDArray[np.float32]]


class PersonDataset(Samples):
    """Random views of images with person boxes. Items depend on seed, epoch and index alone.

    Each item has, with h and w an eighth of the size: ``image`` ``(3, S, S)`` uint8 RGB; ``people``
    ``(80, 5)`` float32, xyxy input px and how sure they are, rows of zeros behind the last one; ``known``
    ``(h, w)`` float32, 0 where a person is too small or cut.
    """

    def __init__(self, boxes: BoxSet, cache: ImageCache, size_px: int, aug: Augmentation, seed: int) -> None:
        self.boxes, self.cache, self.size_px, self.aug, self.seed = boxes, cache, size_px, aug, seed

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, i = key
        rng = np.random.default_rng((self.seed, epoch, i))
        canvas = random_fill(self.size_px, rng)
        if rng.random() < self.aug.mosaic:
            boxes, sure = self._mosaic(i, canvas, rng)
        else:
            boxes, sure = self._view(i, canvas, _WHOLE_ZOOM, rng)
        view = random_look(canvas, self.aug, rng)
        image = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))
        targets = box_targets(boxes, sure, self.size_px)
        return {"image": image} | {key: torch.from_numpy(value) for key, value in targets.items()}

    def _mosaic(self, i: int, canvas: NDArray[np.uint8], rng: np.random.Generator) -> _Boxes:
        """Views of four images, side by side ("YOLOv4", Bochkovskiy et al. 2020, section 3.3)."""
        others = rng.integers(len(self), size=3).tolist()
        x, y = (rng.uniform(0.3, 0.7, 2) * self.size_px).astype(int).tolist()
        boxes, sure = [], []
        for j, (left, top) in zip([i, *others], [(0, 0), (x, 0), (0, y), (x, y)], strict=True):
            quarter = canvas[top : y if top == 0 else self.size_px, left : x if left == 0 else self.size_px]
            shown = quarter.copy()
            b, s = self._view(j, shown, _QUARTER_ZOOM, rng)
            quarter[:] = shown
            boxes.append(b + np.array([left, top, left, top]))
            sure.append(s)
        return np.concatenate(boxes), np.concatenate(sure)

    def _view(
        self, i: int, canvas: NDArray[np.uint8], zoom: tuple[float, float], rng: np.random.Generator
    ) -> _Boxes:
        """Draws a random view of image ``i`` on a canvas; its people there, as :func:`in_view` says."""
        image = self.cache.image(i)
        height, width = canvas.shape[:2]
        transform = self._random_view(image, (width, height), zoom, rng)
        transform.warp(image, onto=canvas)
        # People are round: where a view is turned, the box of their turned ellipse is theirs. That of their
        # turned box, which has empty corners, would be too wide.
        x1, y1, x2, y2 = self.boxes.boxes[i].T
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        ends = np.stack([x, y, x2, y, x, y2], axis=1).reshape(-1, 3, 2)
        middle, side, foot = transform.to_crop(self.cache.to_window(i, ends)).transpose(1, 0, 2)
        reach = np.hypot(side - middle, foot - middle)
        boxes = np.concatenate([middle - reach, middle + reach], axis=1)
        sure = np.where(self.boxes.crowd[i], np.float32(0), self.boxes.scores[i])
        return in_view(boxes, sure, (width, height))

    def _random_view(
        self,
        image: NDArray[np.uint8],
        size_wh: tuple[int, int],
        zoom: tuple[float, float],
        rng: np.random.Generator,
    ) -> CropTransform:
        h, w = image.shape[:2]
        shown = max(h, w) / float(np.exp(rng.uniform(*np.log(zoom)))) * np.array(size_wh) / max(size_wh)
        slack = abs(max(h, w) - shown) / 2
        center = (np.array([w, h]) - 1) / 2 + rng.uniform(-slack, slack)
        return CropTransform(
            (float(center[0]), float(center[1])),
            float(shown[0]),
            size_wh,
            rotation_deg=float(np.clip(rng.normal(0, 4), -10, 10)),
            mirror=bool(rng.random() < self.aug.mirror),
            # Frames come in every aspect, the training images were squeezed to squares.
            stretch=float(np.exp(np.clip(rng.normal(0, 0.2), -0.5, 0.5))),
        )


def in_view(boxes: NDArray[np.floating], sure: NDArray[np.float32], size_wh: tuple[int, int]) -> _Boxes:
    """Boxes cut to a view, without those that lie outside.

    Args:
        boxes: ``(n, 4)`` xyxy px of the view.
        sure: ``(n,)``, 0 for regions where people are neither wanted nor wrong.
        size_wh: size of the view, px.

    Returns:
        ``(m, 4)`` and ``(m,)``; people of whom too little is left are regions, too.
    """
    cut = boxes.clip(-0.5, np.tile(size_wh, 2) - 0.5)
    area, left = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, cut))
    seen = left > 0
    return cut[seen], np.where(left < _LEAST_VISIBLE * area, np.float32(0), sure)[seen]


def box_targets(
    boxes: NDArray[np.floating], sure: NDArray[np.float32], size_px: int
) -> dict[str, NDArray[np.float32]]:
    """Training targets of one view; see :class:`PersonDataset`.

    Args:
        boxes: ``(n, 4)`` xyxy input px, which may leave the view.
        sure: ``(n,)``, 0 for regions where people are neither wanted nor wrong.
        size_px: side of the view.
    """
    n = size_px // FINDER_STRIDE_PX
    middles = heatmap_to_crop(np.arange(n, dtype=np.float64), FINDER_STRIDE_PX)
    people, known = np.zeros((_MOST_PEOPLE, 5), np.float32), np.ones((n, n), np.float32)
    boxes, sure = in_view(boxes, sure, (size_px, size_px))
    large_first = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
    boxes, sure = boxes[large_first], sure[large_first]
    wanted = np.flatnonzero((sure > 0) & (boxes[:, 3] - boxes[:, 1] >= _LEAST_HEIGHT_PX))[:_MOST_PEOPLE]
    people[: len(wanted), :4], people[: len(wanted), 4] = boxes[wanted], sure[wanted]
    reach = FINDER_STRIDE_PX / 2
    for x1, y1, x2, y2 in np.delete(boxes, wanted, axis=0):
        # At least the cell that it lies in.
        rows = (middles > min(y1, (y1 + y2) / 2 - reach)) & (middles < max(y2, (y1 + y2) / 2 + reach))
        columns = (middles > min(x1, (x1 + x2) / 2 - reach)) & (middles < max(x2, (x1 + x2) / 2 + reach))
        known[np.ix_(rows, columns)] = 0
    return {"people": people, "known": known}


def _overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of boxes ``(..., 4)`` xyxy, broadcast."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp_min(0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    union = area_a + area_b - common
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    iou = common / union.clamp_min(1e-6)
    return iou, iou - (hull - union) / hull.clamp_min(1e-6)


def choose_learners(
    scores: Tensor, boxes: Tensor, middles: Tensor, people: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which cells learn which person, and what they are to score (paper section 3.2, equations 1 to 4).

    Args:
        scores: ``(N, P)`` of cells, in [0, 1].
        boxes: ``(N, P, 4)`` xyxy input px, of cells.
        middles: ``(P, 2)`` of cells, input px.
        people: ``(N, M, 5)`` xyxy input px and how sure they are, rows of zeros behind an image's last one.

    Returns:
        ``(N, P)`` what a cell is to score: how well it sees its person, 0 if it has none; ``(N, P)`` the
        rows of these people; ``(N, P)`` whether it has one.
    """
    low, high, sure = people[..., :2], people[..., 2:4], people[..., 4:]
    iou, _ = _overlaps(boxes[:, None], people[:, :, None, :4])
    middle = (low + high)[:, :, None] / 2
    # However narrow a person is, the cell that he lies in is within reach.
    reach = ((high - low) / 2).clamp_min(FINDER_STRIDE_PX / 2 + 0.01)[:, :, None]
    inside = ((middles - middle).abs() < reach).all(-1) & (sure > 0)
    # An overlap of nothing must not keep cells from learning that have everything to learn.
    fit = scores[:, None] ** _SCORE_POWER * iou.clamp_min(1e-4) ** _OVERLAP_POWER * inside
    best, cells = fit.topk(min(_LEARNERS, fit.shape[2]), dim=2)
    learns = torch.zeros_like(fit).scatter_(2, cells, (best > 0).to(fit))
    # Of several people a cell learns whom its box fits best.
    closest = torch.zeros_like(fit).scatter_(1, (iou * learns).argmax(1, keepdim=True), 1.0)
    learns = learns * torch.where(learns.sum(1, keepdim=True) > 1, closest, 1.0)
    fit = fit * learns
    # His best cell is to score as much as the best overlap, the less the less sure he is, the others in
    # proportion.
    most = (iou * learns).amax(2, keepdim=True) / fit.amax(2, keepdim=True).clamp_min(1e-20)
    goal, owner = (fit * most * sure).max(1)
    return goal, owner, learns.any(1)


def aligned_loss(raw: Tensor, distances: Tensor, people: Tensor, known: Tensor) -> Tensor:
    """Cross entropy of the scores with what they should be, and generalised IoU loss of the boxes.

    Args:
        raw: ``(N, h, w)`` centres, from the network.
        distances: ``(N, 4, h, w)`` input px, from the network.
        people: ``(N, M, 5)`` xyxy input px and how sure they are, rows of zeros behind an image's last one.
        known: ``(N, h, w)``, 0 where people are neither wanted nor wrong.
    """
    if people.device.type == "cpu":
        # Without the rows that no image fills. To count them a GPU would have to be waited for.
        people = people[:, : max(int((people[..., 4] > 0).sum(1).max()), 1)]
    y, x = (
        torch.from_numpy(heatmap_to_crop(np.arange(size, dtype=np.float32), FINDER_STRIDE_PX)).to(raw.device)
        for size in raw.shape[1:]
    )
    middles = torch.cartesian_prod(y, x).flip(1)
    logits, sides = raw.flatten(1), distances.flatten(2).transpose(1, 2)
    boxes = torch.cat([middles - sides[..., :2], middles + sides[..., 2:]], dim=-1)
    with torch.no_grad():
        goal, owner, learns = choose_learners(logits.sigmoid(), boxes, middles, people)
        total = goal.sum().clamp_min(1)
    counts = torch.maximum(known.flatten(1), learns.to(known))
    score = F.binary_cross_entropy_with_logits(logits, goal, weight=counts, reduction="sum")
    _, giou = _overlaps(boxes, people[..., :4].gather(1, owner[..., None].expand(-1, -1, 4)))
    return (score + _BOX_WEIGHT * ((1 - giou) * goal).sum()) / total


class PersonTask:
    """Trains a :class:`PersonFinder`.

    Args:
        boxes: to train on.
        validation: to choose the best weights on.
        architecture: ``width``, ``stacks``.
        options: of the training.
        cache: folder for decoded images.
        description: ``data``, ``licence`` and ``training`` of the model card.
        input_px: side of a square as large as the network's input at test time; views to train on may be
            smaller.
        mosaic: share of views that show parts of four images. They keep the network from learning images by
            heart, but are unlike those it will see: a last run is better without ("YOLOX", Ge et al. 2021,
            arXiv:2107.08430, section 2.1).
    """

    name = "person"

    def __init__(
        self,
        boxes: BoxSet,
        validation: BoxSet,
        architecture: dict[str, int],
        options: TrainOptions,
        cache: Path,
        description: dict[str, Any],
        input_px: int,
        mosaic: float,
    ) -> None:
        self._card = Card(
            name="person",
            task=self.name,
            architecture={"kind": "person_finder", **architecture},
            input_px=input_px,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            threshold=0.3,
            **description,
        )
        self.validation = validation
        if not count_people(validation):
            raise InputError(
                f"the validation set (with {validation.files[0]}) has no boxes of people as high as a tenth "
                "of their image: choose another --val"
            )
        if not any((~crowd & (s > 0)).any() for crowd, s in zip(boxes.crowd, boxes.scores, strict=True)):
            raise InputError(f"the training set (with {boxes.files[0]}) has no boxes: add annotations")
        windows = [Window(file, None, 2 * options.size_px) for file in boxes.files]
        self.dataset = PersonDataset(
            boxes,
            build_cache(windows, cache),
            options.size_px,
            Augmentation(cut_out=0.15, mosaic=mosaic),
            options.seed,
        )

    def build(self) -> nn.Module:
        """A freshly initialised network."""
        return build_model(self._card.architecture)

    def card(self) -> Card:
        """The card of the weights, without checksum and scores."""
        return self._card

    def data(self) -> tuple[str, str]:
        """Checksums of the images to learn from and of those to choose on."""
        learnt, chosen = (
            checksum(boxes.files, (*boxes.boxes, *boxes.crowd, *boxes.scores))
            for boxes in (self.dataset.boxes, self.validation)
        )
        return learnt, chosen

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean over stacks of :func:`aligned_loss`."""
        assert isinstance(model, PersonFinder)
        losses = [
            aligned_loss(centres, distances, batch["people"], batch["known"])
            for centres, distances in model.every_stack(normalise(batch["image"], self._card))
        ]
        return torch.stack(losses).mean()

    def validate(self, model: nn.Module, device: torch.device, half: bool) -> dict[str, float]:
        """AP50 on the validation set, percent; people shorter than a tenth of the image do not count.

        The card's threshold becomes the lowest at which false boxes stay rare.
        """
        detector = PersonDetector(Network(model, self._card, device, half), threshold=0.02)
        found = predict_boxes(detector, self.validation)
        with suppress(InputError):
            # Early on no threshold does; the card then keeps its old one.
            threshold = match_boxes(self.validation, found).choose_threshold(*_FALSE_BOXES)
            self._card = replace(self._card, threshold=round(threshold, 4))
        return {"AP50": 100 * box_ap(self.validation, found, COUNTED_HEIGHT).ap50}
