"""The shipped clip and its truth agree; the parts of its renderer that need no body model work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hgpose.demo import CLIP, TRUTH, DemoScore, score_demo
from hgpose.demo.body import JOINTS, Look, Pose, rotation
from hgpose.demo.make_clip import Actor, jumping_jacks, punch, squats, stand, walk, wave
from hgpose.demo.render import Camera, _rasterise
from hgpose.keypoints import BODY19, KEYPOINT_SETS

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def clip() -> Images:
    with av.open(str(CLIP)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(TRUTH.read_text(encoding="utf-8"))
    return document


def _joints(annotation: dict[str, Any]) -> NDArray[np.float64]:
    return np.array(annotation["keypoints"], dtype=np.float64).reshape(len(BODY19), 3)


def test_clip_and_truth_are_small() -> None:
    assert CLIP.stat().st_size + TRUTH.stat().st_size < 1_000_000


def test_clip_is_playable_everywhere() -> None:
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25


def test_truth_has_every_frame_and_size(clip: Images, truth: dict[str, Any]) -> None:
    count, height, width, _ = clip.shape
    assert [(i["id"], i["width"], i["height"]) for i in truth["images"]] == [
        (index, width, height) for index in range(count)
    ]
    people = [(a["image_id"], a["track_id"]) for a in truth["annotations"]]
    assert sorted(people) == [(index, person) for index in range(count) for person in (1, 2)]
    assert len({a["id"] for a in truth["annotations"]}) == 2 * count


@pytest.mark.parametrize("name", KEYPOINT_SETS)
def test_the_truth_itself_scores_100(name: str, truth: dict[str, Any], tmp_path: Path) -> None:
    keypoints = KEYPOINT_SETS[name]
    frames: list[dict[str, Any]] = [{"frame": image["id"], "people": []} for image in truth["images"]]
    for annotation in truth["annotations"]:
        joints = keypoints.rows_of(_joints(annotation), BODY19.names)
        frames[annotation["image_id"]]["people"].append({"keypoints": joints.tolist()})
    results = tmp_path / "r.json"
    results.write_text(json.dumps({"keypoint_set": name, "frames": frames}))
    assert score_demo(results) == DemoScore(found=1.0, pck=100.0)


def test_truth_names_body19(truth: dict[str, Any]) -> None:
    assert truth["categories"][0]["keypoints"] == list(BODY19.names)


def test_joints_lie_inside_frame_and_box(clip: Images, truth: dict[str, Any]) -> None:
    for annotation in truth["annotations"]:
        joints = _joints(annotation)
        x, y, w, h = annotation["bbox"]
        assert set(joints[:, 2]) <= {1, 2} and annotation["num_keypoints"] == len(BODY19)
        # A joint lies within the outline, which is rounded to 0.1 px.
        assert ((joints[:, :2] >= [x - 0.1, y - 0.1]) & (joints[:, :2] <= [x + w + 0.1, y + h + 0.1])).all()
        assert x > 0 and y > 0 and x + w < clip.shape[2] - 1 and y + h < clip.shape[1] - 1
        assert 0 < annotation["area"] < w * h


def test_visible_joints_lie_on_the_person(clip: Images, truth: dict[str, Any]) -> None:
    # The camera stands still: the median over time is the empty room, except where someone stays put,
    # so only people on the move are asked. Shadows darken alike; a person's colour differs more.
    room = np.median(clip[::3], axis=0)
    on_person = []
    for annotation in truth["annotations"]:
        if annotation["track_id"] != 1 or annotation["image_id"] > 55:
            continue
        image = cv2.GaussianBlur(clip[annotation["image_id"]], (0, 0), 0.7).astype(np.float64)
        difference = np.abs(image - room).max(axis=2)
        for x, y, visibility in _joints(annotation)[5:17].round().astype(int):
            if visibility == 2:
                on_person.append(difference[y, x] > 20)
    assert len(on_person) > 300
    assert np.mean(on_person) > 0.95


def test_left_is_the_persons_own(truth: dict[str, Any]) -> None:
    # Person 2 faces the camera all the time: their left is on the right of the picture.
    for annotation in truth["annotations"]:
        if annotation["track_id"] == 2:
            joints = _joints(annotation)
            for name in ("shoulder", "hip", "ankle", "eye"):
                left, right = (joints[BODY19.index(f"{side}_{name}"), 0] for side in ("left", "right"))
                assert left > right, (annotation["image_id"], name)


def test_motion_is_smooth(truth: dict[str, Any]) -> None:
    for person in (1, 2):
        tracks = np.stack([_joints(a)[:, :2] for a in truth["annotations"] if a["track_id"] == person])
        # Hands of a jumping jack move fastest: 1.2 m in 0.3 s is 25 px a frame here.
        assert np.abs(np.diff(tracks, axis=0)).max() < 30
        assert np.abs(np.diff(tracks, 2, axis=0)).max() < 12


def test_camera_projects_its_target_to_the_middle() -> None:
    camera = Camera(position=(0.0, -4.0, 1.0), target=(0.0, 0.0, 1.0), focal_px=400.0, size_wh=(101, 51))
    points, depth = camera.project(np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.5]]))
    np.testing.assert_allclose(points, [[50, 25], [150, 25], [50, -25]], atol=1e-9)
    np.testing.assert_allclose(depth, 4.0)


def test_nearest_triangle_wins() -> None:
    square = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0], [2.0, 2.0], [6.0, 2.0], [2.0, 6.0]])
    depth = np.array([5.0, 5.0, 5.0, 5.0, 2.0, 2.0, 2.0])
    faces = np.array([[4, 5, 6], [0, 1, 2], [1, 3, 2]])
    found, weights, z = _rasterise(square, depth, faces, (12, 10))
    assert found.shape == (10, 12)
    assert found[3, 3] == 0 and z[3, 3] == pytest.approx(2)
    assert found[7, 7] == 2 and z[7, 7] == pytest.approx(5)
    assert found[1, 1] == 1 and (found[:, 10:] == -1).all() and np.isinf(z[:, 10:]).all()
    corners = square[faces[found[3, 3]]]
    np.testing.assert_allclose(weights[3, 3] @ corners, [3, 3])


def test_rotations_are_right_handed() -> None:
    np.testing.assert_allclose(rotation(0, np.pi / 2) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation(1, np.pi / 2) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation(2, np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_walking_repeats_every_stride_and_sides_alternate() -> None:
    now, half, whole = (walk(0.0, m).angles_deg for m in (0.4, 0.4 + 1.35 / 2, 0.4 + 1.35))
    np.testing.assert_allclose(now, whole, atol=1e-9)
    left, right = JOINTS.index("left_knee"), JOINTS.index("right_knee")
    assert now[left, 0] == pytest.approx(half[right, 0])
    assert abs(now[left, 0] - now[right, 0]) > 1


@pytest.mark.parametrize("action", [stand, jumping_jacks, squats, wave, punch])
def test_actor_fades_from_one_action_into_the_next(action: Any) -> None:
    actor = Actor(Look({}, {}), ((0.0, 0.0, 0.0, 0.0), (2.0, 2.0, 0.0, 0.0)), ((0.0, walk), (2.0, action)))
    before, after = actor.pose(1.7, 1.7), actor.pose(2.3, 2.0)
    np.testing.assert_allclose(before.angles_deg, walk(1.7, 1.7).angles_deg)
    np.testing.assert_allclose(
        after.angles_deg, action(pytest.approx(0.3).expected, 2.0).angles_deg, atol=1e-6
    )
    middle = walk(2.0, 2.0).blend(action(0.0, 2.0), 0.5)
    np.testing.assert_allclose(actor.pose(2.0, 2.0).angles_deg, middle.angles_deg)
    np.testing.assert_allclose(actor.place(1.0)[0], [1, 0], atol=1e-9)


def test_poses_by_name() -> None:
    pose = Pose.of(knees=10, left_shoulder=(1, 2, 3))
    assert pose.angles_deg[JOINTS.index("right_knee")].tolist() == [10, 0, 0]
    assert pose.angles_deg[JOINTS.index("left_shoulder")].tolist() == [1, 2, 3]
