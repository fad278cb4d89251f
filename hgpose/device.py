"""Which processor runs the networks, and in which precision."""

from __future__ import annotations

import torch
from torch import nn

from hgpose.cores import usable_cores
from hgpose.errors import OptionsError


def choose_device(wanted: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda``, ``cuda:i`` or ``mps`` means on this machine.

    Raises:
        OptionsError: an unknown word, or a device that PyTorch cannot use here.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise OptionsError(f"--device {wanted!r} is not one of auto, cpu, cuda, cuda:0, mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        built = (
            "has no CUDA support" if torch.version.cuda is None else f"sees {torch.cuda.device_count()} GPUs"
        )
        raise OptionsError(f"--device {wanted}: this PyTorch ({torch.__version__}) {built}; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionsError("--device mps: no Apple GPU is usable here; use --device cpu")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise OptionsError(f"--device {wanted!r} is not one of auto, cpu, cuda, cuda:0, mps")
    return device


def half_pays(device: torch.device) -> bool:
    """Whether networks run faster there in half precision: on GPUs, and on CPUs with bfloat16."""
    return device.type == "cuda" or (device.type == "cpu" and has_fast_bfloat16(device))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether arithmetic in bfloat16 is faster than in float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capability = torch.cpu.get_capabilities()
        return bool(capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("bf16"))
    return False


def leave_a_core() -> None:
    """Networks take all cores but one from here on: decoding, drawing and encoding go on beside them.

    Of two cores they take both: half their speed is more than what goes on beside them needs. Not so where
    bfloat16 makes them quick.
    """
    cores = usable_cores()
    left = 1 if cores > 2 or has_fast_bfloat16(torch.device("cpu")) else 0
    torch.set_num_threads(max(min(torch.get_num_threads(), cores - left), 1))


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Moves a model to a device, in the memory layout in which convolutions are fastest, and returns it."""
    # PyTorch's type stubs do not know the argument.
    moved: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
