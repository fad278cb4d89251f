"""Skeletons, boxes and probability maps on pictures.

Left is warm, right is cool, the middle is neutral (the person's own sides; the pairs stay apart for
the colour-blind: Okabe & Ito, "Color Universal Design", 2008). Symbols: N people, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.geometry import CropTransform, heatmap_to_crop
from hgpose.keypoints import KeypointSet
from hgpose.options import DEFAULT_STYLE, Style
from hgpose.types import Poses

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Limbs by side; joints are lighter. The lower body is a shade deeper, to tell crossing limbs apart.
_UPPER: dict[str, Colour] = {"left": (255, 170, 40), "right": (70, 190, 255), "middle": (235, 235, 235)}
_LOWER: dict[str, Colour] = {"left": (240, 100, 20), "right": (30, 115, 235), "middle": (235, 235, 235)}
_OUTLINE: Colour = (25, 25, 30)
_UNKNOWN_ID: Colour = (200, 200, 200)
_ID_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 190, 140),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (150, 130, 255),
    (170, 220, 90),
)

_LOWER_PARTS = ("hip", "knee", "ankle")
_FACE_PARTS = ("nose", "eye", "ear")

#: Points are drawn in 1/16 px.
_SHIFT = 4
#: Points further out than this many px are not drawn; OpenCV counts in 32 bits.
_FAR_PX = 1e6
#: The highest cell of a sure joint: the peak of a Gaussian of sigma 1 and unit sum.
_SURE_PEAK = 0.16


def draw_poses(image: Image, poses: Poses, style: Style = DEFAULT_STYLE) -> Image:
    """A copy of ``image`` with every person of ``poses``, over their heatmaps where there are any.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        poses: in image px. Points that are not finite are left out.
        style: how.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    canvas = np.zeros(image.shape, np.uint8) if style.black else image.copy()
    if poses.heatmaps is not None:
        canvas = draw_heatmaps(canvas, poses.heatmaps.maps, poses.heatmaps.transforms)
    for person in range(len(poses)):
        _draw_person(canvas, poses, person, style)
    return canvas


def draw_heatmaps(image: Image, heatmaps: NDArray[np.float32], transforms: Sequence[CropTransform]) -> Image:
    """A copy of ``image`` under the probability maps of its people.

    Of each person the highest map at every place is shown: dark violet for a guess, yellow for sure.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        heatmaps: ``(N, K, h, w)`` float32 probabilities.
        transforms: N, of the crops the maps belong to.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    canvas = image.copy()
    for maps, transform in zip(heatmaps, transforms, strict=True):
        _blend_map(canvas, maps.max(axis=0), transform)
    return canvas


def _draw_person(canvas: Image, poses: Poses, person: int, style: Style) -> None:
    points, scores = poses.keypoints[person], poses.scores[person]
    keypoint_set = poses.keypoint_set
    shown = (scores >= style.threshold) & (np.abs(points) < _FAR_PX).all(axis=1)
    width = style.line_width or _line_width(canvas, points[shown])
    identity = int(poses.ids[person])
    colour = _ID_COLOURS[identity % len(_ID_COLOURS)] if identity >= 0 else _UNKNOWN_ID
    box = poses.boxes[person]
    has_box = bool((np.abs(box) < _FAR_PX).all())
    if style.boxes and has_box:
        thin = max(1, round(width / 3))
        x1, y1, x2, y2 = (int(v) for v in np.rint(box))
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thin)
    for a, b in keypoint_set.edges:
        if shown[a] and shown[b]:
            _draw_limb(canvas, points[[a, b]], float(min(scores[a], scores[b])), width, keypoint_set, (a, b))
    for k in np.flatnonzero(shown):
        _draw_joint(canvas, points[k], width, keypoint_set.names[k])
    if style.labels and has_box:
        number = f"#{identity} " if identity >= 0 else ""
        _draw_label(canvas, box[:2], f"{number}{poses.person_scores[person]:.2f}", colour)


def _line_width(canvas: Image, points: NDArray[np.float32]) -> int:
    """Limb width, px: a share of the person's size, neither a hair nor a beam."""
    if not len(points):
        return 1
    person_px = float(np.ptp(points, axis=0).max())
    return int(np.clip(round(person_px * 0.012), 1, max(2, max(canvas.shape) // 160)))


def _draw_limb(
    canvas: Image,
    ends: NDArray[np.float32],
    score: float,
    width: int,
    keypoint_set: KeypointSet,
    edge: tuple[int, int],
) -> None:
    names = [keypoint_set.names[k] for k in edge]
    if all(_is_one_of(name, _FACE_PARTS) for name in names):
        width = max(1, round(width * 0.5))
    border = width + 2 * max(1, round(width * 0.2))
    low = np.floor(ends.min(axis=0)).astype(int) - border
    high = np.ceil(ends.max(axis=0)).astype(int) + border + 1
    x1, y1 = np.maximum(low, 0)
    x2, y2 = np.minimum(high, (canvas.shape[1], canvas.shape[0]))
    if x1 >= x2 or y1 >= y2:
        return
    opacity = float(np.clip(score / 0.7, 0.4, 1.0))
    under = canvas[y1:y2, x1:x2]
    over = under.copy() if opacity < 1 else under
    start, end = (_fixed(point - (x1, y1)) for point in ends)
    cv2.line(over, start, end, _OUTLINE, border, cv2.LINE_AA, _SHIFT)
    cv2.line(over, start, end, _limb_colour(names), width, cv2.LINE_AA, _SHIFT)
    if opacity < 1:
        cv2.addWeighted(over, opacity, under, 1 - opacity, 0, dst=under)


def _draw_joint(canvas: Image, point: NDArray[np.float32], width: int, name: str) -> None:
    radius = max(1.0, width * (0.5 if _is_one_of(name, _FACE_PARTS) else 0.85))
    outline = radius + max(1.0, width * 0.2)
    colour = _limb_colour([name])
    light = tuple((c + 255) // 2 for c in colour)
    for size, fill in ((outline, _OUTLINE), (radius, light)):
        cv2.circle(canvas, _fixed(point), round(size * (1 << _SHIFT)), fill, -1, cv2.LINE_AA, _SHIFT)


def _draw_label(canvas: Image, corner_xy: NDArray[np.float32], text: str, colour: Colour) -> None:
    scale = max(0.45, max(canvas.shape) / 2400)
    stroke = max(1, round(scale * 1.5))
    (text_width, ascent), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    pad = descent // 2 + 1
    x, y = (int(v) for v in np.rint(corner_xy))
    # Above the box; inside the picture even where the box is not.
    x = max(0, min(x, canvas.shape[1] - text_width - 2 * pad))
    y = max(ascent + descent + pad, min(y, canvas.shape[0]))
    cv2.rectangle(canvas, (x, y - ascent - descent - pad), (x + text_width + 2 * pad, y), colour, -1)
    cv2.putText(
        canvas, text, (x + pad, y - descent), cv2.FONT_HERSHEY_SIMPLEX, scale, _OUTLINE, stroke, cv2.LINE_AA
    )


def _blend_map(canvas: Image, probability: NDArray[np.float32], transform: CropTransform) -> None:
    """Lays one map ``(h, w)`` over the part of the canvas that its crop covers."""
    h, w = probability.shape
    corners = np.array([[-0.5, -0.5], [w - 0.5, -0.5], [-0.5, h - 0.5], [w - 0.5, h - 0.5]])
    on_image = transform.to_image(heatmap_to_crop(corners))
    x1, y1 = np.maximum(np.floor(on_image.min(axis=0)).astype(int), 0)
    x2, y2 = np.minimum(np.ceil(on_image.max(axis=0)).astype(int) + 1, (canvas.shape[1], canvas.shape[0]))
    if x1 >= x2 or y1 >= y2:
        return
    under = canvas[y1:y2, x1:x2]
    # The square root shows also what is a guess only.
    strength = np.sqrt(np.clip(probability / _SURE_PEAK, 0, 1)).astype(np.float32)
    placement = cv2.getAffineTransform(
        corners[:3].astype(np.float32), (on_image[:3] - (x1, y1)).astype(np.float32)
    )
    strength = cv2.warpAffine(strength, placement, (int(x2 - x1), int(y2 - y1)), flags=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_PLASMA)
    opacity = strength * 0.8
    under[:] = cv2.blendLinear(cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), under, opacity, 1 - opacity)


def _limb_colour(names: Sequence[str]) -> Colour:
    sides = {name.partition("_")[0] for name in names} & {"left", "right"}
    side = sides.pop() if len(sides) == 1 else "middle"
    colours = _LOWER if all(_is_one_of(name, _LOWER_PARTS) for name in names) else _UPPER
    return colours[side]


def _is_one_of(name: str, parts: tuple[str, ...]) -> bool:
    return name.rpartition("_")[2] in parts


def _fixed(point_xy: NDArray[np.floating]) -> tuple[int, int]:
    """A point in OpenCV's fixed-point numbers."""
    x, y = np.rint(point_xy * (1 << _SHIFT)).astype(int)
    return int(x), int(y)
