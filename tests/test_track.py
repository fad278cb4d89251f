from __future__ import annotations

from dataclasses import replace

import motmetrics
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from walkers import WIDTH, Walker, body, box_of, frame, poses_of

from hgpose.detect import choose, iou
from hgpose.follow import DelayLine
from hgpose.keypoints import BODY19
from hgpose.options import EstimatorOptions
from hgpose.track import Tracker, clothes, join
from hgpose.types import Poses

FPS = 30


def observe(
    walkers: list[Walker], t: int, rng: np.random.Generator, misses: float, false: float
) -> list[NDArray[np.float32]]:
    """What a bad detector and network make of frame t: people missed and jittered, people that are none."""
    seen: list[NDArray[np.float32]] = []
    front: list[float] = []
    for walker in walkers:
        if (points := walker.at(t)) is None:
            continue
        x = float(points[0, 0])
        hidden = any(abs(x - other) < 25 for other in front)
        front.append(x)
        if not hidden and rng.random() >= misses:
            noise = rng.normal(0, 2, points.shape) + rng.normal(0, 2, 2)
            seen.append((points + noise).astype(np.float32))
    for _ in range(rng.binomial(len(walkers), false)):
        seen.append(body(rng.uniform(30, WIDTH - 30), rng.uniform(250, 350), rng.uniform(100, 250)))
    return seen


Images = dict[int, NDArray[np.uint8]]


def follow(
    seen: list[list[NDArray[np.float32]]],
    options: EstimatorOptions | None = None,
    images: Images | None = None,
) -> list[Poses]:
    """Each frame's people, from what was seen of them; on grey but for the images given."""
    tracker, line = Tracker(BODY19), DelayLine(BODY19, options or EstimatorOptions(), FPS)
    finished = []
    for t, people in enumerate(seen):
        poses = poses_of(people)
        image = (images or {}).get(t, frame(t).image)
        tracker.predict(t / FPS)
        tracker.update(poses, np.ones(len(poses), np.bool_), True, t, t / FPS, image)
        finished += line.push(frame(t), tracker.tracks)
    finished += line.flush()
    assert [f.index for f, _ in finished] == list(range(len(seen)))
    return [poses for _, poses in finished]


def score(walkers: list[Walker], found: list[Poses]) -> dict[str, float]:
    """IDF1 and the number of exchanged ids, at IoU 0.5; who is hidden counts, too."""
    events = motmetrics.MOTAccumulator(auto_id=True)
    for t, poses in enumerate(found):
        truth = {i: p for i, walker in enumerate(walkers) if (p := walker.at(t)) is not None}
        boxes = np.array([box_of(p) for p in truth.values()]).reshape(-1, 4)
        apart = 1 - iou(boxes, poses.boxes)
        events.update(list(truth), poses.ids.tolist(), np.where(apart > 0.5, np.nan, apart))
    table = motmetrics.metrics.create().compute(events, metrics=["idf1", "num_switches"])
    return {name: float(table[name].iloc[0]) for name in table}


SCENES = {
    "two meet": [Walker(30, 3), Walker(610, -3)],
    "one overtakes": [Walker(100, 1), Walker(20, 4)],
    "one passes two who stand": [Walker(200, 0), Walker(300, 0), Walker(30, 4)],
    "three and a gap": [Walker(30, 4), Walker(610, -3, first=20), Walker(40, 3.5, first=90)],
}


@pytest.mark.parametrize("scene", SCENES)
def test_ids_hold_through_crossings_misses_and_ghosts(scene: str) -> None:
    walkers = SCENES[scene]
    results = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        found = follow([observe(walkers, t, rng, misses=0.2, false=0.05) for t in range(150)])
        results.append(score(walkers, found))
    assert np.mean([r["idf1"] for r in results]) >= 0.95
    assert [r["num_switches"] for r in results] == [0, 0, 0]


def test_without_noise_nobody_is_missed_from_the_first_frame_on() -> None:
    walker = Walker(100, 3, first=7, last=60)
    seen = [[p] if (p := walker.at(t)) is not None else [] for t in range(80)]
    assert [poses.ids.tolist() for poses in follow(seen)] == [[1] if 7 <= t <= 60 else [] for t in range(80)]


def test_ghosts_of_two_frames_are_nobody() -> None:
    seen = [[body(200, 300, 150)] if t in {4, 5, 20} else [] for t in range(40)]
    assert [len(poses) for poses in follow(seen)] == [0] * 40


@pytest.mark.parametrize(("absent", "last_id"), [(20, 1), (28, 1), (30, 2), (45, 2)])
def test_who_is_absent_for_longer_than_the_limit_is_another(absent: int, last_id: int) -> None:
    stand = body(300, 320, 200)
    seen = [[stand] if not 30 <= t < 30 + absent else [] for t in range(120)]
    found = follow(seen, EstimatorOptions(lost_s=1.0))
    assert found[0].ids.tolist() == [1]
    assert found[-1].ids.tolist() == [last_id]
    assert [len(poses) for poses in found[30 : 30 + absent]] == [0] * absent


def painted(*people: tuple[NDArray[np.float32], tuple[int, int, int]]) -> NDArray[np.uint8]:
    """Grey, with boxes of these colours where people are; later ones in front."""
    image = frame(0).image.copy()
    for points, colour in people:
        x1, y1, x2, y2 = box_of(points).clip(0).astype(int)
        image[y1:y2, x1:x2] = colour
    return image


RED, BLUE = (200, 40, 40), (40, 40, 200)


@pytest.mark.parametrize(("colour", "last_id"), [(RED, 1), (BLUE, 2)])
def test_who_comes_back_nearby_is_told_by_the_clothes(colour: tuple[int, int, int], last_id: int) -> None:
    # Away for 0.5 s, and back a quarter of a body's height to the side.
    there, back = body(300, 320, 200), body(345, 320, 200)
    seen = [[there] if t < 30 else [back] if t >= 45 else [] for t in range(90)]
    images = {t: painted((there, RED)) if t < 30 else painted((back, colour)) for t in range(90)}
    found = follow(seen, images=images)
    assert found[29].ids.tolist() == [1]
    assert found[-1].ids.tolist() == [last_id]


def test_a_pose_that_jumps_to_another_person_does_not_take_the_id_along() -> None:
    # They cross; meanwhile only the one in front is seen, whose pose lies between the two for a while.
    left, right = Walker(200, 3), Walker(440, -3)
    seen, images = [], {}
    for t in range(80):
        a, b = left.at(t), right.at(t)
        assert a is not None and b is not None
        hidden = abs(a[0, 0] - b[0, 0]) < 60
        seen.append([b] if hidden else [a, b])
        images[t] = painted((a, RED), (b, BLUE))
    found = follow(seen, images=images)
    assert found[0].ids.tolist() == found[-1].ids.tolist() == [1, 2]
    for t in (0, 79):
        np.testing.assert_allclose(found[t].keypoints[:, 0, 0], [p[0, 0] for p in seen[t]], atol=1)


def test_clothes_are_the_colours_of_what_is_worn() -> None:
    points = body(300, 320, 200)
    poses = poses_of([points, points + 150])
    worn = clothes(painted((points, RED)), poses)
    assert worn.shape == (2, 3, 3)
    # Red in CIE Lab: L 43 (halved), a 61, b 40; grey has no colour.
    np.testing.assert_allclose(worn[0], np.tile([21.5, 61, 40], (3, 1)), atol=3)
    np.testing.assert_allclose(worn[1, 0, 1:], 0, atol=1)
    unsure = clothes(painted((points, RED)), poses_of([points], score=0.1))
    assert np.isnan(unsure).all()
    outside = clothes(painted((points, RED)), poses_of([points - 1000]))
    assert np.isnan(outside).all()


def test_ids_count_in_order_of_birth_and_people_stand_in_their_order() -> None:
    walkers = [Walker(500, 0, first=9), Walker(100, 0), Walker(300, 0, first=9)]
    seen = [[p for w in walkers if (p := w.at(t)) is not None] for t in range(30)]
    found = follow(seen)
    assert [poses.ids.tolist() for poses in found] == [[1]] * 9 + [[1, 2, 3]] * 21
    assert found[-1].keypoints[:, 0, 0].round().tolist() == [110, 510, 310]


def test_one_person_found_twice_is_one() -> None:
    stand = body(300, 320, 200)
    assert {len(poses) for poses in follow([[stand, stand + 2] for _ in range(12)])} == {1}


def test_certain_people_are_never_dropped() -> None:
    tracker = Tracker(BODY19, exact_boxes=True, certain=True)
    line = DelayLine(BODY19, EstimatorOptions(), FPS, fills=False)
    stand = body(300, 320, 200)
    finished = []
    for t, count in enumerate([2, 0, 1]):
        poses = poses_of([stand] * count, score=0.0)
        tracker.predict(t / FPS)
        tracker.update(poses, np.ones(count, np.bool_), True, t, t / FPS, frame(t).image)
        finished += line.push(frame(t), tracker.tracks)
    finished += line.flush()
    assert [len(poses) for _, poses in finished] == [2, 0, 1]
    np.testing.assert_array_equal(finished[0][1].boxes[0], box_of(stand))


places = st.tuples(st.floats(-50, 700), st.floats(0, 400), st.floats(0, 300), st.floats(0, 1))


@settings(max_examples=20)
@given(seen=st.lists(st.lists(places, max_size=4), max_size=12))
def test_no_id_stands_twice_on_a_frame(seen: list[list[tuple[float, ...]]]) -> None:
    people = [[body(*place) for place in places] for places in seen]
    found = follow(people)
    for poses in found:
        assert poses.ids.tolist() == sorted(set(poses.ids.tolist()))
        assert (poses.ids >= 1).all()
        assert np.isfinite(poses.keypoints).all() and np.isfinite(poses.boxes).all()
    again = follow(people)
    assert all(np.array_equal(a.keypoints, b.keypoints) for a, b in zip(found, again, strict=True))


def test_join_takes_the_best_total_and_nothing_below_the_limit() -> None:
    assert join(np.array([[0.9, 0.8], [0.7, 0.1]]), 0.3) == [(0, 1), (1, 0)]
    # A pair below the limit must not push aside one above it.
    assert join(np.array([[0.5, 0.29], [0.29, 0.0]]), 0.3) == [(0, 0)]
    assert join(np.zeros((0, 3)), 0.3) == []


def crowd(ids: list[int]) -> Poses:
    """A small person at the left, a large one in the middle, one just as large at the right."""
    poses = poses_of([body(100, 200, 100), body(320, 300, 200), body(550, 300, 200)])
    return replace(poses, ids=np.array(ids, np.int64))


@pytest.mark.parametrize(
    ("person", "max_people", "before", "kept"),
    [
        ("all", None, -1, [1, 2, 3]),
        ("all", 2, -1, [1, 2]),
        ("largest", None, -1, [2]),
        ("largest", None, 3, [3]),
        ("largest", None, 1, [2]),
        ("center", None, -1, [2]),
        ("center", None, 3, [2]),
        ("id:3", None, -1, [3]),
        ("id:7", None, -1, []),
    ],
)
def test_choose(person: str, max_people: int | None, before: int, kept: list[int]) -> None:
    # Equally large to the last bit, so that it is the order that decides.
    people = crowd([1, 2, 3])
    boxes = people.boxes.copy()
    boxes[2] = boxes[1] + np.array([200, 0, 200, 0], np.float32)
    people = replace(people, boxes=boxes)
    rows = choose(people.boxes, people.ids, (640, 480), person, max_people, before)
    assert people[rows].ids.tolist() == kept


def test_choose_from_nobody_and_from_people_without_ids() -> None:
    nobody = Poses.empty(BODY19)
    assert len(choose(nobody.boxes, nobody.ids, (640, 480), "largest", None)) == 0
    people = crowd([-1, -1, -1])
    assert choose(people.boxes, people.ids, (640, 480), "center", None).tolist() == [1]
