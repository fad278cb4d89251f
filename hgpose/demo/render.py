"""A small z-buffer renderer: people on a floor before a wall, two lights, soft shadows.

World frame: metres, z up. Image px: 0-based, pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.demo.body import LAYERS, Array, Body, Colour, normals

_KEY_LIGHT = np.array([-0.45, -0.62, 0.95]) / np.linalg.norm([-0.45, -0.62, 0.95])
_FILL_LIGHT = np.array([0.8, -0.5, 0.25]) / np.linalg.norm([0.8, -0.5, 0.25])
_SHADOW_CELL_M = 0.008
_SHADOW_BIAS_M = 0.03


@dataclass(frozen=True)
class Camera:
    """A pinhole camera, held level.

    Attributes:
        position: of the centre of projection, metres.
        target: what is seen in the middle of the image, metres.
        focal_px: focal length, image px.
        size_wh: of the image, px.
    """

    position: Colour = (0.0, -5.0, 1.45)
    target: Colour = (0.0, 0.0, 0.95)
    focal_px: float = 690.0
    size_wh: tuple[int, int] = (640, 360)

    def axes(self) -> Array:
        """``(3, 3)``: rows right, down, forward."""
        forward = np.subtract(self.target, self.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def project(self, points: Array) -> tuple[Array, Array]:
        """World points ``(..., 3)`` to image px ``(..., 2)`` and depth along the view ``(...)``, metres."""
        view = (points - np.array(self.position)) @ self.axes().T
        middle = (np.array(self.size_wh) - 1) / 2
        return view[..., :2] / view[..., 2:] * self.focal_px + middle, view[..., 2]


@dataclass(frozen=True)
class Set:
    """Floor and wall: linear RGB, and where the wall stands, metres from the origin."""

    floor: Colour = (0.30, 0.20, 0.12)
    wall: Colour = (0.36, 0.42, 0.46)
    wall_y: float = 3.0


@dataclass(frozen=True)
class Picture:
    """A rendered frame.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        depth: ``(H, W)`` float64, metres along the view; infinite where nobody is.
        person: ``(H, W)`` int64, index of the person seen, -1 where nobody is.
    """

    image: NDArray[np.uint8]
    depth: Array
    person: NDArray[np.int64]


def _rasterise(
    points: Array, depth: Array, faces: NDArray[np.int64], size_wh: tuple[int, int]
) -> tuple[NDArray[np.int64], Array, Array]:
    """The nearest triangle at every pixel that has one.

    Args:
        points: ``(V, 2)`` px.
        depth: ``(V,)``; triangles with a vertex at or behind 0 are left out.
        faces: ``(F, 3)``.
        size_wh: of the image.

    Returns:
        face index ``(H, W)`` (-1: none), weights of its vertices ``(H, W, 3)`` (flat in the image),
        depth ``(H, W)`` (infinite: none).
    """
    w, h = size_wh
    # Vertex by vertex: numpy is slow along axes of two or three.
    a, b, c = points[faces.T]
    low = np.clip(np.ceil(np.minimum(np.minimum(a, b), c)), 0, [w, h]).astype(np.int64)
    high = np.clip(np.floor(np.maximum(np.maximum(a, b), c)) + 1, 0, [w, h]).astype(np.int64)
    span = np.maximum(high - low, 0)
    pixels = span[:, 0] * span[:, 1]
    e1, e2 = b - a, c - a
    area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    drawn = np.flatnonzero((pixels > 0) & (np.abs(area) > 1e-12) & (depth[faces.T] > 0).all(axis=0))
    counts = pixels[drawn]
    face = np.repeat(drawn, counts)
    nth = np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts)
    x = low[face, 0] + nth % span[face, 0]
    y = low[face, 1] + nth // span[face, 0]
    dx, dy = x - a[face, 0], y - a[face, 1]
    w1 = (dx * e2[face, 1] - dy * e2[face, 0]) / area[face]
    w2 = (dy * e1[face, 0] - dx * e1[face, 1]) / area[face]
    inside = (w1 >= 0) & (w2 >= 0) & (w1 + w2 <= 1)
    face, x, y = face[inside], x[inside], y[inside]
    weights = np.stack([1 - w1[inside] - w2[inside], w1[inside], w2[inside]], axis=1)
    z = 1 / (weights / depth[faces[face]]).sum(axis=1)
    # Far ones first: of several writes to a pixel the last one, the nearest, stays.
    order = np.argsort(-z, kind="stable")
    y, x = y[order], x[order]
    faces_map = np.full((h, w), -1, dtype=np.int64)
    weights_map, depth_map = np.zeros((h, w, 3)), np.full((h, w), np.inf)
    faces_map[y, x], weights_map[y, x], depth_map[y, x] = face[order], weights[order], z[order]
    return faces_map, weights_map, depth_map


def _noise(rng: np.random.Generator, size: int, octaves: int) -> Array:
    """Smooth noise ``(size, size)`` that tiles, mean 0, standard deviation 1."""
    total = np.zeros((size, size))
    for octave in range(octaves):
        cells = 4 * 2**octave
        grid = np.pad(rng.normal(size=(cells, cells)), 2, mode="wrap").astype(np.float32)
        scale = size // cells
        big = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        tile = slice(2 * scale, 2 * scale + size)
        total += np.asarray(big[tile, tile], dtype=np.float64) / 1.6**octave
    return np.asarray((total - total.mean()) / total.std())


class Stage:
    """A set seen by a camera; draws people on it, frame after frame.

    ``oversampling`` pixels are drawn for every one kept, along each axis.
    """

    def __init__(self, camera: Camera, scenery: Set, seed: int, oversampling: int) -> None:
        self.camera, self._oversampling = camera, oversampling
        self._rng = np.random.default_rng(seed)
        self._size = (camera.size_wh[0] * oversampling, camera.size_wh[1] * oversampling)
        w, h = self._size
        x, y = (np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=0) + 0.5) / oversampling - 0.5
        middle = (np.array(camera.size_wh) - 1) / 2
        rays = np.stack(
            [(x - middle[0]) / camera.focal_px, (y - middle[1]) / camera.focal_px, np.ones_like(x)], axis=-1
        )
        self._rays = rays @ camera.axes()
        eye = np.array(camera.position)
        to_floor = np.where(
            self._rays[..., 2] < -1e-6, -eye[2] / np.minimum(self._rays[..., 2], -1e-6), np.inf
        )
        to_wall = (scenery.wall_y - eye[1]) / np.maximum(self._rays[..., 1], 1e-6)
        self._on_floor = to_floor < to_wall
        self._ground = eye + self._rays * np.minimum(to_floor, to_wall)[..., None]
        self._background = self._paint_set(scenery)

    def _paint_set(self, scenery: Set) -> Array:
        p = self._ground
        texture = _noise(self._rng, 512, 6)

        def look_up(u: Array, v: Array, per_metre: float) -> Array:
            return np.asarray(texture[(v * per_metre).astype(int) % 512, (u * per_metre).astype(int) % 512])

        planks = np.floor(p[..., 0] / 0.14)
        tone = look_up(planks * 37.7, planks * 17.3, 1.0) * 0.06
        grain = look_up(p[..., 0] * 9 + planks * 3.1, p[..., 1], 90.0) * 0.05
        gap = np.abs(p[..., 0] / 0.14 - planks - 0.5) > 0.48
        floor = np.array(scenery.floor) * ((1 + tone + grain) * np.where(gap, 0.75, 1.0))[..., None]
        plaster = (
            1 + 0.05 * look_up(p[..., 0], p[..., 2], 60.0) + 0.03 * look_up(p[..., 0] + 5, p[..., 2], 400.0)
        )
        panel = np.where(p[..., 2] < 0.95, 0.72, 1.0)
        board = np.where(p[..., 2] < 0.1, 1.5, 1.0)
        wall = np.array(scenery.wall) * (plaster * panel * board)[..., None]
        # The lamp is up on the left: light falls off along the wall and to the back of the room.
        away = np.linalg.norm(p - np.array([-1.5, -0.5, 1.0]), axis=-1, keepdims=True)
        colour = np.where(self._on_floor[..., None], floor, wall) * (1.15 / (1 + 0.05 * away**2))
        corner = np.exp(-np.abs(np.where(self._on_floor, scenery.wall_y - p[..., 1], p[..., 2])) / 0.25)
        colour = colour * (1 - 0.25 * corner[..., None])
        # Out of focus a little, as behind people in a photograph.
        return np.asarray(cv2.GaussianBlur(colour, (0, 0), 1.6))

    def draw(self, people: list[tuple[Body, Array]]) -> Picture:
        """The frame with these bodies, each with its posed vertices ``(V, 3)``, metres."""
        bodies = [body for body, _ in people]
        vertices = np.concatenate([posed for _, posed in people])
        starts = np.cumsum([0] + [len(posed) for _, posed in people[:-1]])
        faces = np.concatenate([body.faces + start for body, start in zip(bodies, starts, strict=True)])
        owner = np.repeat(np.arange(len(bodies)), [len(body.faces) for body in bodies])
        points, depth = self.camera.project(vertices)
        found, weights, z = _rasterise((points + 0.5) * self._oversampling - 0.5, depth, faces, self._size)
        seen = found >= 0
        near = faces[found[seen]]
        flat = weights[seen] / depth[near]
        bary = flat / flat.sum(axis=1, keepdims=True)

        place = self._ground.copy()
        place[seen] = np.einsum("pk,pkd->pd", bary, vertices[near])
        shadow = self._shadow(vertices, faces, place, _KEY_LIGHT, 3.0)
        overhead = self._shadow(vertices, faces, self._ground, np.array([0.0, 0.0, 1.0]), 14.0)
        open_floor = np.where(self._on_floor, (1 - 0.55 * shadow) * (1 - 0.5 * overhead), 1.0)
        linear = self._background * open_floor[..., None]

        n = np.einsum("pk,pkd->pd", bary, normals(vertices, faces)[near])
        n = n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
        coverage = np.concatenate([body.coverage for body in bodies])
        covered = np.einsum("pk,pkl->pl", bary, coverage[near])
        albedo = np.zeros((len(n), 3))
        colours = np.array([[body.look.colours[name] for name in LAYERS] for body in bodies])[
            owner[found[seen]]
        ]
        for layer in range(len(LAYERS)):
            share = np.clip(0.5 + covered[:, layer] / 0.003, 0, 1)[:, None]
            albedo += share * (colours[:, layer] - albedo)

        # Creases, and gaps between limbs, are darker: depth against its own neighbourhood.
        filled = np.where(seen, z, z[seen].max() if seen.any() else 0.0)
        crease = np.clip((filled - cv2.GaussianBlur(filled, (0, 0), 6.0)) / 0.12, 0, 0.45)[seen]
        lit = 1 - 0.8 * shadow[seen]
        key = np.clip((n @ _KEY_LIGHT + 0.15) / 1.15, 0, None) * lit
        fill = np.clip(n @ _FILL_LIGHT, 0, None)
        sky = 0.5 + 0.5 * n[:, 2]
        light = (
            key[:, None] * np.array([1.0, 0.95, 0.86]) * 0.95
            + fill[:, None] * np.array([0.75, 0.85, 1.0]) * 0.22
            + (
                sky[:, None] * np.array([0.30, 0.32, 0.36])
                + (1 - sky[:, None]) * np.array([0.16, 0.12, 0.09])
            )
        )
        linear[seen] = albedo * light * (1 - crease[:, None])
        return self._exposed(linear, seen, z, np.where(seen, owner[found], -1))

    def _exposed(
        self, linear: Array, seen: NDArray[np.bool_], z: Array, person: NDArray[np.int64]
    ) -> Picture:
        small = cv2.resize(
            cv2.GaussianBlur(linear, (0, 0), 0.8), self.camera.size_wh, interpolation=cv2.INTER_AREA
        )
        grey = np.clip(small, 0, 1) ** (1 / 2.2) * 255 + self._rng.normal(scale=1.2, size=small.shape)
        k = self._oversampling
        return Picture(np.clip(grey, 0, 255).round().astype(np.uint8), z[::k, ::k], person[::k, ::k])

    def _shadow(
        self, vertices: Array, faces: NDArray[np.int64], places: Array, light: Array, blur: float
    ) -> Array:
        """How much the people shade each of ``places`` ``(h, w, 3)`` from a far light, in [0, 1]."""
        side = np.cross(light, [0.0, 1.0, 0.0])
        side /= np.linalg.norm(side)
        frame = np.stack([side, np.cross(light, side), light])
        onto = vertices @ frame.T
        low, high = onto.min(axis=0), onto.max(axis=0)
        size = np.ceil((high - low)[:2] / _SHADOW_CELL_M).astype(int) + 1
        # Seen from the light, nearer means farther along it.
        _, _, nearest = _rasterise(
            (onto[:, :2] - low[:2]) / _SHADOW_CELL_M,
            high[2] + 1 - onto[:, 2],
            faces,
            (int(size[0]), int(size[1])),
        )
        here = places @ frame.T
        cell = np.round((here[..., :2] - low[:2]) / _SHADOW_CELL_M)
        cell = np.where(np.isfinite(cell), cell, -1).astype(int)
        inside = ((cell >= 0) & (cell < size)).all(axis=-1)
        cell = np.where(inside[..., None], cell, 0)
        blocked = inside & (nearest[cell[..., 1], cell[..., 0]] < high[2] + 1 - here[..., 2] - _SHADOW_BIAS_M)
        return np.asarray(cv2.GaussianBlur(blocked.astype(np.float64), (0, 0), blur))
