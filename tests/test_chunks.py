"""A source in chunks: the same at one go, resumed and in parts; ids go on; what is in store is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_follow import FPS, Finder, Network
from walkers import HEIGHT, WIDTH, Walker, frame, poses_of

from hgpose.chunks import Chunk, ChunkedFollower, Chunking, ChunkStore, Grid, Seen
from hgpose.errors import InputError
from hgpose.keypoints import BODY19
from hgpose.manifest import differences
from hgpose.options import EstimatorOptions
from hgpose.places import Place
from hgpose.sources.video import VideoSource
from hgpose.types import Poses, SourceInfo

OPTIONS = EstimatorOptions(lost_s=0.5)
#: At 30 frames/s a person may be away for 15 frames, so 45 overlap and a chunk has 90.
CHUNK_S = 1.0
GRID = Grid(90, 45)


class Walked(VideoSource):
    """A video of so many frames, of which nobody has seen the pictures."""

    def __init__(self, count: int, numbered_from: int = 0) -> None:
        super().__init__("walk.mp4")
        self._info = SourceInfo("walk.mp4", WIDTH, HEIGHT, FPS)
        self._frames = (frame(t + numbered_from) for t in range(count) if t >= self.skip)


def follow(
    walkers: Sequence[Walker],
    count: int,
    store: ChunkStore | None = None,
    first: int = 0,
    end: int | None = None,
    options: EstimatorOptions = OPTIONS,
    pictures: bool = True,
    numbered_from: int = 0,
) -> tuple[list[tuple[int, Poses]], ChunkedFollower]:
    """Index and people of each frame of the chunks wanted."""
    source = Walked(count, numbered_from)
    network = Network(Finder(walkers), options)
    chunking = Chunking(
        1, CHUNK_S, store, first, end, partial=end is not None or first > 0, pictures=pictures
    )
    follower = ChunkedFollower(network, source, 10, 1, chunking)
    found = [(f.index, poses) for some in follower(iter(source)) for f, poses in some]
    return found, follower


def new_store(folder: Path) -> ChunkStore:
    return ChunkStore(Place.of(folder), BODY19, {"input": "x"})


def same(a: Sequence[tuple[int, Poses]], b: Sequence[tuple[int, Poses]]) -> bool:
    """To the last bit."""
    return len(a) == len(b) and all(
        i == j
        and all(np.array_equal(getattr(p, n), getattr(q, n)) for n in ("keypoints", "scores", "boxes", "ids"))
        for (i, p), (j, q) in zip(a, b, strict=True)
    )


CROWD = [
    Walker(40, 2.0),
    Walker(620, -2.0, ground=300),
    Walker(200, 0.5, ground=200, height=110, first=60, last=250),
    Walker(500, 0, ground=340, height=120, first=88, last=300),
]


def test_grid() -> None:
    assert Grid.of(FPS, 1, OPTIONS, CHUNK_S) == GRID
    assert Grid.of(None, 1, OPTIONS, 60) == Grid(64, 0)
    assert Grid.of(FPS, 3, replace(OPTIONS, track=False), 60) == Grid(600, 0)
    # A person may be away for longer than a chunk.
    assert Grid.of(FPS, 1, EstimatorOptions(lost_s=99), 60) == Grid(6000, 3000)
    assert Grid.of(Fraction(1, 10), 1, OPTIONS, 60) == Grid(40, 20)
    assert Grid.of(Fraction(90000), 1, OPTIONS, 60).length == 60 * 240
    assert [GRID.start(n) for n in range(3)] == [0, 45, 135]


@pytest.mark.parametrize("count", [1, 89, 90, 94, 200])
def test_parts_by_whomever_are_what_one_go_gives(count: int, tmp_path: Path) -> None:
    whole, _ = follow(CROWD, count)
    assert [i for i, _ in whole] == list(range(count))
    # From the last part to the first, one of them beyond the end.
    for first, end in ((3, None), (1, 3), (0, 1)):
        follow(CROWD, count, new_store(tmp_path), first, end)
    for pictures in (True, False):
        stitched, follower = follow(CROWD, count, new_store(tmp_path), pictures=pictures)
        assert same(stitched, whole)
        assert follower.detections == 0, "nothing is computed again"


@pytest.mark.parametrize(("there", "pictures"), [({0}, False), ({0, 2}, False), ({1}, True)])
def test_what_is_in_store_is_not_computed_again(there: set[int], pictures: bool, tmp_path: Path) -> None:
    whole, all_computed = follow(CROWD, 200)
    for number in there:
        follow(CROWD, 200, new_store(tmp_path), number, number + 1)
    resumed, follower = follow(CROWD, 200, new_store(tmp_path), pictures=pictures)
    assert same(resumed, whole)
    assert 0 < follower.detections < all_computed.detections
    assert follower.sides_corrected == all_computed.sides_corrected
    assert new_store(tmp_path).numbers() == {0, 1, 2}


def test_people_keep_their_id_across_borders() -> None:
    found, _ = follow(CROWD, 200)
    identities: dict[int, set[int]] = {i: set() for i in range(len(CROWD))}
    for t, poses in found:
        there = {i: at for i, walker in enumerate(CROWD) if (at := walker.at(t)) is not None}
        for identity, points in zip(poses.ids.tolist(), poses.keypoints, strict=True):
            nearest = min(there, key=lambda i: float(np.abs(there[i] - points).mean()))
            identities[nearest].add(identity)
    assert sorted(identities.values(), key=min) == [{1}, {2}, {3}, {4}]
    assert all((np.diff(poses.ids) > 0).all() for _, poses in found), "in the order of ids"


def test_who_is_away_over_a_border_keeps_his_id_if_he_is_back_in_time() -> None:
    back, late = Walker(300, 0, last=84), Walker(300, 0, first=95)
    found, _ = follow([back, late], 180)
    assert {i for _, p in found for i in p.ids.tolist()} == {1}
    late = Walker(300, 0, first=104)
    found, _ = follow([back, late], 180)
    assert {i for _, p in found for i in p.ids.tolist()} == {1, 2}


@pytest.mark.parametrize("person", ["id:2", "largest"])
def test_who_is_asked_for_is_so_in_every_chunk(person: str, tmp_path: Path) -> None:
    options = replace(OPTIONS, person=person)
    whole, _ = follow(CROWD, 185, options=options)
    assert all(len(poses) <= 1 for _, poses in whole)
    follow(CROWD, 185, new_store(tmp_path), 1, 2, options)
    resumed, _ = follow(CROWD, 185, new_store(tmp_path), options=options)
    assert same(resumed, whole)
    if person == "id:2":
        assert {i for _, p in whole for i in p.ids.tolist()} == {2}


def test_most_people_are_the_same_in_every_chunk() -> None:
    # The finder is surer of the first, who comes later.
    found, _ = follow([Walker(450, 0, first=60), Walker(100, 0)], 250, options=replace(OPTIONS, max_people=1))
    assert all(poses.ids.tolist() == [1] and poses.boxes[0, 0] < 200 for _, poses in found)


def test_a_damaged_chunk_is_computed_again(tmp_path: Path) -> None:
    whole, _ = follow(CROWD, 100, new_store(tmp_path))
    for name, data in (("chunk-000000.npz", b""), ("chunk-000001.npz", b"PK\3\4 no archive")):
        (tmp_path / name).write_bytes(data)
    again, follower = follow(CROWD, 100, new_store(tmp_path), pictures=False)
    assert same(again, whole) and follower.detections > 0


def test_another_origin_begins_anew(tmp_path: Path) -> None:
    follow(CROWD, 100, new_store(tmp_path))
    other = ChunkStore(Place.of(tmp_path), BODY19, {"input": "y"})
    assert not other.there and other.changed == "input was x, is y" and other.read(0) is None
    other.begin()
    assert not list(tmp_path.glob("chunk*"))


def test_a_source_that_changed_is_an_error(tmp_path: Path) -> None:
    follow(CROWD, 85, new_store(tmp_path))
    with pytest.raises(InputError, match="changed"):
        follow(CROWD, 85, new_store(tmp_path), numbered_from=5)


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 6), st.booleans(), st.booleans())
def test_chunks_survive_the_store(people: list[int], before: int, raw: bool, names: bool) -> None:
    rng = np.random.default_rng(len(people))
    seen = []
    for i, count in enumerate(people):
        poses = poses_of(list(rng.normal(0, 1e3, (count, 19, 2)).astype(np.float32)))
        if count:
            poses = replace(poses, ids=np.arange(count), interpolated=rng.random((count, 19)) > 0.5)
            poses.keypoints[0, 0] = np.nan
        if count and raw:
            poses = replace(poses, raw=rng.random((count, 19, 3)).astype(np.float32))
        seen.append(Seen(2 * i, i / 7, "caf\udce9\n片\0" if names else "", (640, 2 + i), poses))
    problems = [("caf\udce9", "bad")] if names else []
    chunk = Chunk(3, seen[:before], seen[before:], raw, 5, problems)
    back = Chunk.decode(chunk.encode(), BODY19)
    assert (back.number, back.last, back.sides_corrected, back.problems) == (3, raw, 5, problems)
    assert len(back.before) == len(chunk.before)
    for a, b in zip([*back.before, *back.frames], seen, strict=True):
        assert (a.index, a.time_s, a.name, a.size_wh) == (b.index, b.time_s, b.name, b.size_wh)
        for name in ("keypoints", "scores", "boxes", "box_scores", "ids", "raw", "interpolated"):
            was, now = getattr(b.poses, name), getattr(a.poses, name)
            assert (was is None and now is None) or (
                was.dtype == now.dtype and np.array_equal(was, now, equal_nan=was.dtype.kind == "f")
            )


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": [1, 2]}, {"a": (1, 2)}, ""),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "c was 2, is 3"),
        ({"weights": "0" * 64}, {"weights": "1" * 64}, "another weights"),
        ({}, {"a": 1}, "a was None, is 1"),
    ],
)
def test_differences_are_said(before: dict[str, object], now: dict[str, object], said: str) -> None:
    assert differences(before, now) == said
