from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from walkers import HEIGHT, WIDTH, Walker, body, box_of, frame, nobody, poses_of

from hgpose.demo import CLIP
from hgpose.detect import iou
from hgpose.errors import OptionsError
from hgpose.estimate import Estimator
from hgpose.follow import CutDetector, Follower
from hgpose.keypoints import BODY19
from hgpose.options import EstimatorOptions
from hgpose.sinks.record import people as records
from hgpose.sources.video import VideoSource
from hgpose.types import Detections, Frame, Poses

FPS = Fraction(30)


#: Of the i-th walker on frame t; a pose's may be one a keypoint.
Score = Callable[[int, int], Any]


class Finder:
    """Finds all there are."""

    name, threshold = "person", 0.5

    def __init__(self, walkers: Sequence[Walker], proposes: bool = True) -> None:
        self.walkers, self.proposes = walkers, proposes
        self.score: Score = lambda i, t: 0.9 - 0.01 * i
        self.looked: list[int] = []

    def truth(self, t: int) -> list[NDArray[np.float32]]:
        return [p for w in self.walkers if (p := w.at(t)) is not None]

    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        self.looked += [f.index for f in frames]
        return [self._people(f) for f in frames]

    def _people(self, frame: Frame) -> Detections:
        t = frame.index
        here = [(i, p) for i, w in enumerate(self.walkers) if (p := w.at(t)) is not None]
        found = sorted(((s, i, box_of(p)) for i, p in here if (s := self.score(i, t)) > 0), reverse=True)
        if not found:
            return nobody()
        return Detections(np.array([box for *_, box in found]), np.array([f[0] for f in found], np.float32))


class Network(Estimator):
    """Sees in each crop the person who fills it best."""

    keypoint_set = BODY19

    def __init__(self, finder: Finder, options: EstimatorOptions) -> None:
        self.detector, self.finder, self.options = finder, finder, options
        self.faults: dict[int, NDArray[np.int64]] = {}
        self.score: Score = lambda i, t: 0.8
        self.nobody = 0.0
        self.somewhere = np.random.default_rng(0).random((len(BODY19), 2), np.float32)

    def poses(self, frames: Sequence[Frame], people: Sequence[Detections]) -> list[Poses]:
        return [self._poses(f, p) for f, p in zip(frames, people, strict=True)]

    def _poses(self, frame: Frame, people: Detections) -> Poses:
        t = frame.index
        here = [(i, p) for i, w in enumerate(self.finder.walkers) if (p := w.at(t)) is not None]
        if not len(people):
            return Poses.empty(BODY19)
        overlap = iou(people.boxes, np.array([box_of(p) for _, p in here], np.float32).reshape(-1, 4))
        best = [here[int(row.argmax())] if (row > 0.3).any() else None for row in overlap]
        # Where nobody is something that looks a little like it may be.
        rows = [row for row, who in enumerate(best) if who is not None or self.nobody > 0]
        if not rows:
            return Poses.empty(BODY19)
        points, scores = [], []
        for row in rows:
            who, box = best[row], people.boxes[row]
            points.append(who[1] if who else box[:2] + (box[2:] - box[:2]) * self.somewhere)
            score = self.score(who[0], t) if who else self.nobody
            scores.append(np.broadcast_to(np.float32(score), len(BODY19)))
        found = poses_of(points)
        order = self.faults.get(frame.index, np.arange(len(BODY19)))
        return replace(
            found,
            keypoints=found.keypoints[:, order],
            scores=np.array(scores, np.float32),
            boxes=people.boxes[rows],
            box_scores=people.scores[rows],
        )


def run(
    walkers: Sequence[Walker],
    count: int,
    every: int = 10,
    images: dict[int, NDArray[np.uint8]] | None = None,
    faults: dict[int, NDArray[np.int64]] | None = None,
    proposes: bool = True,
    live: bool = False,
    fps: Fraction = FPS,
    found: Score = lambda i, t: 0.9 - 0.01 * i,
    posed: Score = lambda i, t: 0.8,
    background: float = 0.0,
    **options: Any,
) -> tuple[list[Poses], Finder, Follower]:
    finder = Finder(walkers, proposes)
    finder.score = found
    network = Network(finder, EstimatorOptions(**options))
    network.faults, network.score, network.nobody = faults or {}, posed, background
    follower = Follower(network, every, fps, live)
    picture = None
    frames = []
    for t in range(count):
        picture = (images or {}).get(t, picture)
        frames.append(frame(t, float(fps), picture))
    finished = [done for some in follower([f] for f in frames) for done in some]
    assert [f.index for f, _ in finished] == list(range(count))
    return [poses for _, poses in finished], finder, follower


def test_the_detector_runs_a_fifth_as_often_and_nobody_is_lost() -> None:
    found, finder, follower = run([Walker(40, 2.5), Walker(600, -1, ground=220, height=120)], 200)
    truth = [len(finder.truth(t)) for t in range(200)]
    assert [len(poses) for poses in found] == truth
    assert follower.detections == len(finder.looked) <= 40
    assert {i for poses in found for i in poses.ids.tolist()} == {1, 2}


@pytest.mark.parametrize("first", range(41, 52, 3))
def test_who_enters_between_detections_is_there_from_the_first_frame(first: int) -> None:
    found, finder, _ = run([Walker(100, 0), Walker(400, 2, first=first)], 100, every=10)
    assert [poses.ids.tolist() for poses in found] == [[1]] * first + [[1, 2]] * (100 - first)
    # In all cases but one it was found later and then traced back.
    assert (first in finder.looked) == (first == 41)
    truth = [finder.truth(t)[1] for t in range(first, 100)]
    # A low-pass filter at the ends takes some of the swing of hands and feet.
    np.testing.assert_allclose([p.keypoints[1] for p in found[first:]], truth, atol=8)


@pytest.mark.parametrize("first", range(41, 52, 3))
def test_a_camera_shows_who_enters_within_n_frames(first: int) -> None:
    found, _, _ = run([Walker(100, 0), Walker(400, 2, first=first)], 100, every=10, live=True)
    seen = next(t for t, poses in enumerate(found) if 2 in poses.ids)
    # And two more to tell a person from a ghost.
    assert first <= seen < first + 10 + 2


@pytest.mark.parametrize("every", [1, 8])
@pytest.mark.parametrize("beside", [40, 50, 60])
def test_a_faint_thing_beside_a_person_is_nobody(every: int, beside: int) -> None:
    person, thing = Walker(300, 0), Walker(300 + beside, 0)
    # The finder sees the person only now and then.
    found, _, _ = run(
        [person, thing],
        150,
        every,
        found=lambda i, t: 0.31 if i else 0.9 * (t % 3 > 0),
        posed=lambda i, t: 0.12 if i else 0.8,
    )
    assert [poses.ids.tolist() for poses in found] == [[1]] * 150
    np.testing.assert_allclose([p.keypoints[0, 0, 0] for p in found], 310, atol=2)


def test_a_faint_person_is_one_by_the_pose() -> None:
    found, _, _ = run([Walker(300, 0)], 60, found=lambda i, t: 0.4)
    assert all(len(poses) == 1 for poses in found)
    found, _, _ = run([Walker(300, 0)], 60, found=lambda i, t: 0.4, posed=lambda i, t: 0.3)
    assert not any(len(poses) for poses in found)


def test_the_box_of_someone_whose_legs_are_unsure_keeps_them() -> None:
    legs = [name.endswith(("knee", "ankle")) for name in BODY19.names]
    found, _, _ = run(
        [Walker(300, 0)],
        100,
        # From then on nobody but the pose network sees him.
        found=lambda i, t: 0.9 * (t < 20),
        posed=lambda i, t: np.where(legs, 0.1, 0.8) if t >= 20 else 0.8,
    )
    assert all(poses.boxes[0, 3] > 315 for poses in found)


@pytest.mark.parametrize("live", [False, True])
def test_a_thing_that_is_sure_once_is_nobody(live: bool) -> None:
    found, _, _ = run(
        [Walker(300, 0)],
        100,
        every=1,
        live=live,
        found=lambda i, t: 0.7 if t == 24 else 0.31,
        posed=lambda i, t: 0.12,
    )
    assert not any(len(poses) for poses in found)


@pytest.mark.parametrize("background", [0.0, 0.12])
def test_who_leaves_is_gone_even_if_the_background_looks_like_somebody(background: float) -> None:
    found, _, _ = run([Walker(300, 0, last=59)], 150, every=8, background=background)
    assert all(len(poses) == 1 for poses in found[:60])
    # Three looks of the finder.
    assert not any(len(poses) for poses in found[60 + 3 * 8 :])


def test_who_was_hidden_comes_back_though_no_more_people_may_be_shown() -> None:
    class Hidden(Walker):
        def at(self, t: int) -> NDArray[np.float32] | None:
            return None if 60 <= t < 75 else super().at(t)

    walkers = [Hidden(100, 0), Walker(450, 0, first=30)]
    found, _, _ = run(walkers, 150, max_people=1)
    assert all(poses.ids.tolist() == [1] for poses in [*found[:60], *found[80:]])


def test_who_was_not_there_before_is_not_put_in() -> None:
    # The second person appears where the first one stands: traced back, he would be the first one.
    found, _, _ = run([Walker(300, 0), Walker(310, 0, first=45, ground=330)], 80, every=10)
    assert all(len(poses) == 1 for poses in found[:45])


def test_where_people_overlap_the_detector_looks_on_every_second_frame() -> None:
    # Side by side, one a little taller: boxes overlap by more than a third.
    _, finder, _ = run([Walker(300, 0), Walker(330, 0, height=210)], 60, every=10)
    assert finder.looked[-10:] == list(range(41, 60, 2))


def test_where_nobody_is_the_detector_looks_every_other_time() -> None:
    _, finder, _ = run([], 50, every=10)
    assert finder.looked == list(range(0, 50, 5))


@pytest.mark.parametrize("smooth", ["full", "live", "none"])
def test_keypoints_are_those_of_the_person(smooth: str) -> None:
    walker = Walker(300, 0)
    found, finder, _ = run([walker], 40, smooth=smooth)
    for t, poses in enumerate(found):
        # Hands swing 0.11 of 200 px; a low-pass filter may take some of it.
        np.testing.assert_allclose(poses.keypoints[0], finder.truth(t)[0], atol=0 if smooth == "none" else 8)


def scene(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((HEIGHT // 6, WIDTH // 8, 1))).astype(np.uint8)


@pytest.mark.parametrize("cut", [30, 37])
def test_nothing_is_carried_over_a_cut(cut: int) -> None:
    # One stands where the other stood, some px to the side.
    walkers = [Walker(300, 0, last=cut - 1), Walker(312, 0, first=cut)]
    found, finder, _ = run(walkers, 60, images={0: scene(0), cut: scene(1)})
    assert cut in finder.looked
    assert [poses.ids.tolist() for poses in found] == [[1]] * cut + [[2]] * (60 - cut)
    nose = np.array([poses.keypoints[0, 0, 0] for poses in found])
    np.testing.assert_allclose(nose[:cut], 310, atol=0.01)
    np.testing.assert_allclose(nose[cut:], 322, atol=0.01)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shortest_scenes_show_their_people(count: int) -> None:
    found, _, _ = run([Walker(300, 0)], count)
    assert [poses.ids.tolist() for poses in found] == [[1]] * count
    images = {0: scene(0), count: scene(1), 2 * count: scene(2)}
    found, _, _ = run([Walker(300, 0)], 3 * count, images=images)
    assert [poses.ids.tolist() for poses in found] == [[1]] * count + [[2]] * count + [[3]] * count


def test_a_cut_is_neither_light_nor_movement() -> None:
    image = scene(3)
    bright = (image * 0.5 + 100).astype(np.uint8)
    moved = np.roll(image, 20, axis=1)
    covered = image.copy()
    covered[50:, 200:360] = 20
    is_cut = CutDetector()
    flat, dark = np.full_like(image, 90), np.zeros_like(image)
    shown = [image, image, bright, image, moved, image, covered, scene(4), scene(4)]
    assert [is_cut(i) for i in shown] == [False] * 7 + [True, False]
    # Behind a flash or a black frame may be the same scene, or another.
    shown = [dark, scene(4), flat, dark, scene(4), dark, scene(5)]
    assert [is_cut(i) for i in shown] == [False] * 6 + [True]


def test_a_cut_between_views_of_one_place_is_more_of_a_change_than_before() -> None:
    a, b = (scene(seed).astype(np.float64) for seed in (1, 2))
    # Correlates with the first by 0.6.
    other_view = (128 + 0.6 * (a - 128) + 0.8 * (b - 128)).clip(0, 255).astype(np.uint8)
    is_cut = CutDetector()
    assert [is_cut(i) for i in [scene(1)] * 5 + [other_view] * 5] == [False] * 5 + [True] + [False] * 4
    # In a wild scene the same change is nothing special.
    wild = [np.roll(scene(1), 20 * t, axis=1) for t in range(8)]
    is_cut = CutDetector()
    assert not any(is_cut(image) for image in wild[1:])


@pytest.mark.parametrize("grey", [0, 255])
def test_a_flash_or_a_black_frame_ends_nothing(grey: int) -> None:
    images = {0: scene(0), 30: np.full_like(scene(0), grey), 31: scene(0)}
    found, _, _ = run([Walker(300, 0)], 60, images=images)
    assert [poses.ids.tolist() for poses in found] == [[1]] * 60


def test_there_is_no_cut_in_the_demo() -> None:
    is_cut = CutDetector()
    with VideoSource(CLIP) as source:
        assert not any(is_cut(f.image) for f in source)


def test_users_boxes_are_kept_and_looked_at_on_every_frame() -> None:
    walkers = [Walker(100, 3), Walker(110, 3, first=4, last=4), Walker(500, 0, first=8, last=8)]
    found, finder, _ = run(walkers, 20, proposes=False)
    assert finder.looked == list(range(20))
    assert [len(poses) for poses in found] == [len(finder.truth(t)) for t in range(20)]
    np.testing.assert_array_equal(found[7].boxes[0], box_of(finder.truth(7)[0]))


def test_without_tracking_every_frame_is_by_itself() -> None:
    found, finder, _ = run([Walker(100, 3, first=5, last=5), Walker(400, 0)], 10, track=False)
    assert finder.looked == list(range(10))
    assert [poses.ids.tolist() for poses in found] == [[-1]] * 5 + [[-1, -1]] + [[-1]] * 4
    np.testing.assert_array_equal(found[9].keypoints[0], finder.truth(9)[0])


SWAP = np.array(BODY19.flip_order)
LIMBS = [i for i, name in enumerate(BODY19.names) if "_" in name and not name.endswith(("eye", "ear", "top"))]


@pytest.mark.parametrize(("fix_sides", "wrong"), [(True, 0), (False, 3)])
def test_sides_are_put_right(fix_sides: bool, wrong: int) -> None:
    faults = dict.fromkeys((20, 21, 30), SWAP)
    found, finder, follower = run([Walker(200, 1)], 50, faults=faults, fix_sides=fix_sides, smooth="none")
    assert follower.sides_corrected == 3 - wrong
    shoulder = BODY19.index("left_shoulder")
    apart = [abs(p.keypoints[0, shoulder, 0] - finder.truth(t)[0][shoulder, 0]) for t, p in enumerate(found)]
    assert sum(a > 1 for a in apart) == wrong


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("part", ["all", "shoulder", "hip"])
def test_shoulders_and_hips_stay_where_most_frames_have_them(part: str, live: bool) -> None:
    fault = np.array(
        [j if part in {"all", BODY19.names[i].split("_")[-1]} else i for i, j in enumerate(SWAP)]
    )
    faults = dict.fromkeys((*range(20, 30), *range(70, 84)), fault)
    found, finder, follower = run([Walker(200, 1)], 120, faults=faults, smooth="none", live=live)
    assert follower.sides_corrected == 24
    trunk = [i for i, name in enumerate(BODY19.names) if name.endswith(("shoulder", "hip"))]
    # A camera shows nobody before he is confirmed.
    for t in range(10, 120):
        np.testing.assert_array_equal(found[t].keypoints[0, trunk], finder.truth(t)[0][trunk])


def test_who_has_the_other_side_for_long_is_believed() -> None:
    faults = dict.fromkeys(range(60, 180), SWAP)
    found, finder, _ = run([Walker(100, 1)], 180, faults=faults, smooth="none")
    shoulder = BODY19.index("left_shoulder")
    other = [
        abs(p.keypoints[0, shoulder, 0] - finder.truth(t)[0][shoulder, 0]) > 1 for t, p in enumerate(found)
    ]
    # Half of a second on, most frames say so.
    assert not any(other[:60]) and all(other[75:]) and np.count_nonzero(np.diff(other)) == 1


@dataclass(frozen=True)
class Turning(Walker):
    """Broad as an upper body; turns round once, from the tenth frame on, in ``turn_s``."""

    fps: float = 30.0
    turn_s: float = 1.0

    def at(self, t: int) -> NDArray[np.float32] | None:
        points = body(self.start_x, self.ground, self.height)
        turn = min(max((t - 10.5) / self.fps / self.turn_s, 0), 1)
        points[:, 0] = self.start_x + 4 * (points[:, 0] - self.start_x) * math.cos(math.pi * turn)
        return points


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    ("fps", "turn_s"), [(30, 0.4), (30, 1.0), (15, 0.5), (15, 1.1), (10, 0.6), (10, 1.5)]
)
def test_who_turns_round_is_believed_at_once(fps: int, turn_s: float, live: bool) -> None:
    turning = Turning(300, 0, fps=fps, turn_s=turn_s)
    found, finder, _ = run([turning], 10 + 4 * fps, fps=Fraction(fps), smooth="none", live=live)
    trunk = [i for i, name in enumerate(BODY19.names) if name.endswith(("shoulder", "hip"))]
    for t in range(10, len(found)):
        np.testing.assert_allclose(found[t].keypoints[0, trunk], finder.truth(t)[0][trunk], atol=0.5)


def test_a_limb_is_put_right_with_its_unsure_joints() -> None:
    hidden = [0.1 if name in {"left_shoulder", "right_wrist"} else 0.8 for name in BODY19.names]
    found, finder, _ = run(
        [Turning(300, 0, turn_s=math.inf)],
        80,
        faults=dict.fromkeys(range(30, 44), SWAP),
        posed=lambda i, t: hidden if 34 <= t < 36 else 0.8,
        smooth="none",
    )
    for t, poses in enumerate(found):
        np.testing.assert_array_equal(poses.keypoints[0, LIMBS], finder.truth(t)[0][LIMBS])


@dataclass(frozen=True)
class NarrowOnce(Walker):
    """Broad as an upper body but for one frame."""

    narrow: int = 0

    def at(self, t: int) -> NDArray[np.float32] | None:
        points = body(self.start_x, self.ground, self.height)
        points[:, 0] = self.start_x + (0.5 if t == self.narrow else 4) * (points[:, 0] - self.start_x)
        return points


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("live", [False, True])
def test_an_exchange_that_begins_unseen_does_not_turn_those_after_it(length: int, live: bool) -> None:
    walker = NarrowOnce(300, 0, narrow=40)
    faults = dict.fromkeys(range(41, 41 + length), SWAP)
    found, finder, _ = run([walker], 100, faults=faults, smooth="none", live=live)
    trunk = [i for i, name in enumerate(BODY19.names) if name.endswith(("shoulder", "hip"))]
    for t in range(10, 100):
        # A camera hears too late of it to put the exchanged frames right.
        if not (live and t in faults):
            np.testing.assert_allclose(found[t].keypoints[0, trunk], finder.truth(t)[0][trunk], atol=0.5)


@dataclass(frozen=True)
class HipsAside(Walker):
    """Broad as an upper body, but for a second the hips are a third as wide."""

    def at(self, t: int) -> NDArray[np.float32] | None:
        points = body(self.start_x, self.ground, self.height)
        points[:, 0] = self.start_x + 4 * (points[:, 0] - self.start_x)
        if 30 <= t < 60:
            hips = [BODY19.index("left_hip"), BODY19.index("right_hip")]
            points[hips, 0] = points[hips, 0].mean() + (points[hips, 0] - points[hips, 0].mean()) / 3
        return points


def test_hips_go_along_with_shoulders_of_which_more_is_known() -> None:
    walker = HipsAside(300, 0)
    found, finder, _ = run([walker], 100, faults=dict.fromkeys(range(41, 47), SWAP), smooth="none")
    trunk = [i for i, name in enumerate(BODY19.names) if name.endswith(("shoulder", "hip"))]
    for t, poses in enumerate(found):
        np.testing.assert_allclose(poses.keypoints[0, trunk], finder.truth(t)[0][trunk], atol=0.5)


@pytest.mark.parametrize("first", [0, 20])
def test_first_frames_are_put_right_as_far_as_the_next_tell(first: int) -> None:
    walker = Walker(200, 1, first=first)
    faults = dict.fromkeys(range(first, first + 3), SWAP)
    found, finder, _ = run([walker], 60, faults=faults, smooth="none")
    for t in range(first, 60):
        np.testing.assert_array_equal(found[t].keypoints[0, LIMBS], finder.truth(t)[0][LIMBS])


@dataclass(frozen=True)
class SlowlyFilmed(Walker):
    """Takes two steps a second, however few frames there are."""

    fps: float = 30.0

    def at(self, t: int) -> NDArray[np.float32] | None:
        return body(self.start_x, self.ground, self.height, t / self.fps + 0.25)


@pytest.mark.parametrize("fps", [2, 3, 4, 5, 8])
def test_steps_between_few_frames_are_no_exchange_of_sides(fps: int) -> None:
    found, finder, follower = run([SlowlyFilmed(300, 0, fps=fps)], 30, fps=Fraction(fps), smooth="none")
    assert follower.sides_corrected == 0
    for t, poses in enumerate(found):
        np.testing.assert_array_equal(poses.keypoints[0], finder.truth(t)[0])


@pytest.mark.parametrize("heights_per_s", [0, 0.8, 2])
@pytest.mark.parametrize("fps", [1, 2, 3, 5, 10])
def test_between_few_frames_nobody_who_moves_is_lost(fps: int, heights_per_s: float) -> None:
    speed = heights_per_s * 200 / fps
    count = min(int(600 / max(speed, 1)), 20)
    found, _, _ = run([Walker(20, speed)], count, fps=Fraction(fps))
    assert [poses.ids.tolist() for poses in found] == [[1]] * count


def test_who_shows_on_one_of_few_frames_is_shown() -> None:
    found, _, _ = run([Walker(100, 0), Walker(400, 0, first=5, last=5)], 10, fps=Fraction(1))
    assert [poses.ids.tolist() for poses in found] == [[1]] * 5 + [[1, 2]] + [[1]] * 4


def test_raw_keypoints_stand_beside_the_smoothed() -> None:
    found, finder, _ = run([Walker(200, 1)], 30, keep_raw=True, faults={12: SWAP})
    raw = found[12].raw
    assert raw is not None
    np.testing.assert_array_equal(raw[0, :, :2], finder.truth(12)[0][SWAP])
    record = records(found[12])[0]
    assert record["keypoints_raw"][0][2] == pytest.approx(0.8)
    assert len(record["keypoints_raw"]) == len(BODY19)
    assert "keypoints_raw" not in records(run([Walker(200, 1)], 8)[0][4])[0]


def test_a_person_missed_for_a_moment_is_put_in_and_marked() -> None:
    walkers = [Walker(200, 2, last=19), Walker(246, 2, first=23)]
    found, _, _ = run(walkers, 50, keep_raw=True)
    assert [poses.ids.tolist() for poses in found] == [[1]] * 50
    for t in (20, 21, 22):
        # In a straight line, but for the swing of a step.
        assert found[t].keypoints[0, 0, 0] == pytest.approx(210 + 2 * t, abs=1)
        record = records(found[t])[0]
        assert record["interpolated"] == list(range(len(BODY19)))
        assert record["keypoints_raw"][0] == [None, None, None]
        assert record["score"] == pytest.approx(0.8)
    assert "interpolated" not in records(found[19])[0]


@pytest.mark.parametrize(("fps", "gap", "bridged"), [(30, 6, True), (60, 10, True), (60, 13, False)])
def test_a_gap_is_bridged_as_a_whole_or_not_at_all(fps: int, gap: int, bridged: bool) -> None:
    walkers = [Walker(200, 0, last=39), Walker(200, 0, first=40 + gap)]
    found, _, _ = run(walkers, 80 + gap, every=1, fps=Fraction(fps))
    assert [len(poses) for poses in found] == [1] * 40 + [int(bridged)] * gap + [1] * 40


def test_frames_wait_no_longer_than_they_must() -> None:
    network = Network(Finder([Walker(100, 1)]), EstimatorOptions())
    follower = Follower(network, 5, FPS)
    taken = 0

    def feed() -> Any:
        nonlocal taken
        for t in range(100):
            taken += 1
            yield [frame(t)]

    done = 0
    for some in follower(feed()):
        done += len(some)
        assert taken - done <= 12
    assert done == 100


def test_live_no_frame_waits() -> None:
    network = Network(Finder([Walker(100, 1)]), EstimatorOptions())
    follower = Follower(network, 5, FPS, live=True)
    batches = follower([frame(t)] for t in range(20))
    people = [[len(poses) for _, poses in next(batches)] for _ in range(20)]
    # Who has just come must be seen thrice.
    assert people == [[0], [0], *[[1]] * 18]
    assert list(batches) == [[]]


@pytest.mark.parametrize("person", ["largest", "center", "id:2"])
def test_one_person_of_many(person: str) -> None:
    walkers = [Walker(100, 0, height=120), Walker(330, 0, height=200), Walker(560, 0, height=120)]
    found, _, _ = run(walkers, 20, person=person)
    assert [poses.ids.tolist() for poses in found] == [[2]] * 20
    np.testing.assert_allclose(found[9].keypoints[0, 0, 0], 340, atol=1)


def test_most_people_are_those_followed_longest() -> None:
    walkers = [Walker(100, 0, first=30), Walker(330, 0), Walker(560, 0, first=3)]
    found, _, _ = run(walkers, 60, every=5, max_people=2)
    assert found[-1].ids.tolist() == [1, 2]
    np.testing.assert_allclose(found[-1].keypoints[:, 0, 0], [340, 570], atol=1)


@pytest.mark.parametrize(
    "options",
    [
        {"person": "id:x"},
        {"person": "id:1", "track": False},
        {"smooth": "best"},
        {"smooth": "full", "track": False},
        {"keep_raw": True, "track": False},
        {"lost_s": -1.0},
    ],
)
def test_options_that_contradict(options: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        EstimatorOptions(**options)


def test_what_cannot_be() -> None:
    full = Network(Finder([]), EstimatorOptions(smooth="full"))
    with pytest.raises(OptionsError, match="live or none"):
        Follower(full, 5, FPS, live=True)
    by_id = Network(Finder([]), EstimatorOptions(person="id:1"))
    with pytest.raises(OptionsError, match="no ids"):
        Follower(by_id, 5, None)
