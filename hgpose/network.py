"""A trained network on a device, in its precision. The only place of inference that moves data there."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hgpose.device import half_pays, has_fast_bfloat16
from hgpose.errors import OptionsError
from hgpose.export import onnx_session, to_onnx
from hgpose.models.hourglass import fold_batch_norms
from hgpose.weights import Card


class Network:
    """A trained network on a device, in its precision, fed with 8-bit images.

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
        if backend == "onnx":
            self._compute = onnx_session(to_onnx(model, card))
        elif backend == "openvino":
            self._compute = _openvino(model, self.half)
        else:
            self._compute = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # (x / 255 - mean) / std as one multiplication and one addition.
        std = torch.tensor(card.std, device=device).view(1, 3, 1, 1)
        mean = torch.tensor(card.mean, device=device).view(1, 3, 1, 1)
        self._gain, self._bias = 1 / (255 * std), -mean / std

    def _precision(self) -> AbstractContextManager[Any]:
        # Activations of a residual network grow with its depth; bfloat16 has the range of float32.
        bfloat = self.device.type == "cpu" or has_fast_bfloat16(self.device)
        dtype = torch.bfloat16 if bfloat else torch.float16
        return torch.autocast(self.device.type, dtype, enabled=self.half)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Any:
        """The network's raw output, on the device, of N images ``(S, S, 3)`` uint8 RGB."""
        batch = torch.from_numpy(np.stack(images))
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        # An (N, S, S, 3) array seen as (N, 3, S, S) already lies in channels_last order.
        pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if self.card.channels == "bgr":
            pixels = pixels.flip(1)
        with torch.inference_mode(), self._precision():
            return self._compute(pixels * self._gain + self._bias)


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
