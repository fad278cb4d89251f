"""A trained network on a device, in its precision. The only place of inference that moves data there."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hgpose.device import half_pays, has_fast_bfloat16, to_device
from hgpose.errors import OptionsError
from hgpose.export import onnx_session, to_onnx
from hgpose.geometry import CropPart, CropTransform
from hgpose.models.hourglass import fold_batch_norms
from hgpose.weights import Card


class Network:
    """A trained network on a device, in its precision, fed with crops.

    Args:
        model: in evaluation mode; it is changed (folded, moved) and must not be used elsewhere.
        card: what it expects.
        device: where it runs.
        half: bfloat16, or float16 on GPUs without it, for the network's inside; results stay float32.
            ``None``: where it is faster.
        backend: what computes, ``torch`` or, on a CPU, ``onnx`` (ONNX Runtime, float32) or ``openvino``.

    Raises:
        OptionsError: the backend is not installed, or cannot do what is asked.
    """

    def __init__(
        self,
        model: nn.Module,
        card: Card,
        device: torch.device,
        half: bool | None = None,
        backend: str = "torch",
    ) -> None:
        if backend != "torch" and device.type != "cpu":
            raise OptionsError(f"--backend {backend} computes on the CPU, not on {device}: add --device cpu")
        if backend == "onnx" and half:
            raise OptionsError("--backend onnx has no half precision: leave out --half")
        fold_batch_norms(model)
        self.card, self.device = card, device
        self.half = half_pays(device) and backend != "onnx" if half is None else half
        self._compute: Callable[[Tensor], Any]
        self._dtype = torch.float32
        if backend == "onnx":
            self._compute = onnx_session(to_onnx(model, card))
        elif backend == "openvino":
            self._compute = _openvino(model, self.half)
        else:
            # Activations of a residual network grow with its depth; bfloat16 has the range of float32.
            bfloat = device.type == "cpu" or has_fast_bfloat16(device)
            if self.half:
                self._dtype = torch.bfloat16 if bfloat else torch.float16
            self._compute = to_device(model.to(self._dtype), device)
        # (x / 255 - mean) / std as one multiplication and one addition.
        std = torch.tensor(card.std, device=device).view(1, 3, 1, 1)
        mean = torch.tensor(card.mean, device=device).view(1, 3, 1, 1)
        self._gain, self._bias = 1 / (255 * std), -mean / std

    def __call__(self, crops: Tensor) -> Any:
        """The network's raw output, on the device, of crops as :func:`warp` makes them."""
        if self.card.channels == "bgr":
            crops = crops.flip(1)
        with torch.inference_mode():
            return self._compute((crops * self._gain + self._bias).to(self._dtype))


def warp(
    images: Sequence[NDArray[np.uint8]], transforms: Sequence[CropTransform], device: torch.device
) -> Tensor:
    """Crops of images, on the device: ``(N, 3, h, w)`` float32 RGB in [0, 255], channels_last.

    On a GPU nothing waits for it: frames are copied from pinned memory, cropped and scaled there.

    Args:
        images: N images ``(H, W, 3)`` uint8 RGB; the same one may stand there often.
        transforms: N crops of one size, one for each.
        device: where the crops are wanted.
    """
    if device.type == "cpu":
        pixels = np.stack([t.warp(image) for image, t in zip(images, transforms, strict=True)])
        # An (N, h, w, 3) array seen as (N, 3, h, w) already lies in channels_last order.
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    there = {
        key: _upload(torch.from_numpy(image), device) for key, image in {id(i): i for i in images}.items()
    }
    parts = [t.part((image.shape[1], image.shape[0])) for image, t in zip(images, transforms, strict=True)]
    grids = np.stack([p.grid_matrix(t.size_wh) for p, t in zip(parts, transforms, strict=True)])
    width, height = transforms[0].size_wh
    shape = [len(parts), 3, height, width]
    places = F.affine_grid(_upload(torch.from_numpy(grids).float(), device), shape, align_corners=False)
    crops = [sample(there[id(i)], part, grid) for i, part, grid in zip(images, parts, places, strict=True)]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def _upload(values: Tensor, device: torch.device) -> Tensor:
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def sample(image: Tensor, part: CropPart, grid: Tensor) -> Tensor:
    """What :meth:`CropTransform.warp` does with OpenCV, on any device: ``(3, h, w)`` float32.

    Args:
        image: ``(H, W, 3)`` uint8.
        part: of the image, to sample from.
        grid: ``(h, w, 2)`` float32, where, as ``torch.nn.functional.grid_sample`` counts.
    """
    x1, y1, x2, y2 = part.window
    window = image[y1:y2, x1:x2].permute(2, 0, 1)[None].float()
    w, h = part.size_wh
    if (w, h) != (x2 - x1, y2 - y1):
        window = F.interpolate(window, size=(h, w), mode="area")
    return F.grid_sample(window, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def _openvino(model: nn.Module, half: bool) -> Callable[[Tensor], list[Tensor]]:
    """The network compiled by OpenVINO: from ``(N, 3, H, W)`` float32 to the list of its outputs."""
    try:
        openvino = importlib.import_module("openvino")
    except ImportError:
        raise OptionsError("--backend openvino needs a package: pip install 'hgpose[openvino]'") from None
    with warnings.catch_warnings():
        # Its reader of PyTorch models warns of its own way of tracing.
        warnings.simplefilter("ignore")
        converted = openvino.convert_model(model, example_input=torch.zeros(2, 3, 128, 256))
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.compile_model(converted, "CPU", settings)

    def compute(pixels: Tensor) -> list[Tensor]:
        answers = compiled(pixels.contiguous().numpy())
        return [torch.from_numpy(answers[i]) for i in range(len(answers))]

    return compute
