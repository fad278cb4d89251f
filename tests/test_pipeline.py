"""The loop: every frame once and in order, stages that overlap, and what is left when one of them fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from hgpose.detect import WholeFrame
from hgpose.errors import InputError, OutputError
from hgpose.estimate import Estimator
from hgpose.keypoints import BODY19
from hgpose.options import EstimatorOptions
from hgpose.pipeline import run
from hgpose.sinks import Sink
from hgpose.sources import Source
from hgpose.types import Detections, Frame, ModelInfo, Poses, SourceInfo

#: Whoever waits longer waits for what will not come.
PATIENCE_S = 10.0


class Counted:
    """A source of ``count`` grey frames; ``before`` is called with the index of each before it is made."""

    def __init__(self, count: int, before: Callable[[int], None] = lambda index: None) -> None:
        self._count, self._before = count, before
        self.damage: str | None = None
        self.closed = False
        self.threads: set[str] = set()

    @property
    def info(self) -> SourceInfo:
        return SourceInfo("counted", 8, 6, Fraction(25))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._count):
            self._before(index)
            self.threads.add(threading.current_thread().name)
            yield Frame(np.zeros((6, 8, 3), np.uint8), index, index / 25)


class Recorder:
    """A sink that keeps what it gets; ``before`` is called with the index of each frame."""

    path = Path("recorder")

    def __init__(self, before: Callable[[int], None] = lambda index: None) -> None:
        self._before = before
        self.indices: list[int] = []
        self.people: list[int] = []
        self.threads: set[str] = set()
        self.left_with: type[BaseException] | None = None
        self.left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left, self.left_with = True, kind

    def write(self, frame: Frame, poses: Poses) -> None:
        self._before(frame.index)
        self.threads.add(threading.current_thread().name)
        self.indices.append(frame.index)
        self.people.append(len(poses))


class Stub(Estimator):
    """Sees one person on every third frame, follows nobody; ``before`` is called with each batch."""

    def __init__(self, before: Callable[[Sequence[Frame]], None] = lambda frames: None) -> None:
        self.detector, self.options = WholeFrame(), EstimatorOptions(track=False)
        self.keypoint_set, self.model = BODY19, ModelInfo("stub", "0" * 64)
        self._before = before
        self.batches: list[int] = []
        self.threads: set[str] = set()

    def poses(self, frames: Sequence[Frame], people: Sequence[Detections]) -> list[Poses]:
        self._before(frames)
        self.batches.append(len(frames))
        self.threads.add(threading.current_thread().name)
        one = Poses(
            np.ones((1, 19, 2), np.float32),
            np.full((1, 19), 0.9, np.float32),
            np.array([[0, 0, 7, 5]], np.float32),
            np.ones(1, np.float32),
            np.full(1, -1, np.int64),
            BODY19,
        )
        return [one if frame.index % 3 == 0 else Poses.empty(BODY19) for frame in frames]


def into(*sinks: Sink) -> Callable[[Source], Sequence[Sink]]:
    return lambda source: sinks


def raises(error: BaseException, at: int) -> Callable[[int], None]:
    def check(index: int) -> None:
        if index == at:
            raise error

    return check


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(PATIENCE_S)
    assert not [thread.name for thread in left if thread.is_alive()]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_every_frame_once_in_order_into_every_sink(batch: int, live: bool) -> None:
    source, first, second, estimator = Counted(50), Recorder(), Recorder(), Stub()
    summary = run(source, into(first, second), estimator, batch=batch, live=live)
    assert first.indices == second.indices == list(range(50))
    assert first.people == [int(index % 3 == 0) for index in range(50)]
    assert (summary.frames, summary.frames_with_people, summary.people) == (50, 17, 1)
    assert sum(estimator.batches) == 50
    assert max(estimator.batches) <= (1 if live else batch)
    assert source.closed and first.left and first.left_with is None
    assert summary.files == ["recorder", "recorder"]


def test_frames_that_wait_go_through_the_network_together() -> None:
    source_done = threading.Event()

    def wait(frames: Sequence[Frame]) -> None:
        assert source_done.wait(PATIENCE_S)

    source = Counted(9, lambda index: source_done.set() if index == 7 else None)
    estimator = Stub(wait)
    run(source, into(), estimator, batch=4)
    # While the first batch was under way, all others became ready.
    assert max(estimator.batches) == 4
    assert len(estimator.batches) <= 5


def test_decoding_and_writing_go_on_while_the_network_works() -> None:
    read, written = [threading.Event() for _ in range(12)], [threading.Event() for _ in range(12)]

    def network(frames: Sequence[Frame]) -> None:
        index = frames[0].index
        # The network is not done with this frame before the next is decoded and the last is written.
        if index + 1 < len(read):
            assert read[index + 1].wait(PATIENCE_S), "decoding waits for the network"
        if index > 0:
            assert written[index - 1].wait(PATIENCE_S), "writing waits for the network"

    source = Counted(12, lambda index: read[index].set())
    sink = Recorder(lambda index: written[index].set())
    estimator = Stub(network)
    run(source, into(sink), estimator)
    here = {threading.current_thread().name}
    assert estimator.threads == here
    assert len(source.threads | sink.threads | here) == 3


def test_little_is_read_ahead_of_a_slow_sink() -> None:
    read: list[int] = []
    ahead: list[int] = []

    def slow(index: int) -> None:
        if index == 0:
            # Until nothing more is read.
            while not ahead or ahead[-1] != len(read):
                ahead.append(len(read))
                time.sleep(0.3)

    run(Counted(200, read.append), into(Recorder(slow)), Stub(), batch=4)
    assert ahead[-1] <= 40


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("where", ["source", "network", "sink", "report"])
@pytest.mark.parametrize("error", [OutputError("full"), ValueError("bug"), KeyboardInterrupt()])
def test_an_error_anywhere_ends_all_stages(where: str, error: BaseException, live: bool) -> None:
    fail = raises(error, at=5)
    source = Counted(300, fail if where == "source" else lambda index: None)
    bad = Recorder(fail if where == "sink" else lambda index: None)
    good = Recorder()
    estimator = Stub((lambda frames: fail(frames[-1].index)) if where == "network" else lambda frames: None)

    with pytest.raises(type(error)) as raised:
        run(
            source,
            into(good, bad),
            estimator,
            live=live,
            report=lambda summary: fail(summary.frames) if where == "report" else None,
        )
    assert raised.value is error
    assert source.closed
    assert good.left_with is bad.left_with is type(error), "a sink must know that its file is not whole"
    assert good.indices == list(range(len(good.indices)))
    assert len(good.indices) < 300


def test_a_stuck_reader_does_not_hold_up_an_interrupt() -> None:
    reading, release = threading.Event(), threading.Event()

    def stalls(index: int) -> None:
        if index == 3:
            reading.set()
            assert release.wait(4 * PATIENCE_S)

    def interrupted(frames: Sequence[Frame]) -> None:
        assert reading.wait(PATIENCE_S)
        raise KeyboardInterrupt

    source, sink = Counted(10, stalls), Recorder()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(source, into(sink), Stub(interrupted))
    assert time.monotonic() - started < PATIENCE_S
    assert sink.left_with is KeyboardInterrupt
    # Closing what is being read would crash; the reader does it when it comes back.
    assert not source.closed
    release.set()
    deadline = time.monotonic() + PATIENCE_S
    while not source.closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_frame_is_an_error_that_says_why() -> None:
    source, sink = Counted(0), Recorder()
    source.damage = "all of it is gone"
    with pytest.raises(InputError, match=r"counted: no frame.*all of it is gone"):
        run(source, into(sink), Stub())
    assert sink.left_with is InputError


def test_a_camera_stopped_before_its_first_frame_is_no_error() -> None:
    assert run(Counted(0), into(Recorder()), Stub(), live=True).frames == 0


def test_the_summary_names_the_damage() -> None:
    source = Counted(3)
    source.damage = "cut short"
    assert run(source, into(Recorder()), Stub()).damage == "cut short"


def test_a_source_that_cannot_be_opened_makes_no_sink() -> None:
    class Closed(Counted):
        def __enter__(self) -> Self:
            raise InputError("closed")

    def never(source: Source) -> Sequence[Sink]:
        raise AssertionError("no file may be begun")

    with pytest.raises(InputError, match="closed"):
        run(Closed(3), never, Stub())


def test_progress_is_reported_in_steps() -> None:
    seen: list[int] = []
    run(Counted(20), into(Recorder()), Stub(), batch=2, report=lambda summary: seen.append(summary.frames))
    assert seen == sorted(seen)
    assert seen[-1] == 20
    assert len(set(seen)) >= 10
