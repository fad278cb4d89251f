"""From images and boxes to poses: the right person, in the right place, with the right sides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hgpose import device, weights
from hgpose.detect import GivenBoxes, PersonDetector, WholeFrame
from hgpose.errors import InputError, OptionsError, WeightsError
from hgpose.estimate import CropEstimator, Estimator, keypoint_box, load_estimator
from hgpose.geometry import CropTransform
from hgpose.keypoints import COCO17
from hgpose.models.finder import PersonFinder
from hgpose.models.hourglass import StackedHourglass
from hgpose.network import Network, sample, warp
from hgpose.options import EstimatorOptions
from hgpose.types import Detections, Frame
from hgpose.weights import Card, save_weights

LEFT, RIGHT = COCO17.index("left_wrist"), COCO17.index("right_wrist")
CARD = Card(
    name="fake",
    task="pose",
    architecture={"kind": "stacked_hourglass", "outputs": 17, "stacks": 1, "width": 16},
    input_px=64,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    sha256="cafe",
    keypoint_set="coco17",
    box_padding=1.25,
)


class Facing:
    """Answers as a network that knows people who face it.

    Of two white dots the right one is the left wrist; every other joint is not in the crop.
    """

    def __init__(self) -> None:
        self.card, self.device = CARD, torch.device("cpu")
        self.batches: list[int] = []

    def __call__(self, crops: torch.Tensor) -> list[torch.Tensor]:
        self.batches.append(len(crops))
        maps = torch.full((len(crops), 17, 16, 16), -20.0)
        for i, crop in enumerate(crops):
            cells = crop[0].reshape(16, 4, 16, 4).mean((1, 3))
            columns = torch.nonzero(cells.amax(0) > 10)[:, 0]
            if len(columns):
                middle = int(columns.float().mean().round())
                maps[i, RIGHT, :, :middle] = (cells[:, :middle] + 1e-6).log()
                maps[i, LEFT, :, middle:] = (cells[:, middle:] + 1e-6).log()
        return [maps * 0, maps]


def draw(wrists: dict[int, tuple[float, float]], size_wh: tuple[int, int] = (200, 150)) -> NDArray[np.uint8]:
    ys, xs = np.mgrid[: size_wh[1], : size_wh[0]]
    dots = [255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 30) for x, y in wrists.values()]
    return np.repeat(np.sum(dots, axis=0).round().astype(np.uint8)[..., None], 3, axis=2)


WRISTS = {LEFT: (120.0, 70.0), RIGHT: (85.0, 95.0)}
BOX = np.array([60, 40, 140, 120], np.float32)


def crops(**changes: Any) -> CropEstimator:
    network: Any = Facing()
    return CropEstimator(network, **changes)


@pytest.mark.parametrize("flip_test", [False, True])
def test_finds_each_wrist_on_its_side(flip_test: bool) -> None:
    estimator = crops(flip_test=flip_test)
    points, scores, maps = estimator([draw(WRISTS)], [estimator.transform(BOX)])
    assert points.shape == (1, 17, 2) and points.dtype == scores.dtype == np.float32
    assert maps is None
    for wrist, place in WRISTS.items():
        # A cell spans more than 6 image px here.
        assert np.allclose(points[0, wrist], place, atol=1.5)
        assert scores[0, wrist] > 0.8
    absent = np.delete(scores[0], [LEFT, RIGHT])
    assert (absent < 0.01).all()


def test_flip_test_averages_and_swaps_back() -> None:
    transform = CropTransform.from_box(BOX, 64, 1.25)
    _, _, plain = crops()([draw(WRISTS)], [transform], keep_heatmaps=True)
    _, _, both = crops(flip_test=True)([draw(WRISTS)], [transform], keep_heatmaps=True)
    assert plain is not None and both is not None and plain.shape == (1, 17, 16, 16)
    # The answer to a mirrored crop, swapped back, is the same answer, so the mean changes little.
    assert np.abs(plain - both).max() < 0.05


def test_turned_and_mirrored_crops_are_undone() -> None:
    estimator = crops()
    transform = CropTransform((100.0, 80.0), 110.0, (64, 64), rotation_deg=20.0, mirror=True)
    points, _, _ = estimator([draw(WRISTS)], [transform])
    # In a mirrored crop without the flip test the sides are the other way round.
    assert np.allclose(points[0, LEFT], WRISTS[RIGHT], atol=1.5)
    assert np.allclose(points[0, RIGHT], WRISTS[LEFT], atol=1.5)


def test_people_of_several_images_in_batches() -> None:
    estimator = crops(batch=2)
    images, places = [], [(70.0, 80.0), (90.0, 60.0), (100.0, 100.0), (110.0, 70.0), (120.0, 90.0)]
    for x, y in places:
        images.append(draw({LEFT: (x + 20, y), RIGHT: (x - 20, y)}, (240, 160)))
    boxes = [np.array([x - 40, y - 40, x + 40, y + 40]) for x, y in places]
    points, _, _ = estimator(images, [estimator.transform(box) for box in boxes])
    network: Any = estimator.network
    assert network.batches == [2, 2, 1]
    assert np.allclose(points[:, [LEFT, RIGHT]].mean(1), places, atol=1.5)


def test_nobody_to_look_at() -> None:
    points, scores, maps = crops()([], [], keep_heatmaps=True)
    assert points.shape == (0, 17, 2) and scores.shape == (0, 17) and maps is None


def test_keypoint_box() -> None:
    points = np.array([[10, 20], [50, 100], [30, 60], [20, 30], [900, 900]], np.float32)
    box = np.array([0, 0, 1, 1], np.float32)
    sure = np.array([0.9, 0.9, 0.9, 0.9, 0.1], np.float32)
    # A tenth of the longer side, 80, around the sure ones.
    assert keypoint_box(points, sure, box).tolist() == [2, 12, 58, 108]
    assert keypoint_box(points, sure, box).dtype == np.float32
    # Three are too few.
    assert keypoint_box(points, sure * np.array([0, 1, 1, 1, 1], np.float32), box) is box


def estimator(detector: Any, **changes: Any) -> Estimator:
    return Estimator(detector, crops(), EstimatorOptions(**({"min_person_score": 0.05} | changes)))


def given(*boxes: Sequence[float] | NDArray[np.float32], scores: Sequence[float] = ()) -> GivenBoxes:
    table = np.array(boxes, np.float32).reshape(-1, 4)
    values = np.array(scores or [1.0] * len(boxes), np.float32)
    return GivenBoxes({0: Detections(table, values)}, {})


def test_one_image() -> None:
    wrists = {LEFT: (150.0, 60.0), RIGHT: (50.0, 100.0)}
    poses = estimator(WholeFrame())(draw(wrists))
    assert len(poses) == 1 and poses.keypoint_set is COCO17
    assert poses.ids.tolist() == [-1]
    assert poses.boxes.tolist() == [[-0.5, -0.5, 199.5, 149.5]]
    for wrist, place in wrists.items():
        # A crop px spans 4 image px here.
        assert np.allclose(poses.keypoints[0, wrist], place, atol=4)


def test_model_is_named() -> None:
    made = estimator(WholeFrame())
    assert (made.model.name, made.model.sha256) == ("fake", "cafe")


def test_nobody_is_invented_on_an_empty_picture() -> None:
    black = np.zeros((150, 200, 3), np.uint8)
    assert len(estimator(WholeFrame())(black)) == 0
    # The user's own boxes are answered whatever is in them.
    assert len(estimator(given(BOX))(black)) == 1


def test_frames_keep_their_own_people() -> None:
    class Everywhere:
        name, proposes, threshold = "everywhere", True, 0.0

        def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
            return [
                Detections(np.tile(BOX, (f.index, 1)), np.linspace(1, 0.5, f.index, dtype=np.float32))
                for f in frames
            ]

    frames = [Frame(draw(WRISTS), i, 0.0) for i in (2, 0, 1)]
    found = estimator(Everywhere(), heatmaps=True).frames(frames)
    assert [len(poses) for poses in found] == [2, 0, 1]
    for poses in found:
        assert poses.heatmaps is not None
        assert poses.heatmaps.maps.shape == (len(poses), 17, 16, 16)
        assert len(poses.heatmaps.transforms) == len(poses)


def test_the_pose_tells_whether_a_faint_box_shows_a_person() -> None:
    class Unsure:
        name, proposes, threshold = "unsure", True, 0.5
        score = 0.0

        def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
            return [Detections(BOX[None], np.array([self.score], np.float32)) for _ in frames]

    def shown(score: float, image: NDArray[np.uint8]) -> bool:
        finder = Unsure()
        finder.score = score
        return len(estimator(finder)(image)) == 1

    # Two wrists of 17 keypoints are a score of about 0.11: the finder must be surer than usual.
    assert [shown(score, draw(WRISTS)) for score in (0.55, 0.65)] == [False, True]

    # With all keypoints there a faint box will do.
    class All(Facing):
        def __call__(self, crops: torch.Tensor) -> list[torch.Tensor]:
            maps = torch.full((len(crops), 17, 16, 16), -20.0)
            for k in range(17):
                maps[:, k, 2 + 3 * (k // 4), 2 + 3 * (k % 4)] = 20
            return [maps]

    network: Any = All()
    for score, people in ((0.35, 0), (0.38, 1)):
        finder = Unsure()
        finder.score = score
        assert len(Estimator(finder, CropEstimator(network), EstimatorOptions())(draw(WRISTS))) == people


def test_largest_person_and_most_people() -> None:
    boxes = [[0, 0, 10, 10], [60, 40, 140, 120], [60, 40, 100, 80]]
    detector = given(*boxes, scores=[0.9, 0.6, 0.5])
    image = draw(WRISTS)
    assert estimator(detector, person="largest")(image).boxes.tolist() == [boxes[1]]
    assert estimator(detector, max_people=2)(image).boxes.tolist() == boxes[:2]
    assert len(estimator(detector)(image)) == 3
    assert len(estimator(given(), person="largest")(image)) == 0


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of untrained weights under the shipped names."""
    torch.manual_seed(0)
    pose, finder = StackedHourglass(17, 1, 16), PersonFinder(16)
    save_weights(pose.state_dict(), CARD, tmp_path / "pose-body19.safetensors")
    person = Card("person", "person", {"kind": "person_finder", "width": 16}, 64, CARD.mean, CARD.std)
    save_weights(finder.state_dict(), person, tmp_path / "person.safetensors")
    monkeypatch.setattr(weights, "weights_folder", lambda: tmp_path)
    return tmp_path


def test_load_estimator(shipped: Path) -> None:
    options = EstimatorOptions(device="cpu", max_people=3, min_person_score=0)
    made = load_estimator(options)
    assert isinstance(made.detector, PersonDetector) and made.device.type == "cpu"
    assert len(made.model.sha256) == 64
    # Untrained, with a threshold of 0, it sees people everywhere.
    poses = made(draw(WRISTS))
    assert len(poses) == 3 and np.isfinite(poses.keypoints).all()


def test_load_estimator_with_other_detectors(shipped: Path, tmp_path: Path) -> None:
    (shipped / "person.safetensors").unlink()
    assert isinstance(
        load_estimator(EstimatorOptions(detector="whole-frame", device="cpu")).detector, WholeFrame
    )
    file = tmp_path / "my boxes.csv"
    file.write_text("frame,x1,y1,x2,y2\n0,1,2,3,4\n")
    made = load_estimator(EstimatorOptions(detector=f"boxes:{file}", device="cpu"))
    assert made(draw(WRISTS)).boxes.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(InputError, match="no such file of boxes"):
        load_estimator(EstimatorOptions(detector="boxes:gone.csv", device="cpu"))
    with pytest.raises(WeightsError, match="person: no such weights"):
        load_estimator(EstimatorOptions(device="cpu"))
    with pytest.raises(WeightsError, match="huge: no such weights; shipped are: pose-body19"):
        load_estimator(EstimatorOptions(weights="huge", device="cpu"))
    with pytest.raises(OptionsError, match="abacus"):
        load_estimator(EstimatorOptions(device="abacus"))


def test_network_normalises_as_the_card_says() -> None:
    class Echo(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels

    echo = Network(Echo().eval(), CARD, torch.device("cpu"), False)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    expected = (image.transpose(2, 0, 1) / 255 - 0.5) / 0.25
    whole = CropTransform((31.5, 31.5), 64, (64, 64))
    assert np.allclose(echo(warp([image], [whole], echo.device))[0], expected, atol=1e-5)


@pytest.mark.parametrize("width_px", [40.0, 64.0, 150.0, 317.0])
@pytest.mark.parametrize(("rotation", "mirror"), [(0.0, False), (25.0, False), (-70.0, True)])
def test_crops_of_a_gpu_are_those_of_a_cpu(width_px: float, rotation: float, mirror: bool) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 12, 3), np.uint8)
    image = np.asarray(cv2.resize(coarse, (300, 200), interpolation=cv2.INTER_CUBIC), np.uint8)
    # The window leaves the image on one side.
    transform = CropTransform((240.0, 90.0), width_px, (96, 64), rotation, mirror)
    part = transform.part((300, 200))
    theta = torch.from_numpy(part.grid_matrix(transform.size_wh)).float()[None]
    grid = torch.nn.functional.affine_grid(theta, [1, 3, 64, 96], align_corners=False)[0]
    ours = sample(torch.from_numpy(image), part, grid).permute(1, 2, 0).numpy()
    difference = abs(ours - transform.warp(image))
    # OpenCV rounds, counts places in 1/32 px, weighs the rims of blocks, and is harder at the image's edge.
    assert np.median(difference) < 1 and np.quantile(difference, 0.97) < 6


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX2", reason="not promised for other processors"
)
def test_a_second_thread_changes_no_bit() -> None:
    image = np.random.default_rng(0).integers(0, 256, (180, 320, 3), dtype=np.uint8)
    boxes = np.array([[40, 20, 120, 170], [200, 10, 280, 175]], np.float32)
    estimator = load_estimator(EstimatorOptions(device="cpu", half=False, min_person_score=0))
    finder = estimator.detector
    assert isinstance(finder, PersonDetector)
    finder.threshold = 0.0
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            frame = Frame(image, 0, 0.0)
            found = finder([frame])[0]
            poses = [
                estimator.poses([frame], [Detections(boxes[:n], np.ones(n, np.float32))])[0] for n in (1, 2)
            ]
            answers.append(
                b"".join([found.boxes.tobytes(), found.scores.tobytes()])
                + b"".join(p.keypoints.tobytes() + p.scores.tobytes() for p in poses)
            )
    finally:
        torch.set_num_threads(threads)
    assert len(set(answers)) == 1


@pytest.mark.parametrize(
    ("cores", "bfloat16", "threads"),
    [(1, False, 1), (2, False, 2), (2, True, 1), (3, False, 2), (8, False, 7), (8, True, 7), (32, False, 16)],
)
def test_networks_leave_a_core_where_it_costs_little(
    monkeypatch: pytest.MonkeyPatch, cores: int, bfloat16: bool, threads: int
) -> None:
    said: list[int] = []
    monkeypatch.setattr(device, "usable_cores", lambda: cores)
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda _: bfloat16)
    # As PyTorch has it on processors with two threads a core from 16 cores on.
    monkeypatch.setattr(torch, "get_num_threads", lambda: min(cores, 16))
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    device.leave_a_core()
    assert said == [threads]


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_awake_for_a_moment_unless_told_otherwise(given: dict[str, str]) -> None:
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    kept = {key: value for key, value in os.environ.items() if key not in names}
    code = f"import os, hgpose; print(*(os.environ.get(name) for name in {names}))"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **given}, capture_output=True, text=True, check=True
    ).stdout.split()
    if "OMP_WAIT_POLICY" in given:
        assert found == ["ACTIVE", "None"]
    else:
        assert found == ["None", given.get("GOMP_SPINCOUNT", "3000")]
