"""Renders clips of moving people with exact joint positions: ``python -m hgpose.demo.make_clip``.

A developer tool. Without arguments it makes the clip of ``hgpose demo`` anew, beside this file. It needs
``pip install hgpose[demo]``. A new clip is a :class:`Scene` and a call to :func:`render`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from hgpose.demo import CLIP, TRUTH
from hgpose.demo.body import Array, Body, Colour, Look, Pose
from hgpose.demo.render import Camera, Picture, Set, Stage
from hgpose.keypoints import BODY19

#: Time in seconds since the action began and metres walked so far, to a pose.
Action = Callable[[float, float], Pose]

_STRIDE_M = 1.35
# Hip, knee and ankle flexion of level walking, degrees, at every tenth of a stride from heel strike
# (after Winter, Biomechanics and Motor Control of Human Movement).
_GAIT = np.array(
    [
        [28, 24, 16, 6, -4, -10, -4, 13, 26, 30],
        [4, 14, 16, 9, 5, 11, 36, 60, 50, 20],
        [0, -4, 4, 8, 10, 4, -15, -8, 0, 2],
    ],
    dtype=np.float64,
)


def _gait(phase: float) -> Array:
    """Hip, knee and ankle flexion, degrees, at a phase of the stride: a Fourier series through the table."""
    terms = np.fft.rfft(_GAIT, axis=1)
    n = _GAIT.shape[1]
    weights = np.where(np.arange(terms.shape[1]) % (n // 2) == 0, 1, 2) / n
    return np.asarray(
        (terms * weights * np.exp(2j * np.pi * phase * np.arange(terms.shape[1]))).real.sum(axis=1)
    )


def _ease(u: float) -> float:
    """0 to 1 and back to 0 as u goes from 0 to 1, without a jerk."""
    return float((1 - np.cos(2 * np.pi * u)) / 2)


def stand(t: float, walked_m: float) -> Pose:
    """Stands, arms hanging, breathing and swaying a little."""
    sway = np.sin(2 * np.pi * t / 3.1)
    return Pose.of(shoulders=(4, 8, 0), elbows=14, hips=(0, 3, 0), spine=(1 + sway, 0.6 * sway, 0))


def walk(t: float, walked_m: float) -> Pose:
    """Walks; the stride follows the path, so that feet do not slide."""
    phase = walked_m / _STRIDE_M
    legs = {"left": _gait(phase), "right": _gait(phase + 0.5)}
    swing = np.cos(2 * np.pi * phase)
    pose = Pose.of(
        planted=0.0,
        pelvis=(2, 0, -4 * swing),
        spine=(3, 0, 10 * swing),
        neck=(-4, 0, -6 * swing),
        left_shoulder=(-22 * swing + 2, 7, 0),
        right_shoulder=(22 * swing + 2, 7, 0),
        left_elbow=24 - 12 * swing,
        right_elbow=24 + 12 * swing,
    )
    angles = {
        f"{side}_{joint}": float(v)
        for side, leg in legs.items()
        for joint, v in zip(("hip", "knee", "ankle"), leg, strict=True)
    }
    return Pose(pose.angles_deg + Pose.of(**angles).angles_deg, planted=0.0)


def jumping_jacks(t: float, walked_m: float) -> Pose:
    """A jumping jack every 1.2 s."""
    u = (t / 1.2) % 1
    out, hop = _ease(u), abs(np.sin(2 * np.pi * u))
    return Pose.of(
        lift_m=0.07 * hop,
        shoulders=(4, 9 + 146 * out, 0),
        elbows=16 + 10 * out,
        hips=(8 * (1 - hop), 3 + 19 * out, 0),
        knees=16 * (1 - hop),
        ankles=8 - 28 * hop,
        spine=2,
    )


def squats(t: float, walked_m: float) -> Pose:
    """A squat every 1.8 s, arms forward."""
    down = _ease((t / 1.8) % 1)
    return Pose.of(
        shoulders=(6 + 78 * down, 8, 0), elbows=14, hips=(80 * down, 7 + 6 * down, 0), knees=90 * down,
        ankles=24 * down, pelvis=24 * down, spine=8 * down, neck=-16 * down,
    )  # fmt: skip


def wave(t: float, walked_m: float) -> Pose:
    """Stands and waves the right hand."""
    beat = np.sin(2 * np.pi * t / 0.8)
    pose = stand(t, walked_m)
    arm = Pose.of(right_shoulder=(-4, 72, -84), right_elbow=(78 + 22 * beat, 0, 0), neck=(0, -4, 0))
    return Pose(pose.angles_deg + arm.angles_deg)


def punch(t: float, walked_m: float) -> Pose:
    """Boxes: left and right straight punches, 0.9 s for the pair."""
    u = (t / 0.9) % 1
    left, right = max(0.0, np.sin(2 * np.pi * u)) ** 2, max(0.0, -np.sin(2 * np.pi * u)) ** 2
    return Pose.of(
        left_shoulder=(32 + 52 * left, 8, 12), right_shoulder=(32 + 52 * right, 8, 12),
        left_elbow=118 - 108 * left, right_elbow=118 - 108 * right,
        left_hip=(24, 6, 0), right_hip=(-8, 8, 0), knees=18, left_ankle=-4, right_ankle=14,
        spine=(6, 0, 18 * (right - left)), pelvis=(4, 0, 0), neck=(0, 0, -10 * (right - left)),
    )  # fmt: skip


def jump(t: float, walked_m: float) -> Pose:
    """Crouches and jumps up, arms raised, every 1.4 s."""
    u = (t / 1.4) % 1
    crouch = float(np.exp(-(((u - 0.22) / 0.09) ** 2)) + 0.7 * np.exp(-(((u - 0.78) / 0.08) ** 2)))
    fly = max(0.0, 1 - ((u - 0.5) / 0.2) ** 2)
    return Pose.of(
        lift_m=0.32 * fly, shoulders=(150 * fly - 30 * crouch, 14, 0), elbows=20,
        hips=55 * crouch, knees=75 * crouch, ankles=22 * crouch - 35 * fly,
        pelvis=18 * crouch, neck=-8 * crouch,
    )  # fmt: skip


@dataclass(frozen=True)
class Actor:
    """One person of a scene.

    Attributes:
        look: body and clothes.
        path: (time s, x m, y m, heading degrees) waypoints, joined by smoothed straight lines. Heading 0
            looks along -y, towards the camera; positive turns to the person's left.
        actions: (start s, action), in order; one fades into the next.
    """

    look: Look
    path: tuple[tuple[float, float, float, float], ...]
    actions: tuple[tuple[float, Action], ...] = ((0.0, stand),)

    def place(self, time_s: float) -> tuple[Array, float]:
        """Where the actor is ``(2,)``, metres, and the heading, degrees."""
        times, *rest = np.array(self.path).T
        around = time_s + np.linspace(-0.3, 0.3, 13)
        x, y, heading = (float(np.interp(around, times, values).mean()) for values in rest)
        return np.array([x, y]), heading

    def pose(self, time_s: float, walked_m: float) -> Pose:
        """The pose of the moment; ``walked_m`` is the length of the path so far."""
        pose = self.actions[0][1](time_s, walked_m)
        for start, action in self.actions[1:]:
            share = float(np.clip((time_s - start) / 0.5 + 0.5, 0, 1))
            pose = pose.blend(action(time_s - start, walked_m), share * share * (3 - 2 * share))
        return pose


@dataclass(frozen=True)
class Scene:
    """A clip to be.

    Attributes:
        actors: the people; one outside the picture is simply not seen.
        duration_s: its length.
        shots: (start s, camera): each but the first is a cut.
        scenery: floor and wall.
        fps: frames a second.
        seed: of textures and noise; the truth does not depend on it.
        oversampling: pixels drawn for every one kept, along each axis: finer edges, more time.
    """

    actors: tuple[Actor, ...]
    duration_s: float
    shots: tuple[tuple[float, Camera], ...] = ((0.0, Camera()),)
    scenery: Set = field(default_factory=Set)
    fps: int = 25
    seed: int = 0
    oversampling: int = 2


# How far a joint lies under the skin at most, metres: what is nearer to the camera by more hides it.
_DEPTH_M = dict.fromkeys(BODY19.names, 0.11) | {
    "left_hip": 0.17,
    "right_hip": 0.17,
    "neck": 0.16,
    "head_top": 0.16,
}
_DEPTH_M |= dict.fromkeys(BODY19.names[:3], 0.03) | dict.fromkeys(BODY19.names[3:5], 0.05)


def _annotation(
    joints: Array, index: int, picture: Picture, camera: Camera, vertices: Array
) -> dict[str, Any] | None:
    """COCO annotation of one person on one frame, or ``None`` if no pixel shows them."""
    mine = picture.person == index
    if not mine.any():
        return None
    h, w = mine.shape
    points, depth = camera.project(joints)
    cells = np.round(points).astype(int)
    inside = ((cells >= 0) & (cells < [w, h])).all(axis=1) & (depth > 0)
    x, y = np.where(inside[:, None], cells, 0).T
    hidden = picture.depth[y, x] < depth - np.array([_DEPTH_M[name] for name in BODY19.names])
    # Another person in front hides a joint however close they stand.
    hidden |= (picture.person[y, x] != index) & (picture.depth[y, x] < depth)
    visibility = np.where(inside, np.where(hidden, 1, 2), 0)
    outline, _ = camera.project(vertices)
    low, high = np.clip([outline.min(axis=0), outline.max(axis=0)], -0.5, [w - 0.5, h - 0.5])
    flat: list[float] = []
    for (px, py), v in zip(points, visibility, strict=True):
        flat += [round(float(px), 1), round(float(py), 1), int(v)] if v else [0, 0, 0]
    return {
        "category_id": 1,
        "track_id": index + 1,
        "iscrowd": 0,
        "bbox": [round(float(v), 1) for v in (*low, *(high - low))],
        "area": int(mine.sum()),
        "num_keypoints": int((visibility > 0).sum()),
        "keypoints": flat,
    }


def frames(scene: Scene) -> Iterator[tuple[NDArray[np.uint8], list[dict[str, Any]]]]:
    """Images ``(H, W, 3)`` uint8 RGB of a scene, each with its COCO annotations (without ids)."""
    bodies = [Body(actor.look) for actor in scene.actors]
    walked = [0.0] * len(bodies)
    before = [actor.place(0.0)[0] for actor in scene.actors]
    stage: Stage | None = None
    for index in range(round(scene.duration_s * scene.fps)):
        time_s = index / scene.fps
        camera = [camera for start, camera in scene.shots if start <= time_s][-1]
        if stage is None or stage.camera != camera:
            stage = Stage(camera, scene.scenery, scene.seed, scene.oversampling)
        people, joints = [], []
        for i, (actor, body) in enumerate(zip(scene.actors, bodies, strict=True)):
            at, heading = actor.place(time_s)
            walked[i] += float(np.linalg.norm(at - before[i]))
            before[i] = at
            vertices, points = body.posed(actor.pose(time_s, walked[i]), at, heading)
            people.append((body, vertices))
            joints.append(points)
        picture = stage.draw(people)
        found = [
            _annotation(points, i, picture, camera, vertices)
            for i, (points, (_, vertices)) in enumerate(zip(joints, people, strict=True))
        ]
        yield picture.image, [a for a in found if a]


def render(scene: Scene, video: Path, truth: Path) -> None:
    """Writes a scene as H.264 video and its truth as COCO-style JSON.

    Image ids are frame indices, ``shot`` counts the cuts before a frame, ``track_id`` says who is who.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    w, h = scene.shots[0][1].size_wh
    part = video.with_name(f"part-{video.name}")
    with av.open(str(part), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(scene.fps), options={"crf": "18", "preset": "slow"}
        )
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        for index, (image, found) in enumerate(frames(scene)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            shot = sum(start <= index / scene.fps for start, _ in scene.shots) - 1
            images.append({"id": index, "file_name": f"{index:06d}", "width": w, "height": h, "shot": shot})
            annotations += [
                {"id": len(annotations) + 1 + k, "image_id": index, **a} for k, a in enumerate(found)
            ]
        container.mux(stream.encode())
    part.replace(video)
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(BODY19.names),
        "skeleton": [[a + 1, b + 1] for a, b in BODY19.edges],
    }
    document = {"images": images, "annotations": annotations, "categories": [category]}
    truth.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")


_FACE: dict[str, Colour] = {"lips": (0.42, 0.17, 0.14), "eyes": (0.06, 0.05, 0.05)}
WOMAN = Look(
    {"gender": 1.0, "age": 0.67, "muscle": 0.55, "weight": 0.45, "height": 0.5, "proportions": 0.6},
    _FACE | {
        "skin": (0.58, 0.34, 0.24), "brows": (0.10, 0.06, 0.04), "hair": (0.07, 0.035, 0.02),
        "shirt": (0.55, 0.06, 0.07), "trousers": (0.03, 0.04, 0.09),
        "shoes": (0.12, 0.13, 0.15), "soles": (0.6, 0.6, 0.58),
    },
)  # fmt: skip
MAN = Look(
    {"gender": 0.0, "age": 0.7, "muscle": 0.6, "weight": 0.5, "height": 0.3, "proportions": 0.6},
    _FACE | {
        "skin": (0.36, 0.19, 0.12), "brows": (0.03, 0.02, 0.02), "hair": (0.02, 0.015, 0.012),
        "shirt": (0.5, 0.52, 0.5), "trousers": (0.05, 0.09, 0.2),
        "shoes": (0.45, 0.12, 0.03), "soles": (0.55, 0.55, 0.52),
    },
    trouser_leg=0.9,
)  # fmt: skip

DEMO = Scene(
    actors=(
        Actor(
            WOMAN,
            ((0.0, -1.8, 0.2, 78), (2.3, -0.4, 0.0, 78), (2.8, -0.4, 0.0, 6)),
            ((0.0, walk), (2.5, wave)),
        ),
        Actor(MAN, ((0.0, 1.15, 0.3, -10),), ((0.0, jumping_jacks), (2.4, squats))),
    ),
    duration_s=5.0,
)

if __name__ == "__main__":
    render(DEMO, CLIP, TRUTH)
