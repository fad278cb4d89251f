"""A clothed, posable person: the free Anny body model, with clothes painted on and joints read off.

World frame: metres, x to the right and y away from a camera at heading 0, z up. A person with heading
0 looks along -y, so that their left is +x. Developer tool: needs ``pip install hgpose[demo]``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from hgpose.keypoints import BODY19

Array = NDArray[np.float64]
Colour = tuple[float, float, float]

#: What a :class:`Pose` turns, from the pelvis outwards.
JOINTS = (
    "pelvis", "spine", "neck", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
# What each kind of joint turns: the sense of flexion about +x, and the bones that share the angle.
_BONES: dict[str, tuple[int, tuple[str, ...]]] = {
    "pelvis": (1, ("root",)), "spine": (1, ("spine04", "spine03", "spine02")),
    "neck": (1, ("neck01", "head")),
    "shoulder": (-1, ("upperarm01",)), "elbow": (-1, ("lowerarm01",)), "hip": (-1, ("upperleg01",)),
    "knee": (1, ("lowerleg01",)), "ankle": (-1, ("foot",)),
}  # fmt: skip
#: The layers of paint on a body, inner first, and how far each stands off the skin, metres.
LAYERS = {
    "skin": 0.0, "lips": 0.0, "eyes": 0.0, "brows": 0.0, "trousers": 0.012, "shirt": 0.012,
    "shoes": 0.01, "soles": 0.012, "hair": 0.016,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Body shape and colours of a person.

    Attributes:
        phenotype: Anny's shape parameters in [0, 1] (gender 0 is male; age 0.67 is a young adult).
        colours: linear RGB of each of :data:`LAYERS` named here.
        sleeve: where sleeves end: 0 shoulder, 1 elbow, 2 wrist.
        trouser_leg: where trousers end: 0 hip, 1 knee, 2 ankle.
    """

    phenotype: dict[str, float]
    colours: dict[str, Colour]
    sleeve: float = 0.6
    trouser_leg: float = 2.0


@dataclass(frozen=True)
class Pose:
    """Joint angles.

    Attributes:
        angles_deg: ``(J, 3)`` float64 in the order of :data:`JOINTS`: flexion (forward; knee: back),
            abduction (away from the body) and inward twist; of pelvis, spine and neck the latter two
            are to the person's left.
        lift_m: height of the lowest point above the ground.
        planted: 1 if the path is that of the feet, 0 if it is that of the hips.
    """

    angles_deg: Array = field(default_factory=lambda: np.zeros((len(JOINTS), 3)))
    lift_m: float = 0.0
    planted: float = 1.0

    @classmethod
    def of(
        cls, lift_m: float = 0.0, planted: float = 1.0, **angles_deg: float | tuple[float, float, float]
    ) -> Pose:
        """A pose from joint names; a single number is flexion; ``shoulders`` and the like mean both sides."""
        pose = cls(lift_m=lift_m, planted=planted)
        for name, value in angles_deg.items():
            names = (name,) if name in JOINTS else (f"left_{name[:-1]}", f"right_{name[:-1]}")
            for joint in names:
                pose.angles_deg[JOINTS.index(joint)] += value if isinstance(value, tuple) else (value, 0, 0)
        return pose

    def blend(self, other: Pose, share: float) -> Pose:
        """This pose with ``share`` of another."""
        return Pose(
            (1 - share) * self.angles_deg + share * other.angles_deg,
            (1 - share) * self.lift_m + share * other.lift_m,
            (1 - share) * self.planted + share * other.planted,
        )


def rotation(axis: int, angle_rad: float) -> Array:
    """``(3, 3)`` rotation about a coordinate axis, right-handed."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    turn = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[[i, j], [i, j]] = c
    turn[i, j], turn[j, i] = -s, s
    return turn


def _turn_onto_down(direction: Array) -> Array:
    """The smallest rotation that takes a direction to -z."""
    unit = direction / np.linalg.norm(direction)
    down = np.array([0.0, 0.0, -1.0])
    v, c = np.cross(unit, down), float(unit @ down)
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1 + c))


@cache
def _anny() -> tuple[Any, Any]:
    """The model and its regressor of COCO keypoints. The first call of all takes a minute."""
    anny, torch = importlib.import_module("anny"), importlib.import_module("torch")
    model = anny.Anny().to(dtype=torch.float32)
    return model, anny.KeypointsRegressor.coco(model)


class Body:
    """One person.

    Attributes:
        faces: ``(F, 3)`` int64 vertex indices.
        coverage: ``(V, L)`` float64, for each of :data:`LAYERS` the distance in metres from a vertex to
            the layer's hem, positive where the layer covers.
    """

    def __init__(self, look: Look) -> None:
        self.look = look
        model, _ = _anny()
        self._bones = {label: i for i, label in enumerate(model.bone_labels)}
        self._parents = [int(p) for p in model.bone_parents]
        self.faces: NDArray[np.int64] = np.asarray(model.faces, dtype=np.int64)
        self._around = _means_of_neighbours(self.faces)
        self._neutral = np.tile(np.eye(3), (len(self._bones), 1, 1))
        rest, joints, face = self._run(self._neutral)
        self._neutral = self._arms_and_legs_down(joints)
        self._crown = int(rest[:, 2].argmax())
        self.coverage = self._dress(rest, joints, face)

    def _run(self, turns: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Vertices ``(V, 3)``, bone heads ``(B, 3)`` and face landmarks of bone rotations ``(B, 3, 3)``."""
        torch = importlib.import_module("torch")
        model, regressor = _anny()
        transforms = torch.eye(4).repeat(1, len(turns), 1, 1)
        transforms[0, :, :3, :3] = torch.as_tensor(turns)
        with torch.no_grad():
            out = model(pose_parameters=transforms, phenotype_kwargs=self.look.phenotype)
            landmarks = regressor(out)[0].double().numpy()
        face = dict(zip(regressor.labels[:5], landmarks, strict=False))
        return out["vertices"][0].double().numpy(), out["bone_poses"][0, :, :3, 3].double().numpy(), face

    def _arms_and_legs_down(self, joints: Array) -> Array:
        """Per bone, the rotation from the model's rest pose to standing with arms hanging: ``(B, 3, 3)``."""
        turns = np.tile(np.eye(3), (len(joints), 1, 1))
        at = self._bones
        limbs = {("upperarm01", "lowerarm01"): "wrist", ("upperleg01", "lowerleg01"): "foot"}
        # Feet stay as they are, flat on the ground; every other bone follows its parent.
        fixed = {at["root"], at["foot.L"], at["foot.R"]}
        for (upper, lower), end in limbs.items():
            for side in ("L", "R"):
                i, j, k = (at[f"{bone}.{side}"] for bone in (upper, lower, end))
                turns[i] = _turn_onto_down(joints[j] - joints[i])
                turns[j] = _turn_onto_down(turns[i] @ (joints[k] - joints[j])) @ turns[i]
                fixed |= {i, j}
        for bone, parent in enumerate(self._parents):
            if bone not in fixed:
                turns[bone] = turns[parent]
        return turns

    def _dress(self, rest: Array, joints: Array, face: dict[str, Array]) -> Array:
        """``coverage``, from the body in the model's rest pose (arms half raised, legs almost vertical)."""
        model, _ = _anny()
        weights = np.zeros((len(rest), len(self._bones)))
        np.put_along_axis(
            weights, model.vertex_bone_indices.numpy(), model.vertex_bone_weights.double().numpy(), axis=1
        )

        def share(*starts: str) -> Array:
            return np.asarray(
                weights[:, [i for label, i in self._bones.items() if label.startswith(starts)]].sum(axis=1)
            )

        def joint(label: str) -> Array:
            return np.asarray(joints[self._bones[label]])

        # Everything is measured on the left half; the body is symmetric.
        left = np.abs(rest) * [1, 0, 0] + rest * [0, 1, 1]
        z = rest[:, 2]
        shoulder, elbow, wrist = joint("upperarm01.L"), joint("lowerarm01.L"), joint("wrist.L")
        hip, knee, ankle = joint("upperleg01.L")[2], joint("lowerleg01.L")[2], joint("foot.L")[2]
        upper, fore, hand = share("upperarm"), share("lowerarm"), share("wrist", "finger", "metacarpal")
        arm_m = np.linalg.norm(elbow - shoulder)
        along_upper = (left - shoulder) @ (elbow - shoulder) / arm_m**2
        along_fore = 1 + (left - elbow) @ (wrist - elbow) / np.linalg.norm(wrist - elbow) ** 2
        along = np.where(upper + fore + hand < 0.3, 0.0, upper * along_upper + fore * along_fore + hand * 2.1)

        neck, eye, ear, nose = joint("neck01"), face["left_eye"], face["left_ear"], face["nose"]
        collar = neck[2] - 0.005 + 0.55 * np.minimum(rest[:, 1] - neck[1], 0)
        hem = np.interp(self.look.trouser_leg, [0, 1, 2], [hip, knee, ankle])
        head = share("head", "neck03", "neck02", "eye")
        back = rest[:, 1] - ear[1]
        hairline = eye[2] + 0.008 - np.where(back < 0, 0.5, 1.3) * back
        behind = np.where(back < -0.02, 0.0, 1.0)
        mouth = np.array([0.0, 0.0, nose[2] - 1.24 * eye[0]])

        def ellipse(center: Array, radii: tuple[float, float]) -> Array:
            d = (left - center)[:, [0, 2]] / np.array(radii)
            return np.asarray((1 - np.linalg.norm(d, axis=1)) * min(radii) - behind)

        sd = {
            "skin": np.ones(len(rest)),
            "lips": ellipse(mouth, (0.024, 0.008)),
            "eyes": ellipse(eye, (0.013, 0.007)),
            "brows": ellipse(eye + np.array([0.002, 0, 0.02]), (0.02, 0.0045)),
            "trousers": np.minimum.reduce([hip + 0.08 - z, z - hem, 0.05 - (upper + fore + hand)]),
            "shirt": np.minimum.reduce(
                [z - hip + 0.05 + 0.3 * (upper + fore + hand), collar - z, (self.look.sleeve - along) * arm_m]
            ),
            "shoes": np.minimum(ankle + 0.015 - z, share("foot", "toe", "lowerleg") - 0.1),
            "soles": rest[:, 2].min() + 0.022 - z,
            "hair": np.minimum(z - hairline, head - 0.6),
        }
        return np.stack([sd[name] for name in LAYERS], axis=1)

    def posed(self, pose: Pose, at_xy: Array, heading_deg: float) -> tuple[Array, Array]:
        """Clothed vertices ``(V, 3)`` and body19 joints ``(19, 3)``, both metres in the world frame."""
        turns = self._local_turns(pose)
        skin, joints, face = self._run(turns)
        at = self._bones
        names = {
            "shoulder": "upperarm01", "elbow": "lowerarm01", "wrist": "wrist",
            "hip": "upperleg01", "knee": "lowerleg01", "ankle": "foot",
        }  # fmt: skip
        points = dict(face)
        for side in ("left", "right"):
            for name, bone in names.items():
                points[f"{side}_{name}"] = joints[at[f"{bone}.{side[0].upper()}"]]
        collar_bones = (joints[at["clavicle.L"]] + joints[at["clavicle.R"]]) / 2
        points["neck"] = (collar_bones + joints[at["neck01"]]) / 2
        vertices = self._clothed(skin)
        points["head_top"] = vertices[self._crown]
        keypoints = np.stack([points[name] for name in BODY19.names])
        feet = (points["left_ankle"] + points["right_ankle"]) / 2
        origin = pose.planted * feet + (1 - pose.planted) * joints[at["root"]]
        turn = rotation(2, np.radians(heading_deg))
        ground = np.array([origin[0], origin[1], vertices[:, 2].min() - pose.lift_m])
        to = np.array([at_xy[0], at_xy[1], 0.0])
        return (vertices - ground) @ turn.T + to, (keypoints - ground) @ turn.T + to

    def _local_turns(self, pose: Pose) -> Array:
        """The model's own pose parameters, ``(B, 3, 3)``."""
        bends = np.tile(np.eye(3), (len(self._bones), 1, 1))
        for name, angles in zip(JOINTS, np.radians(pose.angles_deg), strict=True):
            side, _, kind = name.rpartition("_")
            sense, bones = _BONES[kind]
            flex, abduct, twist = angles / len(bones)
            mirror = -1 if side == "left" else 1
            suffix = f".{side[0].upper()}" if side else ""
            if kind == "shoulder":
                # The collar bone takes its share of a raised arm.
                raised = max(0.0, abduct - np.radians(30)) * 0.22
                bends[self._bones[f"clavicle{suffix}"]] = rotation(1, mirror * raised)
                abduct -= raised
            turn = rotation(1, mirror * abduct) @ rotation(0, sense * flex) @ rotation(2, mirror * twist)
            for bone in bones:
                bends[self._bones[f"{bone}{suffix}"]] = turn
        parents = np.array(self._parents)
        above = np.where((parents >= 0)[:, None, None], self._neutral[parents], np.eye(3))
        return np.asarray(above.transpose(0, 2, 1) @ bends @ self._neutral)

    def _clothed(self, skin: Array) -> Array:
        """The skin pushed out and smoothed where clothes or hair cover it."""
        thickness = np.zeros(len(skin))
        for distance, stand_off in zip(self.coverage.T, LAYERS.values(), strict=True):
            # Full thickness 12 mm from the hem.
            thickness = np.maximum(thickness, stand_off * np.clip(distance / 0.012, 0, 1))
        soft = (np.clip(thickness / 0.008, 0, 1) * 0.6)[:, None]
        vertices: Array = skin
        for _ in range(14):
            vertices = vertices + soft * (self._around @ vertices - vertices)
        return np.asarray(vertices + thickness[:, None] * normals(vertices, self.faces))


def _means_of_neighbours(faces: NDArray[np.int64]) -> Any:
    """Sparse ``(V, V)``: times the vertices, the mean of the neighbours of each."""
    count = int(faces.max()) + 1
    ends = faces[:, [[0, 1], [1, 2], [2, 0], [1, 0], [2, 1], [0, 2]]].reshape(-1, 2)
    a, b = np.unique(ends, axis=0).T
    degree = np.bincount(a, minlength=count)
    return scipy.sparse.csr_array((1 / degree[a], (a, b)), (count, count))


def normals(vertices: Array, faces: NDArray[np.int64]) -> Array:
    """Unit vertex normals ``(V, 3)``, outwards, weighted by triangle area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    face_normals = np.cross(b - a, c - a)
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(face_normals[:, i], 3), len(vertices)) for i in range(3)],
        axis=1,
    )
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))
