"""What this installation consists of, and whether it works."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hgpose.errors import HgposeError

_PACKAGES = (
    "hgpose",
    "torch",
    "opencv-python",
    "numpy",
    "av",
    "pillow",
    "scipy",
    "safetensors",
    "faster-coco-eval",
    "fsspec",
    "filelock",
    "typer",
    "rich",
)
#: Packages that extras bring, and their extra.
_EXTRAS = {
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "pyarrow": "parquet",
    "s3fs": "s3",
    "ray": "ray",
    "matplotlib": "train",
    "motmetrics": "train",
    "anny": "demo",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and whether that is good."""

    what: str
    found: str
    good: bool = True


def has_display() -> bool:
    """Whether a window can be shown."""
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True


def examine(device: str = "auto") -> Iterator[Finding]:
    """Looks at versions, device, ffmpeg, display and weights, then runs the networks for half a second."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "not installed as a package", package == "hgpose")
    for package, extra in _EXTRAS.items():
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, f"not installed; if wanted: pip install 'hgpose[{extra}]'")
    yield from _ffmpeg()
    yield Finding("display", "yes" if has_display() else "none: webcam needs --serve or --record to be seen")
    yield from _networks(device)


def _ffmpeg() -> Iterator[Finding]:
    import av

    versions = ", ".join(f"{name} {'.'.join(map(str, v))}" for name, v in av.library_versions.items())
    yield Finding("ffmpeg libraries", versions)
    yield Finding(
        "H.264 encoder",
        "libx264" if "libx264" in av.codecs_available else "missing",
        "libx264" in av.codecs_available,
    )


def _networks(device: str) -> Iterator[Finding]:
    import torch

    from hgpose.device import choose_device
    from hgpose.estimate import load_estimator
    from hgpose.options import EstimatorOptions
    from hgpose.weights import available, find_weights, load_weights, read_card

    for name in available():
        try:
            path = find_weights(name)
            card = read_card(path)
            load_weights(name, card.task)
            yield Finding(f"weights {name}", f"{path}, SHA-256 {card.sha256[:16]}... verified")
        except HgposeError as error:
            yield Finding(f"weights {name}", str(error), good=False)
    try:
        chosen = choose_device(device)
        label = (
            torch.cuda.get_device_name(chosen)
            if chosen.type == "cuda"
            else platform.processor() or "processor"
        )
        yield Finding("device", f"{chosen} ({label}, {torch.get_num_threads()} threads)")
        estimator = load_estimator(EstimatorOptions(device=device))
        image = np.full((480, 640, 3), 128, np.uint8)
        estimator(image)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < 0.5:
            people = estimator(image)
            count += 1
        rate = count / (time.perf_counter() - started)
        yield Finding(
            "self-test",
            f"{rate:.0f} frames/s on an empty 640x480 picture, {len(people)} people seen",
            not len(people),
        )
    except HgposeError as error:
        yield Finding("self-test", str(error), good=False)
