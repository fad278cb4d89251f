"""Random variation of training images: where the crop lies, and how its pixels look."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.geometry import CropTransform

Rng = np.random.Generator


@dataclass(frozen=True)
class Augmentation:
    """How much training crops vary.

    Attributes:
        scale: standard deviation of the natural logarithm of the crop's size.
        rotation_deg: standard deviation of the usual rotation.
        any_rotation: share of crops turned by any angle (gymnasts are upside down).
        shift: standard deviation of the crop's centre, as a share of its side.
        part: share of crops that show only a part of the body, so that joints leave the crop.
        mirror, color, gray, blur, cut_out: shares of crops mirrored, recoloured, and so on.
        background: share of crops whose outside is filled from another image instead of a colour.
        mosaic: share of views of whole images that show parts of four.
    """

    scale: float = 0.2
    rotation_deg: float = 25.0
    any_rotation: float = 0.12
    shift: float = 0.05
    part: float = 0.15
    mirror: float = 0.5
    color: float = 0.8
    gray: float = 0.05
    blur: float = 0.1
    cut_out: float = 0.3
    background: float = 0.3
    mosaic: float = 0.0


def random_crop(
    transform: CropTransform, points_xy: NDArray[np.floating], aug: Augmentation, rng: Rng
) -> CropTransform:
    """A random variation of a person's crop.

    Args:
        transform: the crop at test time.
        points_xy: ``(n, 2)`` labelled joints, image px, for crops of a part of the body.
        aug: how much to vary.
        rng: source of randomness.
    """
    center, side = np.array(transform.center_xy), transform.width_px
    if len(points_xy) >= 6 and rng.random() < aug.part:
        # A joint and those nearest to it: a bust, a pair of legs, an arm with the shoulder.
        seed = points_xy[rng.integers(len(points_xy))]
        near = np.argsort(((points_xy - seed) ** 2).sum(1))[: rng.integers(3, len(points_xy))]
        low, high = points_xy[near].min(0), points_xy[near].max(0)
        center = (low + high) / 2
        side = max(float((high - low).max()) * rng.uniform(1.2, 1.7), 0.3 * side)
    side *= float(np.exp(np.clip(rng.normal(0, aug.scale), -2.2 * aug.scale, 2.2 * aug.scale)))
    center = center + rng.normal(0, aug.shift, 2).clip(-0.15, 0.15) * side
    if rng.random() < aug.any_rotation:
        rotation = rng.uniform(-180, 180)
    else:
        rotation = float(np.clip(rng.normal(0, aug.rotation_deg), -60, 60)) if rng.random() < 0.6 else 0.0
    mirror = bool(rng.random() < aug.mirror)
    return CropTransform(
        (float(center[0]), float(center[1])), side, transform.size_wh, float(rotation), mirror
    )


def random_fill(size_px: int, rng: Rng) -> NDArray[np.uint8]:
    """A canvas of one colour: mostly black, as at test time, else random."""
    color = rng.integers(0, 256, 3) if rng.random() < 0.4 else np.zeros(3)
    return np.full((size_px, size_px, 3), color, dtype=np.uint8)


def random_look(crop: NDArray[np.uint8], aug: Augmentation, rng: Rng) -> NDArray[np.uint8]:
    """A crop ``(S, S, 3)`` uint8 RGB in other light, blurred, or with patches cut out."""
    if rng.random() < aug.color:
        gain = rng.normal(1, 0.2) * rng.normal(1, 0.07, 3)
        gamma = float(np.exp(rng.normal(0, 0.2)))
        ramp = np.linspace(0, 1, 256)[:, None] ** gamma
        table = (ramp - 0.5) * gain.clip(0.4, 1.8) + 0.5 + rng.normal(0, 0.08)
        crop = np.asarray(cv2.LUT(crop, (table * 255).clip(0, 255).astype(np.uint8)[None]), dtype=np.uint8)
    if rng.random() < aug.gray:
        gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        crop = np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if rng.random() < aug.blur:
        if rng.random() < 0.5:
            crop = np.asarray(cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.4, 1.6)), dtype=np.uint8)
        else:
            size = crop.shape[0]
            small = max(int(size * rng.uniform(0.3, 0.7)), 8)
            less = cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA)
            crop = np.asarray(cv2.resize(less, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    if rng.random() < aug.cut_out:
        crop = crop.copy()
        size = crop.shape[0]
        for _ in range(rng.integers(1, 4)):
            w, h = (rng.uniform(0.06, 0.3, 2) * size).astype(int)
            x, y = rng.integers(0, size - w), rng.integers(0, size - h)
            crop[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return crop
