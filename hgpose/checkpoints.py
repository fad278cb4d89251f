"""The world's hourglass checkpoints: which layout a file has, and its tensors under our names.

Everything is told from the names and shapes of the tensors. Two families of networks:

* A, :class:`hgpose.models.hourglass.StackedHourglass`: bearpaw/pytorch-pose and
  anibali/pytorch-stacked-hourglass (one layout), ilovepose's FPD (the same layout, another
  preparation of images), princeton-vl/pytorch_stacked_hourglass.
* B, :class:`hgpose.models.hourglass52.Hourglass52`: ``hourglass52`` of MMPose 0.x and 1.x.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgpose.errors import OptionsError, OutputError, WeightsError
from hgpose.keypoints import COCO17, MPII16
from hgpose.models import build_model
from hgpose.models.hourglass52 import Hourglass52
from hgpose.weights import MAX_INPUT_PX, Card, save_weights

#: Pooling steps in an hourglass of family A; no public one has another depth.
_DEPTH = 4
_STRIDES_PX = {"stacked_hourglass": 4 * 2**_DEPTH, "hourglass52": Hourglass52.stride_px}
#: The sets that public networks predict, by the number of their outputs.
_SETS = {len(s): s.name for s in (MPII16, COCO17)}
#: MPII's annotated centres sit high: all who train on it look lower by 15 px of 200.
_MPII_SHIFT = 15 / 200
#: Most names of a list that an error message shows.
_SHOWN = 8


@dataclass(frozen=True)
class Layout:
    """A public layout of checkpoints, and the conventions of those who publish in it.

    Attributes:
        source: who publishes in it.
        licence: of their code; they say nothing else of their weights.
        card: fields of the model card: normalisation, crop and decoding.
    """

    source: str
    licence: str
    card: Mapping[str, Any]


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
#: How Microsoft's simple baselines decode, and after them FPD and MMPose.
_BASELINE = {"decoding": "peak", "refine_from": 2, "offset_cells": -0.375, "shift_heatmap": True}

#: By the name that :func:`convert` takes.
LAYOUTS = {
    "bearpaw": Layout(
        "bearpaw/pytorch-pose, anibali/pytorch-stacked-hourglass",
        "GPL-3.0",
        {"mean": (0.4404, 0.4440, 0.4327), "std": (1.0, 1.0, 1.0), "decoding": "peak"},
    ),
    "princeton": Layout(
        "princeton-vl/pytorch_stacked_hourglass",
        "BSD-3-Clause",
        {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "decoding": "princeton"},
    ),
    "fpd": Layout(
        "ilovepose/fast-human-pose-estimation.pytorch",
        "MIT",
        # Its configurations train on OpenCV's blue, green, red and take ImageNet's numbers in this order.
        {**_IMAGENET, "channels": "bgr", **_BASELINE, "empty_cell": 0},
    ),
    "mmpose": Layout("open-mmlab/mmpose", "Apache-2.0", {**_IMAGENET, **_BASELINE}),
}


def convert(
    file: Path,
    out: Path,
    input_px: int = 256,
    layout: str | None = None,
    details: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Card:
    """Writes a public checkpoint as a safetensors file with its card.

    The numbers stay in float32, so that the network computes what its authors' does.

    Args:
        file: a PyTorch file: a state dict, or a dictionary with one under ``state_dict``.
        out: the safetensors file; its stem becomes the card's name.
        input_px: side of the network's input, which the tensors do not tell.
        layout: a key of :data:`LAYOUTS`; ``None``: as the names of the tensors and the width say. Networks
            of FPD that are 256 wide look like bearpaw's and must be named.
        details: further fields of the card.
        overwrite: whether ``out`` and the card beside it may be replaced.

    Returns:
        The card, with its checksum.

    Raises:
        WeightsError: unreadable, holding more than tensors, of no known layout, or with tensors missing or
            too many; the message lists them.
        OptionsError: the layout is unknown or not that of the file, or the input's side does not fit.
        OutputError: ``out`` cannot be written.
    """
    if layout is not None and layout not in LAYOUTS:
        raise OptionsError(f"--layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    if not overwrite and (taken := next((p for p in (out, out.with_suffix(".json")) if p.exists()), None)):
        raise OutputError(f"{taken}: exists already; add --overwrite to replace it, or choose another name")
    state, architecture, found = rename(read_tensors(file), file)
    chosen = layout or found
    if chosen != found and {chosen, found} != {"bearpaw", "fpd"}:
        raise OptionsError(f"{file}: its layout is {found}, not {chosen}; leave out --layout")
    stride = _STRIDES_PX[architecture["kind"]]
    if not 0 < input_px <= MAX_INPUT_PX or input_px % stride:
        raise OptionsError(
            f"--size must be a multiple of {stride} up to {MAX_INPUT_PX} for {file}, not {input_px}"
        )
    outputs = architecture["outputs"]
    if outputs not in _SETS:
        known = ", ".join(f"{n} ({name})" for n, name in _SETS.items())
        raise WeightsError(f"{file}: has {outputs} outputs; known sets of keypoints have {known}")
    mpii = outputs == len(MPII16)
    source = LAYOUTS[chosen]
    fields: dict[str, Any] = {
        "keypoint_set": _SETS[outputs],
        "box_padding": 1.25,
        "center_shift": _MPII_SHIFT if mpii else 0.0,
        "data": ("MPII Human Pose, for research" if mpii else "COCO",),
        "licence": f"{source.licence} (of the code)",
        "training": {"source": source.source, "file": file.name},
        **source.card,
        **(details or {}),
    }
    card = Card(out.stem, "pose", architecture, input_px, **fields)
    return save_weights(state, card, out, torch.float32)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The named tensors of a PyTorch file on the CPU, without wrappers' prefixes.

    Only tensors and plain values are ever read (``weights_only=True``): nothing in the file is run.

    Raises:
        WeightsError: missing, damaged, holding other things, or without tensors.
    """
    try:
        _check_sums(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{file}: no such file") from None
    except pickle.UnpicklingError as error:
        if what := re.search(r"(?:GLOBAL|global|class) ([\w.]+)", str(error)):
            raise WeightsError(
                f"{file}: holds {what[1]}, which is no tensor and could run code when it is read, so it was "
                "not: ask its author for a file with the state dict alone"
            ) from error
        raise WeightsError(f"{file}: damaged, or no PyTorch file; get it again") from error
    except Exception as error:  # The library fails in many ways on a damaged file.
        raise WeightsError(f"{file}: damaged, or no PyTorch file; get it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise WeightsError(f"{file}: holds no state dict (names and tensors), nor one under 'state_dict'")
    tensors = dict(content)
    for prefix in ("model.", "module."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    # Batch normalisation's step counter means nothing at inference.
    tensors = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta:
            raise WeightsError(f"{file}: {key} is no plain tensor; ask its author for a plain state dict")
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise WeightsError(
                f"{file}: {key} is not all finite real numbers: damaged, or no trained weights"
            )
    # Tensors may share memory, which safetensors does not store.
    return {key: value.clone() for key, value in tensors.items()}


def _check_sums(file: Path) -> None:
    """Compares the parts of a zip archive with the sums in it, which PyTorch does not do.

    Raises:
        zipfile.BadZipFile: a part is damaged. Files of PyTorch before 1.6 are no archives and have no sums.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        # PyTorch can be told to leave the sums out; then all are 0.
        if any(part.CRC for part in archive.infolist()) and (bad := archive.testzip()):
            raise zipfile.BadZipFile(bad)


def rename(tensors: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Public tensors under our names.

    Args:
        tensors: from :func:`read_tensors`.
        file: for messages.

    Returns:
        The state of our network, its architecture for :func:`hgpose.models.build_model`, and the key of
        :data:`LAYOUTS`.

    Raises:
        WeightsError: unknown layout, or tensors that are missing, too many, or of another shape.
    """
    for mark, reader in _READERS.items():
        if mark in tensors:
            try:
                layout, architecture, theirs, unused = reader(tensors)
                break
            except KeyError as error:
                raise WeightsError(f"{file}: the tensor {error} is missing") from error
            except IndexError as error:
                raise WeightsError(
                    f"{file}: a kernel that tells the network's width is a single number: damaged"
                ) from error
    else:
        raise WeightsError(
            f"{file}: of no known layout (bearpaw, anibali, princeton-vl, FPD, MMPose hourglass52); its "
            f"tensors are called {_listed(tensors)}"
        )
    with torch.device("meta"):
        wanted = build_model(architecture).state_dict()
    names = {theirs(key): key for key in wanted if not key.endswith("num_batches_tracked")}
    missing = sorted(names.keys() - tensors.keys())
    unexpected = sorted(key for key in tensors.keys() - names.keys() if not unused.match(key))
    if missing or unexpected:
        raise WeightsError(
            f"{file}: looks like {layout} but does not fit: missing {_listed(missing)}; "
            f"unexpected {_listed(unexpected)}"
        )
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[key].shape)}"
        for name, key in names.items()
        if tensors[name].shape != wanted[key].shape
    ]
    if wrong:
        raise WeightsError(f"{file}: looks like {layout} but has other shapes: {_listed(wrong)}")
    return {key: tensors[name] for name, key in names.items()}, architecture, layout


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    more = len(names) - _SHOWN
    return (shown or "none") + (f" and {more} more" if more > 0 else "")


#: What a reader says: the layout, the architecture, their name of each of our tensors, and which of
#: theirs nothing uses.
_Reading = tuple[str, dict[str, Any], Callable[[str], str], re.Pattern[str]]
_NOTHING = re.compile(r"(?!)")


def _substitute(rules: Mapping[str, str], key: str) -> str:
    """The key after every rule that matches, one after the other."""
    for pattern, replacement in rules.items():
        key = re.sub(pattern, replacement, key)
    return key


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in the names that match."""
    return len({m[1] for key in tensors if (m := re.match(pattern, key))})


def _family_a(tensors: Mapping[str, Tensor], residuals: str, conv: str, score: str) -> dict[str, Any]:
    """The architecture from the shapes of the stem and of the first stack's scores."""
    first, second, third = (tensors[f"{name}.conv3{conv}.weight"].shape[0] for name in residuals.split())
    stem = [tensors[f"{residuals.split()[0]}.bn1.weight"].shape[0], first, second]
    return {
        "kind": "stacked_hourglass",
        "outputs": tensors[f"{score.format(0)}.weight"].shape[0],
        "stacks": _count(tensors, re.escape(score).replace(r"\{\}", r"(\d+)")),
        "width": third,
        "depth": _DEPTH,
        "stem": stem,
    }


_BEARPAW = {
    r"^stem\.conv\.": "conv1.",
    r"^stem\.bn\.": "bn1.",
    r"^stem\.residual(\d)": r"layer\1.0",
    r"^heads\.(\d+)\.residual": r"res.\1.0",
    r"^heads\.(\d+)\.conv": r"fc.\1.0",
    r"^heads\.(\d+)\.bn": r"fc.\1.1",
    r"^heads\.(\d+)\.score": r"score.\1",
    r"^merges\.(\d+)\.feature": r"fc_.\1",
    r"^merges\.(\d+)\.score": r"score_.\1",
    r"\.skip\.": ".downsample.0.",
}
#: An hourglass's places at each level, in bearpaw's order; the innermost has a fourth, its middle.
_PLACES = {"branch": 0, "down": 1, "up": 2}


def _bearpaw(tensors: Mapping[str, Tensor]) -> _Reading:
    architecture = _family_a(tensors, "layer1.0 layer2.0 layer3.0", "", "score.{}")

    def level(match: re.Match[str]) -> str:
        stack, inner, place = match[1], match[2].count("inner."), match[3]
        if place is None:
            return f"hg.{stack}.hg.0.3.0."
        return f"hg.{stack}.hg.{_DEPTH - 1 - inner}.{_PLACES[place]}.0."

    def theirs(key: str) -> str:
        key = re.sub(r"^hourglasses\.(\d+)\.((?:inner\.)*)(?:(branch|down|up)\.)?", level, key)
        return _substitute(_BEARPAW, key)

    # FPD scales the stem with the width; bearpaw and anibali know one width only.
    layout = "bearpaw" if architecture["width"] == 256 else "fpd"
    return layout, architecture, theirs, _NOTHING


_PRINCETON = {
    r"^stem\.(conv|bn)\.": r"pre.0.\1.",
    r"^stem\.residual1": "pre.1",
    # The max pool between them is the sequence's third.
    r"^stem\.residual2": "pre.3",
    r"^stem\.residual3": "pre.4",
    r"^hourglasses\.(\d+)": r"hgs.\1.0",
    r"\.inner(?=\.)": ".low2",
    r"\.branch\.": ".up1.",
    r"\.down\.": ".low1.",
    r"\.up\.": ".low3.",
    r"^heads\.(\d+)\.residual": r"features.\1.0",
    r"^heads\.(\d+)\.(conv|bn)\.": r"features.\1.1.\2.",
    r"^heads\.(\d+)\.score": r"outs.\1.conv",
    r"^merges\.(\d+)\.feature": r"merge_features.\1.conv.conv",
    r"^merges\.(\d+)\.score": r"merge_preds.\1.conv.conv",
    r"\.(conv[123])\.": r".\1.conv.",
    r"\.skip\.": ".skip_layer.conv.",
}


def _princeton(tensors: Mapping[str, Tensor]) -> _Reading:
    architecture = _family_a(tensors, "pre.1 pre.3 pre.4", ".conv", "outs.{}.conv")
    # Every residual stores a skip; where the widths agree it is never run.
    unused = re.compile(r".*\.skip_layer\.conv\.(weight|bias)$")
    return "princeton", architecture, lambda key: _substitute(_PRINCETON, key), unused


_MMPOSE = {
    r"^stem\.0": "backbone.stem.0",
    r"^stem\.1": "backbone.stem.1.0",
    r"^hourglass\.": "backbone.hourglass_modules.0.",
    r"\.inner(?=\.)": ".low2",
    r"\.branch\.": ".up1.",
    r"\.down\.": ".low1.",
    r"\.up\.": ".low3.",
    r"\.first\.(conv|bn)\.": r".\g<1>1.",
    r"\.second\.(conv|bn)\.": r".\g<1>2.",
    r"\.skip\.conv\.": ".downsample.0.",
    r"\.skip\.bn\.": ".downsample.1.",
    r"^between\.": "backbone.inters.0.",
    r"^feature\.": "backbone.out_convs.0.",
}


def _mmpose(tensors: Mapping[str, Tensor]) -> _Reading:
    # Version 0.x and 1.x.
    head = "keypoint_head" if any(key.startswith("keypoint_head.") for key in tensors) else "head"
    score = f"{head}.multi_final_layers.0"
    architecture = {"kind": "hourglass52", "outputs": tensors[f"{score}.weight"].shape[0]}
    rules = {**_MMPOSE, r"^score": score}
    return "mmpose", architecture, lambda key: _substitute(rules, key), _NOTHING


#: By a tensor that only this layout has.
_READERS: dict[str, Callable[[Mapping[str, Tensor]], _Reading]] = {
    "layer1.0.conv1.weight": _bearpaw,
    "pre.0.conv.weight": _princeton,
    "backbone.stem.0.conv.weight": _mmpose,
}
