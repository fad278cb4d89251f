"""The pose task: crops of annotated people, the loss, and the score that picks the best weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hgpose import heatmaps
from hgpose.errors import InputError
from hgpose.estimate import CropEstimator
from hgpose.geometry import CropTransform, crop_to_heatmap
from hgpose.keypoints import KeypointSet
from hgpose.models import build_model
from hgpose.network import Network
from hgpose.options import TrainOptions
from hgpose.train.augment import Augmentation, random_crop, random_fill, random_look
from hgpose.train.cache import ImageCache, Window, build_cache
from hgpose.train.datasets import PoseSet
from hgpose.train.evaluate import predict_keypoints
from hgpose.train.loop import IMAGENET_MEAN, IMAGENET_STD, Samples, checksum, normalise
from hgpose.train.metrics import pck, torso_px
from hgpose.weights import Card

#: Standard deviation of the target around a joint, in heatmap cells.
SIGMA_CELLS = 1.0
#: Share of labels that are taken to name the wrong side, and share taken to lie anywhere.
_SWAPPED, _STRAY = 0.03, 0.03


class PoseDataset(Samples):
    """Random crops of annotated people, and now and then one of an image without people.

    Item ``(epoch, i)`` is a function of the seed, the epoch and i alone, so a resumed run sees what
    an uninterrupted one would.

    Each item has ``image`` ``(3, S, S)`` uint8 RGB, ``points`` ``(K, 2)`` float32 heatmap px,
    ``present`` and ``confirmed`` ``(K,)`` bool, and ``weights`` ``(K,)`` float32 (0 where nothing is known).
    """

    def __init__(
        self,
        people: PoseSet,
        cache: ImageCache,
        empty: ImageCache,
        keypoints: KeypointSet,
        size_px: int,
        padding: float,
        aug: Augmentation,
        seed: int,
        empty_share: float = 0.02,
    ) -> None:
        self.people, self.cache, self.empty = people, cache, empty
        self.size_px, self.padding, self.aug, self.seed = size_px, padding, aug, seed
        self.empty_share = empty_share if len(empty) else 0.0
        self.flip_order = list(keypoints.flip_order)

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, i = key
        rng = np.random.default_rng((self.seed, epoch, i))
        if rng.random() < self.empty_share:
            image, weights = self._background(rng), np.ones(len(self.flip_order), dtype=np.float32)
            points = np.zeros((len(weights), 2))
            present = confirmed = np.zeros(len(weights), dtype=np.bool_)
        else:
            image, points, present, weights, confirmed = self._person(i, rng)
        image = random_look(image, self.aug, rng)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "points": torch.from_numpy(crop_to_heatmap(points).astype(np.float32)),
            "present": torch.from_numpy(present),
            "weights": torch.from_numpy(weights),
            "confirmed": torch.from_numpy(confirmed),
        }

    def _person(self, i: int, rng: np.random.Generator) -> tuple[Any, ...]:
        points = self.cache.to_window(i, self.people.points[i])
        corners = self.cache.to_window(i, self.people.boxes[i].reshape(2, 2))
        labelled = self.people.visibility[i] > 0
        weights, confirmed = self.people.weights[i], self.people.confirmed[i]
        transform = CropTransform.from_box(corners.reshape(4), self.size_px, self.padding)
        transform = random_crop(transform, points[labelled], self.aug, rng)
        if len(self.empty) and rng.random() < self.aug.background:
            canvas = self._background(rng)
        else:
            canvas = random_fill(self.size_px, rng)
        image = transform.warp(self.cache.image(i), onto=canvas)
        seen = transform.to_crop(points)
        if transform.mirror:
            seen, labelled, weights, confirmed = (
                a[self.flip_order] for a in (seen, labelled, weights, confirmed)
            )
        present = labelled & ((seen > -0.5) & (seen < self.size_px - 0.5)).all(-1)
        return image, seen, present, weights, confirmed

    def _background(self, rng: np.random.Generator) -> Any:
        image = self.empty.image(int(rng.integers(len(self.empty))))
        h, w = image.shape[:2]
        side = min(h, w) * rng.uniform(0.4, 1.0)
        center = (rng.uniform(side / 2, w - side / 2), rng.uniform(side / 2, h - side / 2))
        mirror = bool(rng.random() < 0.5)
        size = (self.size_px, self.size_px)
        return CropTransform(center, side, size, float(rng.uniform(-15, 15)), mirror).warp(image)


def person_windows(people: PoseSet, size_px: int) -> list[Window]:
    """The part of each image that random crops of its person can reach."""
    windows = []
    for file, (x1, y1, x2, y2) in zip(people.files, people.boxes.tolist(), strict=True):
        x, y, reach = (x1 + x2) / 2, (y1 + y2) / 2, 1.3 * max(x2 - x1, y2 - y1)
        # At twice the crop's resolution even a zoomed-in crop loses nothing.
        windows.append(Window(file, (x - reach, y - reach, x + reach, y + reach), int(2.6 * 2 * size_px)))
    return windows


def keypoint_loss(
    maps: Tensor, targets: Tensor, weights: Tensor, confirmed: Tensor, flip_order: list[int]
) -> Tensor:
    """Cross-entropy between raw maps and targets of which some are wrong.

    A crowd's labels swap sides, and some miss the body. So a label's likelihood is that of a mixture: it is
    right, or both labels of a pair stand for the other side, or it says nothing of where the joint is. While
    the network knows little this is the cross-entropy; once it is sure of the opposite, the label is
    doubted. (Patrini et al. 2017, "Making Deep Neural Networks Robust to Label Noise", section 4.1,
    correct a loss forward by such a model of the noise.) Sides of a pair of which a label is confirmed are
    not doubted: from people seen from behind, whom a network likes to take for facing it, it must learn.

    Args:
        maps: ``(N, K, h, w)`` raw maps.
        targets: ``(N, K, h, w)`` from :func:`hgpose.heatmaps.encode`.
        weights: ``(N, K)``, 0 where nothing is known of the joint.
        confirmed: ``(N, K)`` bool, where the label's side is beyond doubt.
        flip_order: of each keypoint its other side, or itself.

    Returns:
        Scalar: the weighted mean over joints.
    """
    anywhere = math.log(_STRAY / (maps.shape[-2] * maps.shape[-1] + 1))

    def of(labels: Tensor) -> Tensor:
        right = heatmaps.log_likelihood(maps, labels) + math.log1p(-_STRAY)
        return torch.logaddexp(right, right.new_tensor(anywhere))

    own, other = of(targets), of(targets[:, flip_order])
    pair, swapped = own + own[:, flip_order], other + other[:, flip_order]
    mixed = torch.logaddexp(pair + math.log1p(-_SWAPPED), swapped + math.log(_SWAPPED)) / 2
    paired = torch.tensor([i != k for k, i in enumerate(flip_order)], device=maps.device)
    both = paired & (weights > 0) & (weights[:, flip_order] > 0)
    loss = -torch.where(both & ~(confirmed | confirmed[:, flip_order]), mixed, own)
    return (loss * weights).sum() / weights.sum().clamp_min(1.0)


class PoseTask:
    """Trains a :class:`StackedHourglass` to find the keypoints of one person a crop.

    Args:
        people: to train on.
        validation: to choose the best weights on.
        empty_files: images without people, for backgrounds and for crops that show nobody.
        keypoints: what the network predicts.
        architecture: ``stacks``, ``width``, ``depth``.
        options: of the training; size and seed matter here.
        cache: folder for decoded images.
        description: ``data``, ``licence`` and ``training`` of the model card.
    """

    name = "pose"

    def __init__(
        self,
        people: PoseSet,
        validation: PoseSet,
        empty_files: Sequence[Path],
        keypoints: KeypointSet,
        architecture: dict[str, int],
        options: TrainOptions,
        cache: Path,
        description: dict[str, Any],
    ) -> None:
        self._card = Card(
            name=f"pose-{keypoints.name}",
            task=self.name,
            architecture={"kind": "stacked_hourglass", "outputs": len(keypoints), **architecture},
            input_px=options.size_px,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            keypoint_set=keypoints.name,
            box_padding=1.2,
            **description,
        )
        self.validation = validation
        if not (torso_px(validation) > 0).any():
            raise InputError(
                f"the validation set (with {validation.files[0]}) has nobody whose left_shoulder and "
                "right_hip are labelled: PCK cannot be computed, choose another --val"
            )
        empty = [*people.empty_files, *empty_files]
        self.dataset = PoseDataset(
            people,
            build_cache(person_windows(people, options.size_px), cache),
            build_cache([Window(file, None, 2 * options.size_px) for file in empty], cache),
            keypoints,
            options.size_px,
            self._card.box_padding,
            Augmentation(),
            options.seed,
        )

    def build(self) -> nn.Module:
        """A freshly initialised network."""
        return build_model(self._card.architecture)

    def card(self) -> Card:
        """The card of the weights, without checksum and scores."""
        return self._card

    def data(self) -> tuple[str, str]:
        """Checksums of the people to learn from and of those to choose on."""
        learnt, chosen = (
            checksum(
                people.files,
                (people.points, people.visibility, people.weights, people.confirmed, people.boxes),
            )
            for people in (self.dataset.people, self.validation)
        )
        return learnt, chosen

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean over stacks of :func:`keypoint_loss` against Gaussian targets (intermediate supervision)."""
        outputs = model(normalise(batch["image"], self._card))
        size = outputs[0].shape[-2:]
        targets = heatmaps.encode(batch["points"], batch["present"], size, SIGMA_CELLS)
        order = self.dataset.flip_order
        known = batch["weights"], batch["confirmed"]
        losses = [keypoint_loss(maps, targets, *known, order) for maps in outputs]
        return torch.stack(losses).mean()

    def validate(self, model: nn.Module, device: torch.device, half: bool) -> dict[str, float]:
        """PCK@0.2 on the validation set without flip test, percent."""
        estimator = CropEstimator(Network(model, self._card, device, half), batch=32)
        points, _ = predict_keypoints(estimator, self.validation)
        people = self.validation
        return {"pck@0.2": pck(points, people.points, people.visibility > 0, torso_px(people)).mean}
