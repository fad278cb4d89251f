"""The person task: varied views of whole images, centre and box targets, and average precision.

Targets are those of "Training-Time-Friendly Network" (Liu et al. 2020, arXiv:1909.00700, section 4):
a Gaussian as wide as the person, whose every cell learns the box; it converges in a fraction of
the steps that centre points alone need.
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
from hgpose.geometry import CropTransform, crop_to_heatmap, heatmap_to_crop
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

#: Standard deviation of a centre's Gaussian as a share of the box (paper section 4.2, alpha / 6).
_CENTRE_SPREAD = 0.54 / 6
#: A person of whom less than this share is left in the view is neither wanted nor wrong.
_LEAST_VISIBLE = 0.35
#: Nor is one smaller than this, input px.
_LEAST_HEIGHT_PX = 10.0
#: How much larger or smaller than the view an image is shown: from far to near, alone and in a mosaic.
_WHOLE_ZOOM, _QUARTER_ZOOM = (0.6, 2.2), (0.9, 2.8)
#: False boxes allowed an image, and per 100 images without people, when the threshold is chosen.
_FALSE_BOXES = (0.28, 1.8)

#: Boxes ``(n, 4)`` and which of them are crowds ``(n,)``.
_Boxes = tuple[NDArray[np.floating], NDArray[np.bool_]]


class PersonDataset(Samples):
    """Random views of images with person boxes. Items depend on seed, epoch and index alone.

    Each item has, with h and w an eighth of the size: ``image`` ``(3, S, S)`` uint8 RGB; ``centres``
    ``(h, w)`` float32 in [0, 1]; ``known`` ``(h, w)`` float32, 0 where a person is too small or cut;
    ``boxes`` ``(4, h, w)`` float32 xyxy input px of the person a cell belongs to; ``shares``
    ``(h, w)`` float32, the cell's share in learning that box.
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
            boxes, crowd = self._mosaic(i, canvas, rng)
        else:
            boxes, crowd = self._view(i, canvas, _WHOLE_ZOOM, rng)
        view = random_look(canvas, self.aug, rng)
        image = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))
        targets = box_targets(boxes, crowd, self.size_px)
        return {"image": image} | {key: torch.from_numpy(value) for key, value in targets.items()}

    def _mosaic(self, i: int, canvas: NDArray[np.uint8], rng: np.random.Generator) -> _Boxes:
        """Views of four images, side by side ("YOLOv4", Bochkovskiy et al. 2020, section 3.3)."""
        others = rng.integers(len(self), size=3).tolist()
        x, y = (rng.uniform(0.3, 0.7, 2) * self.size_px).astype(int).tolist()
        boxes, crowd = [], []
        for j, (left, top) in zip([i, *others], [(0, 0), (x, 0), (0, y), (x, y)], strict=True):
            quarter = canvas[top : y if top == 0 else self.size_px, left : x if left == 0 else self.size_px]
            shown = quarter.copy()
            b, c = self._view(j, shown, _QUARTER_ZOOM, rng)
            quarter[:] = shown
            boxes.append(b + np.array([left, top, left, top]))
            crowd.append(c)
        return np.concatenate(boxes), np.concatenate(crowd)

    def _view(
        self, i: int, canvas: NDArray[np.uint8], zoom: tuple[float, float], rng: np.random.Generator
    ) -> _Boxes:
        """Draws a random view of image ``i`` on a canvas; its people there, as :func:`in_view` says."""
        image = self.cache.image(i)
        height, width = canvas.shape[:2]
        transform = self._random_view(image, (width, height), zoom, rng)
        transform.warp(image, onto=canvas)
        # All four corners, for a view that is turned.
        corners = self.cache.to_window(i, self.boxes.boxes[i][:, [[0, 1], [2, 1], [0, 3], [2, 3]]])
        turned = transform.to_crop(corners)
        boxes = np.concatenate([turned.min(1), turned.max(1)], axis=1)
        return in_view(boxes, self.boxes.crowd[i], (width, height))

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


def in_view(boxes: NDArray[np.floating], crowd: NDArray[np.bool_], size_wh: tuple[int, int]) -> _Boxes:
    """Boxes cut to a view, without those that lie outside.

    Args:
        boxes: ``(n, 4)`` xyxy px of the view.
        crowd: ``(n,)``, regions where people are neither wanted nor wrong.
        size_wh: size of the view, px.

    Returns:
        ``(m, 4)`` and ``(m,)``; people of whom too little is left are regions, too.
    """
    cut = boxes.clip(-0.5, np.tile(size_wh, 2) - 0.5)
    area, left = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, cut))
    seen = left > 0
    return cut[seen], (crowd | (left < _LEAST_VISIBLE * area))[seen]


def box_targets(
    boxes: NDArray[np.floating], crowd: NDArray[np.bool_], size_px: int
) -> dict[str, NDArray[np.float32]]:
    """Training targets of one view; see :class:`PersonDataset`.

    Args:
        boxes: ``(n, 4)`` xyxy input px, which may leave the view.
        crowd: ``(n,)``, regions where people are neither wanted nor wrong.
        size_px: side of the view.
    """
    n = size_px // FINDER_STRIDE_PX
    cells = np.arange(n, dtype=np.float32)
    centres, known = np.zeros((n, n), np.float32), np.ones((n, n), np.float32)
    shares, target = np.zeros((n, n), np.float32), np.zeros((4, n, n), np.float32)
    boxes, crowd = in_view(boxes, crowd, (size_px, size_px))
    # Small people last: where two overlap, the smaller one's cells are its own.
    for i in np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)):
        x1, y1, x2, y2 = boxes[i]
        w, h = (x2 - x1) / FINDER_STRIDE_PX, (y2 - y1) / FINDER_STRIDE_PX
        x, y = crop_to_heatmap(np.array([(x1 + x2) / 2, (y1 + y2) / 2]), FINDER_STRIDE_PX)
        small = (y2 - y1) < _LEAST_HEIGHT_PX
        if crowd[i] or small:
            inside = (abs(cells - y) <= h / 2)[:, None] & (abs(cells - x) <= w / 2)[None]
            known[inside] = 0
            continue
        sx, sy = max(_CENTRE_SPREAD * w, 0.4), max(_CENTRE_SPREAD * h, 0.4)
        # The cell nearest to the centre is exactly 1, as the focal loss wants it.
        gx = np.exp(-((cells - round(x.clip(0, n - 1))) ** 2) / (2 * sx**2))
        gy = np.exp(-((cells - round(y.clip(0, n - 1))) ** 2) / (2 * sy**2))
        gauss = gy[:, None] * gx[None]
        own = gauss > 0.01
        np.maximum(centres, gauss, out=centres)
        known[own] = 1
        # Paper section 4.3: a person counts with the logarithm of its area, spread over its cells.
        shares[own] = (gauss / gauss.sum() * np.log(max(w * h, 2.0)))[own]
        target[:, own] = np.array([x1, y1, x2, y2], np.float32)[:, None]
    return {"centres": centres, "known": known, "boxes": target, "shares": shares}


def centre_loss(raw: Tensor, centres: Tensor, known: Tensor) -> Tensor:
    """Penalty-reduced focal loss of "Objects as Points", equation 1, per person; all ``(N, h, w)``."""
    p = raw.sigmoid()
    positive = (centres == 1).float()
    hit = positive * (1 - p) ** 2 * F.logsigmoid(raw)
    miss = (1 - positive) * (1 - centres) ** 4 * p**2 * F.logsigmoid(-raw) * known
    return -(hit + miss).sum() / positive.sum().clamp_min(1)


def box_loss(distances: Tensor, boxes: Tensor, shares: Tensor) -> Tensor:
    """Generalised IoU loss (Rezatofighi et al. 2019) of every cell that belongs to a person.

    Args:
        distances: ``(N, 4, h, w)`` input px, from the network.
        boxes: ``(N, 4, h, w)`` xyxy input px.
        shares: ``(N, h, w)`` weights.
    """
    y, x = (
        torch.from_numpy(heatmap_to_crop(np.arange(size, dtype=np.float32), FINDER_STRIDE_PX)).to(
            distances.device
        )
        for size in distances.shape[-2:]
    )
    y = y[:, None]
    ax1, ay1, ax2, ay2 = x - distances[:, 0], y - distances[:, 1], x + distances[:, 2], y + distances[:, 3]
    bx1, by1, bx2, by2 = boxes.unbind(1)
    common_w = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_min(0)
    common_h = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_min(0)
    common = common_w * common_h
    union: Tensor = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    hull = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) * (
        torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    )
    giou = common / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)
    return ((1 - giou) * shares).sum() / shares.sum().clamp_min(1e-6)


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
        if not any((~crowd).any() for crowd in boxes.crowd):
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
            checksum(boxes.files, (*boxes.boxes, *boxes.crowd))
            for boxes in (self.dataset.boxes, self.validation)
        )
        return learnt, chosen

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean over stacks of centre loss plus box loss, weighted 1 to 5 (paper section 4.3)."""
        assert isinstance(model, PersonFinder)
        losses = [
            centre_loss(centres, batch["centres"], batch["known"])
            + 5 * box_loss(distances, batch["boxes"], batch["shares"])
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
