"""The pose task: crops of annotated people, the loss, and the score that picks the best weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hgpose import heatmaps
from hgpose.geometry import CropTransform, crop_to_heatmap
from hgpose.keypoints import KeypointSet
from hgpose.train.augment import Augmentation, random_crop, random_fill, random_look
from hgpose.train.cache import ImageCache
from hgpose.train.datasets import PoseSet

#: Standard deviation of the target around a joint, in heatmap cells.
SIGMA_CELLS = 1.0


class PoseDataset(Dataset[dict[str, Any]]):
    """Random crops of annotated people, and now and then one of an image without people.

    Item ``(epoch, i)`` is a function of the seed, the epoch and i alone, so a resumed run sees what
    an uninterrupted one would.

    Each item has ``image`` ``(3, S, S)`` uint8 RGB, ``points`` ``(K, 2)`` float32 heatmap px,
    ``present`` ``(K,)`` bool and ``weights`` ``(K,)`` float32 (0 where nothing is known).
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
            present = np.zeros(len(weights), dtype=np.bool_)
        else:
            image, points, present, weights = self._person(i, rng)
        image = random_look(image, self.aug, rng)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "points": torch.from_numpy(crop_to_heatmap(points).astype(np.float32)),
            "present": torch.from_numpy(present),
            "weights": torch.from_numpy(weights),
        }

    def _person(self, i: int, rng: np.random.Generator) -> tuple[Any, ...]:
        points = self.cache.to_window(i, self.people.points[i])
        corners = self.cache.to_window(i, self.people.boxes[i].reshape(2, 2))
        labelled = self.people.visibility[i] > 0
        weights = self.people.weights[i]
        transform = CropTransform.from_box(corners.reshape(4), self.size_px, self.padding)
        transform = random_crop(transform, points[labelled], self.aug, rng)
        if len(self.empty) and rng.random() < self.aug.background:
            canvas = self._background(rng)
        else:
            canvas = random_fill(self.size_px, rng)
        image = transform.warp(self.cache.image(i), onto=canvas)
        points = transform.to_crop(points)
        if transform.mirror:
            points, labelled, weights = (a[self.flip_order] for a in (points, labelled, weights))
        present = labelled & ((points > -0.5) & (points < self.size_px - 0.5)).all(-1)
        return image, points, present, weights

    def _background(self, rng: np.random.Generator) -> Any:
        image = self.empty.image(int(rng.integers(len(self.empty))))
        h, w = image.shape[:2]
        side = min(h, w) * rng.uniform(0.4, 1.0)
        center = (rng.uniform(side / 2, w - side / 2), rng.uniform(side / 2, h - side / 2))
        mirror = bool(rng.random() < 0.5)
        return CropTransform(center, side, self.size_px, float(rng.uniform(-15, 15)), mirror).warp(image)


@dataclass
class PoseTask:
    """What the training loop needs to know of poses."""

    keypoints: KeypointSet
    mean: Tensor
    std: Tensor

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean over stacks of the cross-entropy against Gaussian targets."""
        images = (batch["image"].float() / 255 - self.mean) / self.std
        outputs = model(images.contiguous(memory_format=torch.channels_last))
        size = outputs[0].shape[-2:]
        targets = heatmaps.encode(batch["points"], batch["present"], size, SIGMA_CELLS)
        losses = [heatmaps.cross_entropy(maps, targets, batch["weights"]) for maps in outputs]
        return torch.stack(losses).mean()
