"""Networks as files for other runtimes: ONNX and TorchScript.

The exported network takes ``images``, ``(N, 3, S, S)`` float32, colours in the order and normalised
as its card says (N is free, S is the card's ``input_px``; ONNX takes other sides that the network
takes). A pose network answers with ``maps``, the last stack's raw maps
``(N, K, S/4, S/4)``; the person finder with ``centres`` and ``distances``, as
:meth:`hgpose.models.finder.PersonFinder.forward`. The card goes into the file, as ``card``.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hgpose.atomic import atomic_path, output_errors
from hgpose.errors import OptionsError, WeightsError
from hgpose.models.hourglass import fold_batch_norms
from hgpose.weights import Card, find_weights, load_weights, read_card

#: What the exported network may differ by from this one: rounding in another order of additions.
_TOLERANCE = 1e-4


class _Inference(nn.Module):
    """What inference needs of a network: the last stack only. Taking it twice changes nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        answer = self.model(images)
        return answer[-1] if isinstance(answer, list) else answer


def export(name_or_path: str | Path, to: str, out: Path, overwrite: bool = False) -> float:
    """Writes a network for another runtime, and runs it there to see that it computes the same.

    Args:
        name_or_path: a name or a .safetensors file.
        to: a key of :data:`FORMATS`.
        out: the file.
        overwrite: whether it may replace a file that is already there.

    Returns:
        The largest difference found, as a share of the largest value (in a batch of another size).

    Raises:
        WeightsError: missing or damaged weights, or the exported network computes something else.
        OptionsError: an unknown format, or its packages are not installed.
        OutputError: ``out`` exists or cannot be written.
    """
    if to not in FORMATS:
        raise OptionsError(f"--to must be {' or '.join(FORMATS)}, not {to!r}")
    card = read_card(find_weights(name_or_path))
    model, card = load_weights(name_or_path, card.task)
    network = _Inference(model).eval()
    trial = torch.randn(3, 3, card.input_px, card.input_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = _tensors(network(trial))
    fold_batch_norms(network)
    with atomic_path(out, overwrite) as part:
        with _quiet(), output_errors(out):
            found = FORMATS[to](network, card, trial, part)
        difference = max(
            float((a - b).abs().max() / b.abs().max().clamp_min(1))
            for a, b in zip(found, expected, strict=True)
        )
        if not difference <= _TOLERANCE:
            raise WeightsError(f"{out}: computes something else (by {difference:.1e}), so it was not kept")
    return difference


def _tensors(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else list(answer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def to_onnx(model: nn.Module, card: Card) -> bytes:
    """A network as an ONNX file that takes ``(N, 3, H, W)`` of any size that the network takes.

    Args:
        model: in evaluation mode, its batch normalisations folded.
        card: which goes into the file.

    Raises:
        OptionsError: the package is not installed.
    """
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise OptionsError(f"ONNX needs {error.name}: pip install 'hgpose[onnx]'") from error
    names = ["maps"] if card.task == "pose" else ["centres", "distances"]
    file = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            _Inference(model).eval(),
            (torch.zeros(2, 3, card.input_px, card.input_px),),
            cast(Any, file),
            input_names=["images"],
            output_names=names,
            dynamic_axes={"images": {0: "n", 2: "h", 3: "w"}},
            # The newer exporter takes some thirty times as long, and this runs at every start of the backend.
            dynamo=False,
        )
    program = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(program, {"card": json.dumps(asdict(card), ensure_ascii=False)})
    data: bytes = program.SerializeToString()
    return data


def onnx_session(data: bytes) -> Callable[[Tensor], list[Tensor]]:
    """An ONNX file run by ONNX Runtime on the CPU: from ``images`` to the list of its outputs.

    Raises:
        OptionsError: the package is not installed.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise OptionsError(f"ONNX needs {error.name}: pip install 'hgpose[onnx]'") from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait take the time of decoder and encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def compute(images: Tensor) -> list[Tensor]:
        answers = session.run(None, {"images": images.contiguous().numpy()})
        return [torch.from_numpy(answer) for answer in answers]

    return compute


def _onnx(network: nn.Module, card: Card, trial: Tensor, path: Path) -> list[Tensor]:
    """Writes ONNX; returns what ONNX Runtime answers to ``trial``."""
    path.write_bytes(to_onnx(network, card))
    return onnx_session(path.read_bytes())(trial)


def _torchscript(network: nn.Module, card: Card, trial: Tensor, path: Path) -> list[Tensor]:
    """Writes TorchScript; returns what the file, read again, answers to ``trial``."""
    # Their own annotations lack types.
    trace: Any = torch.jit.trace
    load: Any = torch.jit.load
    with torch.no_grad():
        traced = trace(network, trial[:2])
        # PyTorch's own writing ends the program where the disk is full.
        file = io.BytesIO()
        torch.jit.save(traced, file, {"card": json.dumps(asdict(card), ensure_ascii=False)})
        path.write_bytes(file.getvalue())
        return _tensors(load(path)(trial))


#: Writers by format; each writes the file and returns what the network in it answers.
FORMATS: dict[str, Callable[[nn.Module, Card, Tensor, Path], list[Tensor]]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
}
