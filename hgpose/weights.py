"""The one door to weights: a safetensors file and, beside it, a model card that a program can read.

``NAME.safetensors`` holds the tensors, ``NAME.json`` the :class:`Card`. Inference takes everything
it knows of a model from the card.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from hgpose.atomic import atomic_path, output_errors
from hgpose.errors import WeightsError
from hgpose.keypoints import KEYPOINT_SETS
from hgpose.models import build_model
from hgpose.models.finder import PersonFinder

#: The weights used when nobody names others.
DEFAULT_POSE = "pose-body19"
DEFAULT_FINDER = "person"
#: No network is fed with larger squares; memory grows with their area.
MAX_INPUT_PX = 4096


@dataclass(frozen=True)
class Card:
    """What there is to know of a trained model.

    Attributes:
        name: as in the file name.
        task: ``"pose"`` or ``"person"``.
        architecture: ``{"kind": ..., **parameters}`` for :func:`hgpose.models.build_model`.
        input_px: side of the network's square input.
        mean, std: of the channels in [0, 1], in the network's order, taken off and divided by.
        channels: the order of the colours at the network's input, ``"rgb"`` or ``"bgr"``.
        sha256: of the safetensors file, hex.
        keypoint_set: name of the set (pose only).
        box_padding: the crop's side over the box's longer side (pose only).
        center_shift: how far the crop's centre lies below the box's, as a share of the box's longer side
            (pose only).
        decoding: how maps are read (pose only): ``"softmax"`` (:func:`hgpose.heatmaps.probabilities` and
            :func:`hgpose.heatmaps.decode`), ``"peak"`` (:func:`hgpose.heatmaps.decode_peak`) or
            ``"princeton"`` (:func:`hgpose.heatmaps.decode_princeton`).
        refine_from, offset_cells, empty_cell: of ``"peak"``, as there.
        shift_heatmap: whether the flip test moves mirrored maps by a cell (:func:`hgpose.heatmaps.flip`).
        threshold: detections below it are no person (person only).
        data: the training sets, one line each with their terms.
        licence: of the weights.
        training: command, seed, hours and the like.
        scores: measured numbers, each with the command that reproduces it.
    """

    name: str
    task: str
    architecture: dict[str, Any]
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: str = "rgb"
    sha256: str = ""
    keypoint_set: str = ""
    box_padding: float = 1.0
    center_shift: float = 0.0
    decoding: str = "softmax"
    refine_from: int = 1
    offset_cells: float = 0.0
    empty_cell: int = -1
    shift_heatmap: bool = False
    threshold: float = 0.0
    data: tuple[str, ...] = ()
    licence: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


def weights_folder() -> Path:
    """Where the shipped weights are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "_weights"
    return installed if installed.is_dir() else package.parent / "weights"


def cache_folder() -> Path:
    """Where fetched weights are kept: ``HGPOSE_CACHE``, or ``hgpose`` in the user's cache folder.

    Raises:
        WeightsError: there is neither.
    """
    if chosen := os.environ.get("HGPOSE_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hgpose"
    except RuntimeError:
        # As of a user whom only a container knows.
        raise WeightsError("there is no home folder to keep files in: set HGPOSE_CACHE to a folder") from None


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def available() -> list[str]:
    """Names of the shipped weights."""
    return _names(weights_folder())


def find_weights(name_or_path: str | Path) -> Path:
    """The safetensors file of shipped or fetched weights, or of a path.

    Raises:
        WeightsError: there is none; the message lists the names there are.
    """
    path = Path(name_or_path)
    # The system answers names that are too long with an error.
    with suppress(OSError):
        if path.suffix == ".safetensors" and path.is_file():
            return path
        if path.name == str(name_or_path):
            for folder in (weights_folder, cache_folder):
                found = folder() / f"{name_or_path}.safetensors"
                if found.is_file():
                    return found
    shipped, fetched = (", ".join(_names(folder)) or "none" for folder in (weights_folder(), cache_folder()))
    raise WeightsError(
        f"{name_or_path}: no such weights; shipped are: {shipped}; fetched are: {fetched}; 'hgpose weights "
        "list' shows what can be fetched; or name a .safetensors file with its card beside it"
    )


def read_card(path: Path) -> Card:
    """The card beside a safetensors file.

    Raises:
        WeightsError: there is none, or it is not a card.
    """
    file = path.with_suffix(".json")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        for key in ("mean", "std", "data"):
            document[key] = tuple(document[key])
        card = Card(**document)
    except FileNotFoundError:
        raise WeightsError(f"{file}: the model card that belongs to {path.name} is missing") from None
    except KeyError as error:
        raise WeightsError(f"{file}: not a model card (it lacks {error})") from None
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{file}: not a model card ({error})") from error
    if wrong := _wrong_fields(card):
        raise WeightsError(f"{file}: not a model card (it says {', '.join(wrong)})")
    return card


def _wrong_fields(card: Card) -> list[str]:
    """What a card says that cannot be, as ``field = value``."""

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and abs(value) < math.inf

    sound = {
        "name": isinstance(card.name, str) and card.name.isprintable(),
        "task": card.task in ("pose", "person"),
        "architecture": isinstance(card.architecture, dict),
        "input_px": type(card.input_px) is int and 0 < card.input_px <= MAX_INPUT_PX,
        "mean": len(card.mean) == 3 and all(is_number(v) for v in card.mean),
        "std": len(card.std) == 3 and all(is_number(v) and v > 0 for v in card.std),
        "channels": card.channels in ("rgb", "bgr"),
        "sha256": isinstance(card.sha256, str),
        "keypoint_set": card.keypoint_set in KEYPOINT_SETS or card.task == "person",
        "box_padding": is_number(card.box_padding) and card.box_padding > 0,
        "center_shift": is_number(card.center_shift),
        "decoding": card.decoding in ("softmax", "peak", "princeton"),
        "refine_from": type(card.refine_from) is int,
        "offset_cells": is_number(card.offset_cells),
        "empty_cell": type(card.empty_cell) is int,
        "threshold": is_number(card.threshold),
        "licence": isinstance(card.licence, str),
    }
    return [f"{name} = {getattr(card, name)!r}" for name, good in sound.items() if not good]


def load_weights(name_or_path: str | Path, task: str | None = None) -> tuple[nn.Module, Card]:
    """A trained network in float32 on the CPU, in evaluation mode, and its card.

    Args:
        name_or_path: a shipped name or a .safetensors file.
        task: what it must be for, ``"pose"`` or ``"person"``; ``None``: either.

    Raises:
        WeightsError: missing, damaged (SHA-256), for another task, or not fitting its architecture.
    """
    path = find_weights(name_or_path)
    card = read_card(path)
    if task is not None and card.task != task:
        raise WeightsError(f"{path}: these weights are for {card.task!r}, wanted some for {task!r}")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if card.sha256.lower() != digest:
        again = "install hgpose" if path.parent == weights_folder() else "get both"
        raise WeightsError(
            f"{path}: SHA-256 is {digest}, its card says {card.sha256}: one of the two is damaged, or "
            f"another's; {again} again"
        )
    try:
        state = load(data)
        model = build_model(card.architecture)
        model.load_state_dict({key: value.float() for key, value in state.items()})
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: does not fit the architecture its card names ({error})") from error
    _check_fit(model, card, path)
    return model.eval(), card


def _check_fit(model: nn.Module, card: Card, path: Path) -> None:
    """Whether a network is what the rest of its card speaks of."""
    fault, stride = None, model.stride_px
    assert isinstance(stride, int)
    if isinstance(model, PersonFinder) != (card.task == "person"):
        fault = f"task is {card.task!r}, but its network is a {card.architecture['kind']}"
    elif card.task == "pose" and card.architecture["outputs"] != len(KEYPOINT_SETS[card.keypoint_set]):
        outputs = card.architecture["outputs"]
        fault = f"keypoint_set is {card.keypoint_set!r}, but its network has {outputs} outputs"
    elif card.input_px % stride:
        fault = f"input_px is {card.input_px}, but its network takes multiples of {stride}"
    if fault:
        raise WeightsError(f"{path.with_suffix('.json')}: {fault}; correct the card")


def save_weights(
    state: Mapping[str, torch.Tensor], card: Card, path: Path, dtype: torch.dtype = torch.float16
) -> Card:
    """Writes weights, kernels as ``dtype``, and their card, whole or not at all.

    Returns:
        The card with its checksum.
    """
    small = {
        # Kernels are most of the file. Running variances can exceed what float16 holds.
        key: (value.to(dtype) if value.ndim == 4 else value).contiguous().cpu()
        for key, value in state.items()
        # Batch normalisation's step counter means nothing at inference.
        if not key.endswith("num_batches_tracked")
    }
    data = save(small)
    card = Card(**{**asdict(card), "sha256": hashlib.sha256(data).hexdigest()})
    with atomic_path(path, overwrite=True) as partial, output_errors(path):
        partial.write_bytes(data)
    write_card(card, path)
    return card


def write_card(card: Card, path: Path) -> None:
    """Writes ``card`` beside the safetensors file ``path``."""
    file = path.with_suffix(".json")
    with atomic_path(file, overwrite=True) as partial, output_errors(file):
        partial.write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
