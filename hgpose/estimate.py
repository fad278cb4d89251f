"""Keypoints of people in boxes: crops, the network, decoded heatmaps. The only place of inference that moves data to a device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hgpose import heatmaps
from hgpose.device import choose_device
from hgpose.geometry import CropTransform, heatmap_to_crop
from hgpose.keypoints import keypoint_set
from hgpose.models.hourglass import fold_batch_norms
from hgpose.weights import Card, load_weights


class Network:
    """A trained network on a device, in its precision, fed with 8-bit images.

    Args:
        model: in evaluation mode; it is changed (folded, moved) and must not be used elsewhere.
        card: what it expects.
        device: where it runs.
        half: float16 on a GPU, bfloat16 on a CPU, for the network's inside; results stay float32.
    """

    def __init__(self, model: nn.Module, card: Card, device: torch.device, half: bool) -> None:
        fold_batch_norms(model)
        self.card, self.device, self.half = card, device, half
        self._model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # (x / 255 - mean) / std as one multiplication and one addition.
        std = torch.tensor(card.std, device=device).view(1, 3, 1, 1)
        mean = torch.tensor(card.mean, device=device).view(1, 3, 1, 1)
        self._gain, self._bias = 1 / (255 * std), -mean / std

    def _precision(self) -> AbstractContextManager[Any]:
        dtype = torch.bfloat16 if self.device.type == "cpu" else torch.float16
        return torch.autocast(self.device.type, dtype, enabled=self.half)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Any:
        """The network's raw output, on the device, of N images ``(S, S, 3)`` uint8 RGB."""
        batch = torch.from_numpy(np.stack(images))
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        # An (N, S, S, 3) array seen as (N, 3, S, S) already lies in channels_last order.
        pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        with torch.inference_mode(), self._precision():
            return self._model(pixels * self._gain + self._bias)


@dataclass(frozen=True)
class Keypoints:
    """Decoded keypoints of N crops, image px.

    Attributes:
        points: ``(N, K, 2)`` float32.
        scores: ``(N, K)`` float32 in [0, 1].
        heatmaps: ``(N, K, S/4, S/4)`` float32, where they were asked for.
    """

    points: NDArray[np.float32]
    scores: NDArray[np.float32]
    heatmaps: NDArray[np.float32] | None = None


class Estimator:
    """Finds the keypoints of people whose boxes are known.

    Args:
        weights: a shipped name or a .safetensors file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps``.
        half: half precision inside the network.
        flip_test: also run every crop mirrored and average the heatmaps.
        batch: crops that go through the network at once, at most.
    """

    def __init__(
        self, network: Network, flip_test: bool = False, batch: int = 16
    ) -> None:
        self.network, self.card = network, network.card
        self.keypoint_set = keypoint_set(self.card.keypoint_set)
        self.flip_test, self.batch = flip_test, batch

    @classmethod
    def load(
        cls, weights: str, device: str = "auto", half: bool = False, flip_test: bool = False, batch: int = 16
    ) -> Estimator:
        """An estimator with the named weights; :class:`WeightsError` if they cannot be used."""
        model, card = load_weights(weights, "pose")
        return cls(Network(model, card, choose_device(device), half), flip_test, batch)

    def transform(self, box_xyxy: NDArray[np.floating]) -> CropTransform:
        """The crop that belongs to a box ``(4,)`` image px."""
        return CropTransform.from_box(box_xyxy, self.card.input_px, self.card.box_padding)

    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        transforms: Sequence[CropTransform],
        keep_heatmaps: bool = False,
    ) -> Keypoints:
        """Keypoints of N crops, whichever images they lie on.

        Args:
            images: N images ``(H, W, 3)`` uint8 RGB; the same one may stand there often.
            transforms: N crops, one for each.
            keep_heatmaps: also return the probability heatmaps.
        """
        k = len(self.keypoint_set)
        parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for start in range(0, len(images), self.batch):
            chunk = slice(start, start + self.batch)
            crops = [t.warp(image) for image, t in zip(images[chunk], transforms[chunk], strict=True)]
            maps = self._heatmaps(crops)
            parts.append((*heatmaps.decode(maps), maps if keep_heatmaps else None))
        if not parts:
            return Keypoints(np.zeros((0, k, 2), np.float32), np.zeros((0, k), np.float32))
        cells = torch.cat([p[0] for p in parts]).cpu().numpy()
        scores = torch.cat([p[1] for p in parts]).cpu().numpy()
        points = np.stack([t.to_image(p) for t, p in zip(transforms, heatmap_to_crop(cells), strict=True)])
        kept = torch.cat([p[2] for p in parts if p[2] is not None]).cpu().numpy() if keep_heatmaps else None
        return Keypoints(points.astype(np.float32), scores, kept)

    def _heatmaps(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        if not self.flip_test:
            return heatmaps.probabilities(self.network(crops)[-1])
        both = heatmaps.probabilities(self.network([*crops, *(c[:, ::-1] for c in crops)])[-1])
        straight, mirrored = both.chunk(2)
        return (straight + heatmaps.flip(mirrored, self.keypoint_set.flip_order)) / 2
