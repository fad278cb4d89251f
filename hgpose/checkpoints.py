"""The world's hourglass checkpoints: which layout a file has, and its tensors under our names.

Everything is told from the names and shapes of the tensors. Two families of networks:

* A, :class:`hgpose.models.hourglass.StackedHourglass`: bearpaw/pytorch-pose and
  anibali/pytorch-stacked-hourglass (one layout), ilovepose's FPD (the same layout, another
  preparation of images), princeton-vl/pytorch_stacked_hourglass.
* B, :class:`hgpose.models.hourglass52.Hourglass52`: ``hourglass52`` of MMPose 0.x and 1.x.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
#: Characters of a tensor's name that a message shows at most.
_SHOWN = 120
#: And so many of them.
_NAMED = 8
#: What tensors of a trained network may be stored as.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _numpy_classes() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What numpy's numbers and arrays are read with, none of which runs code; not arrays of objects.

    Published checkpoints hold such beside the tensors, as scores and sigmas.
    """
    functions: dict[str, Any] = {
        "scalar": np.float64(0).__reduce__()[0],
        "_reconstruct": np.zeros(0).__reduce__()[0],
    }
    return [
        # numpy 1 and 2 say other modules.
        *(
            (f, f"numpy.{core}.multiarray.{name}")
            for name, f in functions.items()
            for core in ("core", "_core")
        ),
        (np.ndarray, "numpy.ndarray"),
        (np.dtype, "numpy.dtype"),
        *(
            (getattr(np.dtypes, name), f"numpy.dtypes.{name}")
            for name in np.dtypes.__all__
            if name not in ("ObjectDType", "StringDType")
        ),
    ]


_NUMPY = _numpy_classes()


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
        layout: a key of :data:`LAYOUTS`; ``None``: as the names and shapes of the tensors say. Networks
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
    named, architecture, found = rename(read_tensors(file), file)
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
        "training": {"source": source.source, "layout": chosen, "file": file.name},
        **source.card,
        **(details or {}),
    }
    card = Card(out.stem, "pose", architecture, input_px, **fields)
    # Tensors may share memory, which safetensors does not store.
    state = {key: value.detach().float().clone() for key, value in named.items()}
    return save_weights(state, card, out, torch.float32)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The named tensors of a PyTorch file on the CPU, without wrappers' prefixes; their numbers unchecked.

    Only tensors, plain values and numpy's numbers are ever read (``weights_only=True``): nothing in the
    file is run.

    Raises:
        WeightsError: missing, damaged, holding other things, or without tensors.
    """
    try:
        _check_sums(file)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY):
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{file}: no such file") from None
    except Exception as error:  # The library fails in many ways on a damaged file.
        named = re.search(r"(?:GLOBAL|global|class) '?([\w.]+)", str(error))
        if what := named[1] if named and isinstance(error, pickle.UnpicklingError) else _imported(file):
            raise WeightsError(
                f"{file}: holds {_short(what)}, which is no tensor and could run code when it is read, so it "
                "was not: ask its author for a file with the state dict alone; or, only if you trust it with "
                f"your computer, take that out yourself: {_extraction(file)}"
            ) from error
        raise WeightsError(f"{file}: damaged, or no PyTorch file; get it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise WeightsError(f"{file}: holds no state dict (names and tensors), nor one under 'state_dict'")
    # Batch normalisation's step counter means nothing at inference.
    stored = {key: value for key, value in content.items() if not key.endswith("num_batches_tracked")}
    tensors = {re.sub(r"^((module|model)\.)+", "", key): value for key, value in stored.items()}
    if len(tensors) < len(stored):
        raise WeightsError(f"{file}: holds tensors twice, with and without the prefix 'module.' or 'model.'")
    room = file.stat().st_size
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta:
            raise WeightsError(
                f"{file}: {_short(key)} is no plain tensor; ask its author for a plain state dict"
            )
        # A tensor can be stored as one number that is repeated, without end.
        size = math.prod(value.shape) * value.element_size()
        room -= size
        if size == 0 or size > value.untyped_storage().nbytes() or room < 0:
            raise WeightsError(
                f"{file}: {_short(key)} has the shape {tuple(value.shape)}, but the file does not hold as "
                "many numbers: damaged, or no trained weights"
            )
    return tensors


def _imported(file: Path) -> str | None:
    """What a bare pickle would import when it is read, beside tensors, if the file is one that does."""
    words: list[str] = []
    found = None
    try:
        with file.open("rb") as stream:
            # Other files fail before a pickle's end.
            for operation, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    words.append(argument)
                if operation.name in ("GLOBAL", "STACK_GLOBAL") and found is None:
                    name = ".".join(words[-1].split(" ") if operation.name == "GLOBAL" else words[-2:])
                    found = None if name.startswith(("torch.", "collections.")) else name
    except (OSError, ValueError):
        return None
    return found


def _extraction(file: Path) -> str:
    """The shell's line that reads all of a file, runs what it asks to, and keeps the tensors."""
    code = (
        'import sys, torch; c = torch.load(sys.argv[1], "cpu", weights_only=False); '
        'torch.save(dict(c.get("state_dict", c)), sys.argv[2])'
    )
    return shlex.join(["python", "-c", code, str(file), f"{file.stem}-tensors.pth"])


def _check_sums(file: Path) -> None:
    """Compares the parts of a zip archive with the sums in it, which PyTorch does not do.

    Raises:
        zipfile.BadZipFile: a part is damaged, or they are larger than the file: PyTorch does not compress.
            Files of PyTorch before 1.6 are no archives and have no sums.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > file.stat().st_size:
            raise zipfile.BadZipFile("larger than its file")
        # PyTorch can be told to leave the sums out; then all are 0.
        if any(part.CRC for part in parts) and (bad := archive.testzip()):
            raise zipfile.BadZipFile(bad)


def rename(tensors: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Public tensors under our names.

    The layout is that of which most names are there.

    Args:
        tensors: from :func:`read_tensors`.
        file: for messages.

    Returns:
        The state of our network, its architecture for :func:`hgpose.models.build_model`, and the key of
        :data:`LAYOUTS`.

    Raises:
        WeightsError: unknown layout, tensors that are missing, too many or of another shape (the message
            lists all), or numbers that no trained network has.
    """
    most = 0
    for reader in _READERS:
        reading = reader(tensors)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            shapes = {key: value.shape for key, value in build_model(reading[1]).state_dict().items()}
        theirs = {reading[2](key): key for key in shapes if not key.endswith("num_batches_tracked")}
        if (here := len(theirs.keys() & tensors.keys())) > most:
            most, (layout, architecture, _, unused), names, wanted = here, reading, theirs, shapes
    if not most:
        raise WeightsError(
            f"{file}: of no known layout (bearpaw, anibali, princeton-vl, FPD, MMPose hourglass52); its "
            f"tensors are called {_listed(tensors)}"
        )
    faults = {
        "missing": [name for name in names if name not in tensors],
        "unexpected": [key for key in tensors if key not in names and not unused.match(key)],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[key])}"
            for name, key in names.items()
            if name in tensors and tensors[name].shape != wanted[key]
        ],
    }
    if any(faults.values()):
        said = "; ".join(f"{what} {_listed(found)}" for what, found in faults.items())
        raise WeightsError(f"{file}: looks like {layout} but does not fit: {said}")
    state = {key: tensors[name] for name, key in names.items()}
    for name, key in names.items():
        value = state[key]
        if value.dtype not in _DTYPES or not value.float().isfinite().all():
            raise WeightsError(
                f"{file}: {name} is not all finite real numbers ({value.dtype}): damaged, or no trained "
                "weights"
            )
        if key.endswith("running_var") and value.min() < 0:
            raise WeightsError(f"{file}: {name} is a variance below 0: damaged, or no trained weights")
    return state, architecture, layout


def _listed(names: Iterable[str]) -> str:
    every = [_short(name) for name in names]
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return (", ".join(every[:_NAMED]) or "none") + more


def _short(name: str) -> str:
    """A name as messages show it: a hostile file's may have any length."""
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}... ({len(name)} characters)"


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


def _channels(tensors: Mapping[str, Tensor], layer: str, published: int) -> int:
    """Of a layer's result; ``published`` where the layer is missing, which is complained of elsewhere."""
    found = (tensors.get(f"{layer}.{part}") for part in ("weight", "bias"))
    return next((value.shape[0] for value in found if value is not None and value.ndim), published)


def _family_a(
    tensors: Mapping[str, Tensor], residuals: str, conv: str, hourglass: str, score: str
) -> dict[str, Any]:
    """The architecture from the shapes of the stem and of the first stack's scores."""
    first, second, third = residuals.split()
    return {
        "kind": "stacked_hourglass",
        "outputs": _channels(tensors, score, 16),
        "stacks": max(_count(tensors, hourglass), 1),
        "width": _channels(tensors, f"{third}.conv3{conv}", 256),
        "depth": _DEPTH,
        "stem": [
            _channels(tensors, f"{first}.bn1", 64),
            _channels(tensors, f"{first}.conv3{conv}", 128),
            _channels(tensors, f"{second}.conv3{conv}", 128),
        ],
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
    architecture = _family_a(tensors, "layer1.0 layer2.0 layer3.0", "", r"hg\.(\d+)\.", "score.0")

    def level(match: re.Match[str]) -> str:
        stack, inner, place = match[1], match[2].count("inner."), match[3]
        if place is None:
            return f"hg.{stack}.hg.0.3.0."
        return f"hg.{stack}.hg.{_DEPTH - 1 - inner}.{_PLACES[place]}.0."

    def theirs(key: str) -> str:
        key = re.sub(r"^hourglasses\.(\d+)\.((?:inner\.)*)(?:(branch|down|up)\.)?", level, key)
        return _substitute(_BEARPAW, key)

    # FPD scales the stem with the width; at bearpaw's own width the two are the same.
    width, stem = architecture["width"], architecture["stem"]
    layout = "fpd" if width != 256 and stem[0] * 4 == width else "bearpaw"
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
    architecture = _family_a(tensors, "pre.1 pre.3 pre.4", ".conv", r"hgs\.(\d+)\.", "outs.0.conv")
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
    architecture = {"kind": "hourglass52", "outputs": _channels(tensors, score, 17)}
    rules = {**_MMPOSE, r"^score": score}
    return "mmpose", architecture, lambda key: _substitute(rules, key), _NOTHING


_READERS: tuple[Callable[[Mapping[str, Tensor]], _Reading], ...] = (_bearpaw, _princeton, _mmpose)
