"""The one place where coordinates change frame.

Frames: "image px" (the displayed frame), "crop px" (the network's input), "heatmap px" (its cells).
All are 0-based with pixel centres at integers, x right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError

#: A heatmap cell spans this many crop px; cell h is centred on crop px 4 h + 1.5.
HEATMAP_STRIDE_PX = 4
#: No box reaches further: up to here float32 tells one px from the next, and no image is as large.
MAX_PX = 2**24

FloatArray = NDArray[np.floating]


def heatmap_to_crop(points_xy: FloatArray, stride_px: int = HEATMAP_STRIDE_PX) -> FloatArray:
    """Heatmap px ``(..., 2)`` to crop px, for cells of ``stride_px``."""
    return points_xy * stride_px + (stride_px - 1) / 2


def crop_to_heatmap(points_xy: FloatArray, stride_px: int = HEATMAP_STRIDE_PX) -> FloatArray:
    """Crop px ``(..., 2)`` to heatmap px; the inverse of :func:`heatmap_to_crop`."""
    return (points_xy - (stride_px - 1) / 2) / stride_px


@dataclass(frozen=True)
class CropTransform:
    """A window on an image, and the map between both frames.

    Attributes:
        center_xy: centre of the window, image px.
        width_px: its width, image px.
        size_wh: size of the crop it is scaled to, crop px.
        rotation_deg: the content turns by this much, counter-clockwise as seen on the screen.
        mirror: the content is mirrored left to right (after turning).
        stretch: the content becomes this much higher at the same width (before turning).
    """

    center_xy: tuple[float, float]
    width_px: float
    size_wh: tuple[int, int]
    rotation_deg: float = 0.0
    mirror: bool = False
    stretch: float = 1.0

    def __post_init__(self) -> None:
        if not (
            all(map(math.isfinite, self.center_xy)) and 0 < self.width_px < math.inf and min(self.size_wh) > 0
        ):
            raise InputError(f"a crop needs a finite centre and a positive size, got {self}")

    @classmethod
    def from_box(
        cls, box_xyxy: FloatArray, size_px: int, padding: float = 1.0, shift: float = 0.0
    ) -> CropTransform:
        """The square window around a box ``(4,)`` image px: its longer side times ``padding``.

        Its centre lies below the box's by the share ``shift`` of that longer side.
        """
        x1, y1, x2, y2 = (float(v) for v in box_xyxy)
        side = max(x2 - x1, y2 - y1, 1.0)
        return cls(((x1 + x2) / 2, (y1 + y2) / 2 + shift * side), side * padding, (size_px, size_px))

    @classmethod
    def letterbox(cls, image_wh: tuple[int, int], side_px: int, multiple_px: int) -> CropTransform:
        """The window that shows a whole image, scaled to the area of a square of ``side_px``.

        So a wide frame costs a network what a square one does, and people on it are not smaller; no side
        becomes longer than four times ``side_px``, though. The crop's sides are multiples of
        ``multiple_px``; what is too much shows no image.
        """
        w, h = image_wh
        scale = min(side_px / math.sqrt(w * h), 4 * side_px / max(w, h))
        size_w, size_h = (max(math.ceil(v * scale / multiple_px - 1e-6), 1) * multiple_px for v in (w, h))
        return cls(((w - 1) / 2, (h - 1) / 2), size_w / scale, (size_w, size_h))

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """``(2, 3)`` float64, image px to crop px."""
        width, height = self.size_wh
        scale = width / self.width_px
        angle = math.radians(self.rotation_deg)
        a, b = scale * math.cos(angle), scale * math.sin(angle)
        # y points down, so this turns counter-clockwise on the screen.
        linear = np.array([[a, b * self.stretch], [-b, a * self.stretch]])
        if self.mirror:
            linear[0] = -linear[0]
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        return np.column_stack([linear, middle - linear @ np.array(self.center_xy)])

    @cached_property
    def inverse_matrix(self) -> NDArray[np.float64]:
        """``(2, 3)`` float64, crop px to image px."""
        return np.linalg.inv(np.vstack([self.matrix, [0.0, 0.0, 1.0]]))[:2]

    def to_crop(self, points_xy: FloatArray) -> FloatArray:
        """Image px ``(..., 2)`` to crop px."""
        return points_xy @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_image(self, points_xy: FloatArray) -> FloatArray:
        """Crop px ``(..., 2)`` to image px."""
        return points_xy @ self.inverse_matrix[:, :2].T + self.inverse_matrix[:, 2]

    def warp(self, image: NDArray[np.uint8], onto: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The crop of an image ``(H, W, 3)``: ``(height, width, 3)`` uint8.

        Where the window leaves the image the crop shows ``onto`` (written over), by default black.
        """
        width, height = self.size_wh
        if onto is None:
            onto = np.zeros((height, width, 3), dtype=np.uint8)
        part = self.part((image.shape[1], image.shape[0]))
        x1, y1, x2, y2 = part.window
        image = image[y1:y2, x1:x2]
        if part.size_wh != (x2 - x1, y2 - y1):
            image = np.asarray(cv2.resize(image, part.size_wh, interpolation=cv2.INTER_AREA), np.uint8)
        cv2.warpAffine(
            image,
            part.matrix,
            self.size_wh,
            dst=onto,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_TRANSPARENT,
        )
        return onto

    def part(self, image_wh: tuple[int, int]) -> CropPart:
        """What of an image the crop is sampled from.

        Bilinear sampling alone skips pixels when it shrinks: then whole blocks are averaged first.
        """
        shrink = int(self.width_px / self.size_wh[0])
        if shrink < 2:
            return CropPart((0, 0, *image_wh), image_wh, self.matrix)
        right, bottom = self.size_wh[0] - 1.0, self.size_wh[1] - 1.0
        corners = self.to_image(np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]]))
        width, height = image_wh
        low = np.floor(corners.min(axis=0)).astype(int) - 2 * shrink
        high = np.ceil(corners.max(axis=0)).astype(int) + 2 * shrink
        x1, y1 = (int(v) for v in np.clip(low, 0, [width - 1, height - 1]))
        x2, y2 = (int(v) for v in np.clip(high, [x1 + 1, y1 + 1], [width, height]))
        w, h = max((x2 - x1) // shrink, 1), max((y2 - y1) // shrink, 1)
        # Small px p covers image px x1 + (p + 0.5) * ratio - 0.5.
        ratio = np.array([(x2 - x1) / w, (y2 - y1) / h])
        origin = np.array([x1, y1]) + 0.5 * ratio - 0.5
        linear, offset = self.matrix[:, :2], self.matrix[:, 2]
        return CropPart((x1, y1, x2, y2), (w, h), np.column_stack([linear * ratio, linear @ origin + offset]))


@dataclass(frozen=True)
class CropPart:
    """The part of an image that a crop shows, made smaller by averaging where it is much too large.

    Attributes:
        window: x1, y1, x2, y2: columns x1 to x2 - 1 and rows y1 to y2 - 1 of the image.
        size_wh: size that the window is averaged down to, px.
        matrix: ``(2, 3)`` float64, px of the averaged window to crop px.
    """

    window: tuple[int, int, int, int]
    size_wh: tuple[int, int]
    matrix: NDArray[np.float64]

    def grid_matrix(self, crop_wh: tuple[int, int]) -> NDArray[np.float64]:
        """``(2, 3)`` float64: where to sample the averaged window for a crop of this size.

        Both sides are counted from -1 to 1, edge to edge, as ``torch.nn.functional.affine_grid`` does
        with ``align_corners=False``.
        """

        def to_px(size_wh: tuple[int, int]) -> NDArray[np.float64]:
            w, h = size_wh
            return np.array([[w / 2, 0, (w - 1) / 2], [0, h / 2, (h - 1) / 2], [0, 0, 1]])

        matrix = np.vstack([self.matrix, [0.0, 0.0, 1.0]])
        both: NDArray[np.float64] = np.linalg.inv(matrix @ to_px(self.size_wh)) @ to_px(crop_wh)
        return both[:2]
