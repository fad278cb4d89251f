"""Keypoint sets: order, sides, skeletons."""

from __future__ import annotations

import numpy as np
import pytest

from hgpose.errors import InputError
from hgpose.keypoints import BODY19, COCO17, KEYPOINT_SETS, KeypointSet, keypoint_set, usual_skeleton


@pytest.mark.parametrize(("name", "count"), [("body19", 19), ("coco17", 17), ("lsp14", 14), ("mpii16", 16)])
def test_known_sets(name: str, count: int) -> None:
    keypoints = keypoint_set(name)
    assert keypoints.name == name and len(keypoints) == len(keypoints.sigmas) == count
    joined = {joint for edge in keypoints.edges for joint in edge}
    assert joined == set(range(count))


@pytest.mark.parametrize("name", KEYPOINT_SETS)
def test_flip_order_swaps_sides_and_nothing_else(name: str) -> None:
    keypoints = keypoint_set(name)
    order = keypoints.flip_order
    assert [order[i] for i in order] == list(range(len(keypoints)))
    for here, there in enumerate(order):
        side, _, joint = keypoints.names[here].partition("_")
        other = {"left": f"right_{joint}", "right": f"left_{joint}"}.get(side, keypoints.names[here])
        assert keypoints.names[there] == other


def test_body19_begins_with_coco() -> None:
    assert BODY19.names == (*COCO17.names, "neck", "head_top")
    assert COCO17.names[5:7] == ("left_shoulder", "right_shoulder")


def test_coco_sigmas() -> None:
    # The published constants are twice these.
    assert COCO17.sigmas[COCO17.index("nose")] == 0.026
    assert COCO17.sigmas[COCO17.index("left_hip")] == 0.107


def test_rows_of_other_names() -> None:
    small = KeypointSet("small", ("a", "b", "c"), (("a", "b"),), (0.1, 0.1, 0.1))
    theirs = np.array([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]], np.int16)
    ours = small.rows_of(theirs, ("c", "x", "a"))
    assert ours.dtype == np.int16
    assert ours.tolist() == [[[5, 6], [0, 0], [1, 2]], [[11, 12], [0, 0], [7, 8]]]
    assert small.rows_of(theirs, ("x", "y", "z")).max() == 0


def test_usual_skeleton_of_names() -> None:
    assert usual_skeleton(COCO17.names) == COCO17.skeleton
    assert usual_skeleton(("left_ankle", "tail", "left_heel")) == (("left_ankle", "left_heel"),)
    assert ("left_shoulder", "right_shoulder") not in usual_skeleton(BODY19.names)


def test_unknown_set_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"'face68'.*body19, coco17, lsp14, mpii16"):
        keypoint_set("face68")


@pytest.mark.parametrize(
    ("names", "skeleton", "sigmas"),
    [
        (("a", "a"), (), (0.1, 0.1)),
        (("a", "b"), (), (0.1,)),
        (("a", "b"), (("a", "c"),), (0.1, 0.1)),
    ],
)
def test_impossible_sets(
    names: tuple[str, ...], skeleton: tuple[tuple[str, str], ...], sigmas: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="keypoint set wrong"):
        KeypointSet("wrong", names, skeleton, sigmas)
