"""Human pose from webcam, videos and image folders with a stacked hourglass network.

Two lines in a notebook::

    estimator = hgpose.load_estimator()
    poses = estimator(image)  # (H, W, 3) uint8 RGB; poses.keypoints is (N, 19, 2), image px
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# PyTorch's threads wait for each other thousands of times an image. To be put to sleep and woken each time
# takes as long as the work; to spin for long takes the cores from decoder, encoder and other programs. So
# they spin for a tenth of a millisecond or so, then sleep: Linux (libgomp) counts turns, others (libomp)
# milliseconds. Has to be said before PyTorch is loaded, and leaves alone what the user set.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")
# The order in which small products are summed up must not depend on the number of threads.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

#: Public names and where they live; imported on first use, so that ``import hgpose`` is quick.
_HOMES = {
    "load_estimator": "hgpose.estimate",
    "Estimator": "hgpose.estimate",
    "EstimatorOptions": "hgpose.options",
    "VideoOptions": "hgpose.options",
    "BatchOptions": "hgpose.options",
    "CameraOptions": "hgpose.options",
    "Style": "hgpose.options",
    "Poses": "hgpose.types",
    "process_video": "hgpose.process",
    "process_videos": "hgpose.process",
    "process_images": "hgpose.process",
    "process_batch": "hgpose.batch",
    "watch_camera": "hgpose.live",
    "draw_poses": "hgpose.draw",
    "keypoint_set": "hgpose.keypoints",
    "HgposeError": "hgpose.errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hgpose' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
