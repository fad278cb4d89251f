"""Scores against cases worked out by hand, and against direct evaluations of small random sets."""

from __future__ import annotations

import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.keypoints import BODY19, COCO17, LSP14
from hgpose.train.datasets import BoxSet, PoseSet
from hgpose.train.metrics import (
    CocoImages,
    auc,
    box_ap,
    correct_joints,
    head_px,
    keypoint_ap,
    match_boxes,
    oks,
    oks_nms,
    pck,
    torso_px,
)
from hgpose.types import Detections

NAMES = ("left_shoulder", "right_hip", "head_top", "neck")


def people(points: Any, visibility: Any, **changes: Any) -> PoseSet:
    points = np.asarray(points, np.float32)
    count, k = points.shape[:2]
    low, high = points.min(1), points.max(1)
    fields = {
        "names": NAMES[:k],
        "files": tuple(Path(f"{i}.jpg") for i in range(count)),
        "image_ids": np.arange(count),
        "annotation_ids": np.arange(count),
        "boxes": np.concatenate([low, high], axis=1),
        "points": points,
        "visibility": np.asarray(visibility, np.int8),
        "weights": (np.asarray(visibility) > 0).astype(np.float32),
        "confirmed": np.zeros((count, k), np.bool_),
        "areas": np.full(count, 100.0, np.float32),
    }
    return PoseSet(**(fields | changes))


def test_pck_by_hand() -> None:
    truth = people(
        [
            [[0, 0], [30, 40], [0, -20], [0, -8]],  # torso 50, so right up to 10 px
            [[0, 0], [3, 4], [0, -20], [0, -8]],  # torso 5, so right up to 1 px
            [[0, 0], [30, 40], [0, -20], [0, -8]],  # hip not labelled: nobody to judge
        ],
        [[2, 1, 2, 0], [1, 2, 2, 2], [2, 0, 2, 2]],
    )
    np.testing.assert_allclose(torso_px(truth), [50, 5, np.nan])
    np.testing.assert_allclose(head_px(truth), [np.nan, 12, 12])
    points = truth.points.copy()
    points[0, 0] += (6, 8)  # exactly 10 px
    points[0, 1] += (6, 8.1)
    points[0, 3] += 99  # not labelled, so not judged
    points[1, 2] += (0, 1.5)
    points[1, 3] = np.nan  # missing, so wrong
    score = pck(points, truth.points, truth.visibility > 0, torso_px(truth))
    assert score.people == 2 and score.counts.tolist() == [2, 2, 2, 1]
    np.testing.assert_allclose(score.per_joint, [100, 50, 50, 0])
    assert score.mean == 50 and score.weighted_mean == pytest.approx(400 / 7)

    # By the head (12 px, half of it) person 1 is right everywhere but at the missing neck.
    score = pck(points, truth.points, truth.visibility > 0, head_px(truth), alpha=0.5)
    np.testing.assert_allclose(score.per_joint, [100, 100, 100, 50])
    assert score.people == 2
    measured = people(truth.points, truth.visibility, head_sizes=np.array([1, 2, 3], np.float32))
    assert head_px(measured).tolist() == [1, 2, 3]


def test_pck_of_nothing() -> None:
    truth = people([[[0, 0], [3, 4]]], [[1, 0]])
    score = pck(truth.points, truth.points, truth.visibility > 0, torso_px(truth))
    assert score.people == 0 and math.isnan(score.mean) and math.isnan(score.weighted_mean)
    assert np.isnan(score.per_joint).all() and np.isnan(head_px(truth)).all()


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 50), alpha=st.floats(0.05, 1))
def test_pck_properties(seed: int, scale: float, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    truth, noise = rng.uniform(0, 100, (2, 6, 4, 2))
    labelled = rng.random((6, 4)) < 0.8
    reference = rng.uniform(20, 60, 6)
    points = truth + noise - 50
    correct, judged = correct_joints(points, truth, labelled, reference, alpha)
    assert not (correct & ~judged).any() and np.array_equal(judged, labelled)
    # Perfect is 100, and a looser bound never takes a joint away.
    assert correct_joints(truth, truth, labelled, reference, alpha)[0].sum() == labelled.sum()
    assert not (correct & ~correct_joints(points, truth, labelled, reference, 2 * alpha)[0]).any()
    # Twice the picture, twice the reference: powers of two keep the comparison exact.
    zoom = 2.0 ** round(math.log2(scale))
    assert np.array_equal(
        correct, correct_joints(zoom * points, zoom * truth, labelled, zoom * reference, alpha)[0]
    )


def test_auc_by_hand() -> None:
    # Pairs (right, wrong): 0.9 and 0.4 against 0.4 and 0.1: above, above, tie, above.
    assert auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])) == 3.5 / 4
    assert math.isnan(auc(np.array([0.1, 0.2]), np.array([True, True])))
    assert math.isnan(auc(np.zeros(0), np.zeros(0, bool)))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, correct = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    pairs = [float(np.sign(a - b)) / 2 + 0.5 for a in scores[correct] for b in scores[~correct]]
    expected = np.mean(pairs) if pairs else np.nan
    np.testing.assert_allclose(auc(scores, correct), expected)
    np.testing.assert_allclose(auc(-scores, correct), 1 - expected)


def test_oks_by_hand() -> None:
    truth = np.array([[[0.0, 0], [10, 0], [5, 5]]])
    points = np.array([[[0.0, 0], [10, 3], [99, 99]], [[0, 0], [np.nan, np.nan], [5, 5]]])
    labelled = np.array([[True, True, False]])
    # exp(-d^2 / (2 (2 sigma)^2 area)) = exp(-9 / (2 * 0.04 * 50)) for the second joint.
    expected = [[(1 + math.exp(-2.25)) / 2], [0.5]]
    np.testing.assert_allclose(oks(points, truth, labelled, np.array([50.0]), (0.1, 0.1, 0.1)), expected)
    assert oks(points, truth, ~labelled & False, np.array([50.0]), (0.1, 0.1, 0.1)).max() == 0


def direct_ap(
    scores: NDArray[Any],
    images: NDArray[Any],
    fits: list[NDArray[Any]],
    ignored: list[NDArray[Any]],
    limit: float,
) -> tuple[float, float]:
    """AP and recall at one threshold, straight from COCO's definition (no crowds in it).

    ``fits[image]`` has the similarity of every prediction of the whole set to that image's people.
    """
    taken = [np.zeros(len(i), bool) for i in ignored]
    hits = []
    for p in np.argsort(-scores, kind="stable"):
        fit, skip, used = fits[images[p]][p], ignored[images[p]], taken[images[p]]
        fine = (fit >= limit) & ~used
        wanted = fine & ~skip
        if wanted.any():
            best = np.where(wanted, fit, -1).argmax()
            used[best] = True
            hits.append(True)
        elif (fine & skip).any():
            used[np.where(fine & skip, fit, -1).argmax()] = True
        else:
            hits.append(False)
    total = sum(int((~i).sum()) for i in ignored)
    found = np.cumsum(hits)
    recall, precision = found / total, found / np.arange(1, len(hits) + 1)
    envelope = [precision[recall >= r].max() if (recall >= r).any() else 0 for r in np.linspace(0, 1, 101)]
    return float(np.mean(envelope)), float(recall[-1]) if len(recall) else 0.0


def summary(both: list[tuple[float, float]]) -> NDArray[Any]:
    """AP and recall at ten thresholds, in the order of :class:`AveragePrecision`."""
    ap, recall = np.array(both).T
    return np.array([ap.mean(), ap[0], ap[5], recall.mean(), recall[0]])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keypoints", [LSP14, COCO17, BODY19], ids=lambda k: k.name)
def test_keypoint_ap_is_what_its_definition_says(seed: int, keypoints: Any) -> None:
    rng = np.random.default_rng(seed)
    k, count = len(keypoints), 30
    points = rng.uniform(0, 200, (count, k, 2)).astype(np.float32)
    visibility = rng.integers(0, 3, (count, k))
    visibility[:3] = 0  # people without a joint: neither wanted nor wrong
    points[:3] += 1e4  # the library matches those by their boxes: far from everybody
    image_ids = 10 + np.sort(rng.integers(0, 12, count))
    areas = rng.uniform(5e3, 2e4, count).astype(np.float32)
    truth = people(points, visibility, names=keypoints.names, image_ids=image_ids, areas=areas)
    # Near-misses of different size, duplicates and strangers, some joints missing; a person on an
    # image that is not annotated does not count.
    copies = rng.permutation(np.repeat(np.arange(3, count), 2))[:40]
    found = points[copies] + rng.normal(0, 1, (40, k, 2)) * rng.uniform(0, 25, (40, 1, 1))
    found[rng.random((40, k)) < 0.05] = np.nan
    where = image_ids[copies]
    where[:3] = 10 + rng.integers(0, 12, 3)
    where[3] = 9999
    scores = rng.permutation(40) / 40
    result = keypoint_ap(truth, keypoints.sigmas, where, found, scores)

    inside = where < 9999
    inside &= np.isin(where, image_ids)
    ids = np.unique(image_ids)
    fits, ignored = [], []
    for image_id in ids:
        rows = image_ids == image_id
        fits.append(oks(found[inside], points[rows], visibility[rows] > 0, areas[rows], keypoints.sigmas))
        ignored.append((visibility[rows] == 0).all(1))
    at = np.searchsorted(ids, where[inside])
    both = [direct_ap(scores[inside], at, fits, ignored, limit) for limit in np.linspace(0.5, 0.95, 10)]
    assert 0.05 < result.ap < result.ap50 < 1
    np.testing.assert_allclose(
        np.array(astuple(result)),
        summary(both),
        atol=1e-9,
    )


def test_keypoint_ap_of_perfect_and_of_no_people() -> None:
    truth = people([[[0, 0], [30, 40]], [[5, 5], [20, 60]]], [[2, 1], [2, 2]])
    best = keypoint_ap(truth, (0.1, 0.1), truth.image_ids, truth.points, np.array([0.1, 0.9]))
    assert (best.ap, best.ap50, best.recall) == pytest.approx((1, 1, 1))
    none = keypoint_ap(truth, (0.1, 0.1), np.zeros(0, int), np.zeros((0, 2, 2)), np.zeros(0))
    assert (none.ap, none.recall) == (0, 0)
    # A confident stranger costs, however large.
    ids, scores = np.array([0, 1, 0]), np.array([0.5, 0.5, 0.9])
    stranger = np.concatenate([truth.points, [[[-9e5, 0], [9e5, 9e5]]]])
    assert keypoint_ap(truth, (0.1, 0.1), ids, stranger, scores).ap == pytest.approx(2 / 3)


def test_keypoint_ap_ignores_who_need_not_be_found() -> None:
    truth = people([[[0, 0], [30, 40]]], [[2, 2]], image_ids=np.array([1]))

    def ap(
        where: int, at: tuple[float, float], *ignored: dict[str, Any], ids: tuple[int, ...] = (1, 2)
    ) -> float:
        found = np.concatenate([truth.points, [[at, at]]])
        images = CocoImages((Path(),) * len(ids), np.array(ids), frozenset({1}), np.ones(2, bool), ignored)
        scores = np.array([0.5, 0.9])
        return keypoint_ap(truth, (0.1, 0.1), np.array([1, where]), found, scores, images).ap

    box = {"bbox": [500.0, 500.0, 10.0, 10.0], "area": 100.0, "keypoints": [0.0] * 6, "num_keypoints": 0}
    unlabelled, crowd = ({"image_id": 2, "iscrowd": flag} | box for flag in (0, 1))
    # Alone on its image, a stranger is false; on who is ignored, or on an unknown image, it is nothing.
    assert ap(2, (505, 505)) == pytest.approx(0.5)
    assert ap(2, (505, 505), unlabelled) == ap(2, (505, 505), crowd) == pytest.approx(1)
    assert ap(1, (505, 505), unlabelled) == ap(2, (900, 900), crowd) == pytest.approx(0.5)
    assert ap(2, (505, 505), ids=(1,)) == pytest.approx(1)
    assert "id" not in crowd


def test_oks_nms_by_hand() -> None:
    # Two joints of sigma 0.1 moved by d: exp(-d^2 / (2 * 0.04 * area)).
    person = np.array([[0.0, 0], [30, 40]])
    points = np.stack([person + d for d in ([0, 0], [0, 1], [0, 2], [0, 1])])
    scores, areas = np.array([0.5, 0.9, 0.8, 0.9]), np.full(4, 100.0)
    similar = math.exp(-1 / 8)  # 1 px apart; 2 px apart are exp(-4 / 8)
    assert oks_nms(points, scores, areas, (0.1, 0.1), similar + 0.01) == [1, 2, 0]
    assert oks_nms(points, scores, areas, (0.1, 0.1), similar - 0.01) == [1]
    # Who was left out leaves nobody out.
    assert oks_nms(points[:3], np.array([0.9, 0.8, 0.7]), areas[:3], (0.1, 0.1), similar - 0.01) == [0, 2]
    # The area of a pair is the mean of both.
    pair, uneven = points[:2], np.array([20.0, 180.0])
    assert oks_nms(pair, scores[:2], uneven, (0.1, 0.1), similar - 0.01) == [1]
    assert oks_nms(pair, scores[:2], uneven, (0.1, 0.1), similar + 0.01) == [1, 0]
    assert oks_nms(points[:0], scores[:0], areas[:0], (0.1, 0.1), 0.9) == []


def box_set(boxes: list[Any], crowd: list[Any] | None = None) -> BoxSet:
    """Images of 100x100 px."""
    count = len(boxes)
    arrays = tuple(np.array(b, np.float32).reshape(-1, 4) for b in boxes)
    flags = crowd or [[False] * len(b) for b in arrays]
    return BoxSet(
        tuple(Path(f"{i}.jpg") for i in range(count)),
        np.arange(count) + 5,
        np.full((count, 2), 100, np.int32),
        arrays,
        tuple(np.array(c, bool) for c in flags),
        tuple(np.ones(len(b), np.float32) for b in arrays),
    )


def found(*rows: tuple[float, float, float, float, float]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4])


TALL, SHORT, TINY = (10, 10, 30, 60), (50, 10, 60, 30), (80, 80, 84, 88)


def test_match_boxes_by_hand() -> None:
    truth = box_set([[TALL, SHORT, TINY], [], [TALL], []])
    nothing = (0, 0, 50, 50)
    detections = [
        found((10, 10, 30, 58, 0.9), (*TALL, 0.8), (*SHORT, 0.7), (*TINY, 0.6), (0, 0, 5, 5, 0.5)),
        found((*nothing, 0.4)),
        found(),
        found((*nothing, 0.3), (*nothing, 0.2)),
    ]
    matches = match_boxes(truth, detections)
    assert (matches.tall_people, matches.images, matches.empty_images) == (2, 4, 2)
    # Found: tall; twice (wrong); short; tiny (ignored); nothing there; then three on empty images.
    assert matches.false.tolist() == [False, True, False, False, True, True, True, True]
    assert matches.tall.tolist() == [True] + [False] * 7
    assert matches.empty.tolist() == [False] * 5 + [True] * 3

    rates = matches.at(0.25)
    assert (rates.recall_tall, rates.false_per_image, rates.false_per_100_empty) == (0.5, 1.0, 100.0)
    assert matches.at(0.85).false_per_image == 0 and matches.at(0.95).recall_tall == 0
    # At exactly a detection's score it is kept.
    assert matches.at(float(np.float32(0.9))).recall_tall == 0.5

    # The duplicate is the only false box down to the tiny person, the one after that the second.
    assert matches.choose_threshold(0.25, 100) == pytest.approx(0.6)
    assert matches.choose_threshold(0.5, 100) == pytest.approx(0.5)
    assert matches.choose_threshold(9, 50) == pytest.approx(0.4)
    assert matches.choose_threshold(9, 200) == pytest.approx(0.2)
    with pytest.raises(InputError, match="no score keeps false boxes"):
        match_boxes(box_set([[]]), [found((0, 0, 9, 9, 0.5))]).choose_threshold(0.3, 2)
    alone = match_boxes(box_set([[TALL]]), [found((*TALL, 0.5))])
    assert math.isnan(alone.at(0).false_per_100_empty) and alone.choose_threshold(0, 0) == 0.5


def test_box_ap_by_hand() -> None:
    truth = box_set([[TALL, SHORT], []])
    perfect = box_ap(truth, [found((*TALL, 0.9), (*SHORT, 0.8)), found()])
    assert (perfect.ap, perfect.ap50, perfect.recall, perfect.recall50) == pytest.approx((1, 1, 1, 1))
    # One of two found: precision 1 up to recall 0.5, that is 51 of 101 points.
    half = box_ap(truth, [found((*TALL, 0.9)), found()])
    assert (half.ap50, half.recall50) == pytest.approx((51 / 101, 0.5))
    # The best score is false: precision 1/2 up to recall 0.5, 2/3 up to 1.
    false = box_ap(truth, [found((*TALL, 0.8), (*SHORT, 0.7)), found((0, 0, 9, 9, 0.9))])
    assert false.ap50 == pytest.approx(2 / 3)
    assert box_ap(truth, [found(), found()]).ap == 0
    assert math.isnan(box_ap(box_set([[]]), [found((*TALL, 0.9))]).ap)


def test_short_people_and_crowds_count_neither_way() -> None:
    truth = box_set([[TALL, TINY, (50, 50, 90, 90)]], [[False, False, True]])
    in_crowd = [(50, 50, 60, 90, 0.95), (70, 50, 80, 90, 0.94)]
    for rows in ([(*TALL, 0.5)], [(*TALL, 0.5), (*TINY, 0.9)], [(*TALL, 0.5), *in_crowd]):
        assert box_ap(truth, [found(*rows)], min_height=0.1).ap == pytest.approx(1)
        assert not match_boxes(truth, [found(*rows)]).false.any()
    assert box_ap(truth, [found((*TALL, 0.5))]).ap50 == pytest.approx(51 / 101)


@pytest.mark.parametrize("seed", range(5))
def test_box_ap_is_what_its_definition_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, detections = [], []
    for _ in range(15):
        low = rng.uniform(0, 60, (rng.integers(0, 5), 2))
        box = np.concatenate([low, low + rng.uniform(12, 40, low.shape)], axis=1)
        near = np.repeat(box, 2, axis=0)[: len(box) + 1]
        near = near + rng.uniform(-1, 1, near.shape) * rng.uniform(0, 6, (len(near), 1))
        near = np.concatenate([near, [[70, 70, 95, 95]]])
        boxes.append(box)
        detections.append(found(*np.column_stack([near, np.zeros(len(near))])))
    scores = iter(rng.permutation(sum(map(len, detections))) / 100)
    detections = [
        Detections(d.boxes, np.array([next(scores) for _ in d.scores], np.float32)) for d in detections
    ]
    truth = box_set(boxes)
    every = np.concatenate([d.boxes for d in detections]).astype(float)
    score = np.concatenate([d.scores for d in detections])
    image = np.repeat(np.arange(15), [len(d) for d in detections])

    def iou(a: NDArray[Any], b: NDArray[Any]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        common = max(w, 0) * max(h, 0)
        return float(common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common))

    fits = [
        np.array([[iou(a, b) for b in box.astype(float)] for a in every]).reshape(len(every), -1)
        for box in truth.boxes
    ]
    ignored = [np.zeros(len(b), bool) for b in boxes]
    both = [direct_ap(score, image, fits, ignored, limit) for limit in np.linspace(0.5, 0.95, 10)]
    result = box_ap(truth, detections)
    assert 0.05 < result.ap < result.ap50 < 1
    np.testing.assert_allclose(
        np.array(astuple(result)),
        summary(both),
        atol=1e-9,
    )
    # Our own matching finds as many as the library does.
    matches = match_boxes(truth, detections)
    people_count = sum(map(len, boxes))
    assert (~matches.false).sum() / people_count == pytest.approx(result.recall50)
