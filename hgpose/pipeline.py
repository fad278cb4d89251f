"""The loop from a source to its sinks: decoding, inference and writing overlap, memory stays bounded."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from hgpose.chunks import AT_ONE_GO, ChunkedFollower, Chunking
from hgpose.cores import go_second
from hgpose.detect import GivenBoxes
from hgpose.errors import InputError
from hgpose.estimate import Estimator
from hgpose.follow import Follower
from hgpose.sinks import Sink
from hgpose.sources import Source
from hgpose.types import Frame, Poses

#: Frames that may wait between two stages. Enough to even out slow frames, little memory.
_QUEUE = 8
#: The same for a camera, where a frame that waits is a frame shown late.
_LIVE_QUEUE = 1
#: How long a thread waits for another before it looks whether it shall stop.
_TICK_S = 0.1
#: A reader that is stuck for so long, as on a stalled pipe, is left to end by itself.
_JOIN_TIMEOUT_S = 2.0


@dataclass
class Summary:
    """What became of one source.

    Attributes:
        name: of the source.
        frames: how many were processed.
        frames_with_people, people: frames that show someone, and the most people on one frame.
        seconds: it took, from opening to the last file's completion.
        detector_s, pose_s: time in the detector, and in crops, pose network and decoding.
        detections: on how many frames the detector ran.
        sides_corrected: poses in which a left and a right keypoint had changed places and were put right.
        damage: why frames may be missing, or ``None``.
        problems: name and reason of each image that could not be read, or of a damaged video.
        warning: what of the options had no use, or ``None``.
        files: that were written.
        kept: nothing was done, as the run that is resumed had finished it.
        error: why nothing came of it, or ``None``.
    """

    name: str
    frames: int = 0
    frames_with_people: int = 0
    people: int = 0
    seconds: float = 0.0
    detector_s: float = 0.0
    pose_s: float = 0.0
    detections: int = 0
    sides_corrected: int = 0
    damage: str | None = None
    warning: str | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    kept: bool = False
    error: str | None = None


@contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Calls ``stop`` on the first Ctrl-C or SIGTERM; only the main thread may say what these do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_: object) -> None:
        # Who asks again does not want to wait.
        restore()
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()


@contextmanager
def _read_ahead(
    source: Source, opened: ExitStack, batch: int, stop: threading.Event
) -> Iterator[Iterator[Frame]]:
    """Frames read by a thread, so many ahead that a batch can wait; once ``stop`` is set those that are read.

    The thread closes the source, ``opened``, as it alone knows when no read is under way.
    """
    ready: queue.Queue[Frame | BaseException | None] = queue.Queue(max(_QUEUE, batch))
    stopped = threading.Event()

    def put(item: Frame | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                return ready.put(item, timeout=_TICK_S)

    def read() -> None:
        go_second()
        end: BaseException | None = None
        try:
            with closing:
                for frame in source:
                    put(frame)
                    if stopped.is_set():
                        return
        except BaseException as error:
            # Raised again where the frames are taken.
            end = error
        put(end)

    def frames() -> Iterator[Frame]:
        while True:
            if stop.is_set():
                stopped.set()
            try:
                item = ready.get(timeout=_TICK_S)
            except queue.Empty:
                if stopped.is_set():
                    return
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    closing = opened.pop_all()
    thread = threading.Thread(target=read, name="decode", daemon=True)
    thread.start()
    try:
        yield frames()
    finally:
        stopped.set()
        thread.join(_JOIN_TIMEOUT_S)


def run(
    source: Source,
    sinks: Callable[[Source], Sequence[Sink]],
    estimator: Estimator,
    detect_every: int = 1,
    batch: int = 1,
    live: bool = False,
    report: Callable[[Summary], None] = lambda summary: None,
    chunking: Chunking = AT_ONE_GO,
    stop: threading.Event | None = None,
) -> Summary:
    """Takes every frame of a source through the networks to the sinks.

    Args:
        source: not yet entered.
        sinks: makes the sinks once the source is open.
        estimator: finds people and keypoints.
        detect_every: the detector runs at least on every n-th frame of people who are followed.
        batch: frames that go through the networks together.
        live: the source is a camera: nothing is read ahead, and there are no chunks.
        report: called now and then with what was done so far.
        chunking: where chunks end, which of them are wanted and where they are kept.
        stop: ends the source where it is once it is set, unless it is live; the files are completed.

    Returns:
        The summary; all files are complete.

    Raises:
        InputError: the source cannot be opened or, unless live or a part of a longer one, shows no frame
            or none of those that boxes were given for.
        OutputError: a file cannot be written; none of this source's unfinished files is left.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        reading = stack.enter_context(ExitStack())
        reading.enter_context(source)
        summary = Summary(source.info.name)
        follower: Follower | ChunkedFollower
        if live:
            follower = Follower(estimator, detect_every, source.info.fps, live)
            results = follower([frame] for frame in source)
        else:
            follower = ChunkedFollower(estimator, source, detect_every, batch, chunking)
        opened = [stack.enter_context(sink) for sink in sinks(source)]
        summary.files = [str(sink.path) for sink in opened if sink.path is not None]
        if isinstance(follower, ChunkedFollower):
            ahead = _read_ahead(source, reading, batch, stop or threading.Event())
            results = follower(stack.enter_context(ahead))
        done: queue.Queue[tuple[Frame, Poses] | None] = queue.Queue(_LIVE_QUEUE if live else _QUEUE)
        failed = threading.Event()
        writer_error: list[BaseException] = []

        def write() -> None:
            go_second()
            try:
                while (item := done.get()) is not None:
                    for sink in opened:
                        sink.write(*item)
            except BaseException as error:
                writer_error.append(error)
                failed.set()
                while done.get() is not None:
                    pass

        writer = threading.Thread(target=write, name="write", daemon=True)
        writer.start()
        given = estimator.detector if isinstance(estimator.detector, GivenBoxes) and not live else None
        taken: set[int | str] = set()
        try:
            for finished in results:
                if failed.is_set():
                    break
                for frame, poses in finished:
                    done.put((frame, poses))
                    summary.frames += 1
                    summary.frames_with_people += len(poses) > 0
                    summary.people = max(summary.people, len(poses))
                    if given is not None and (key := given.key(frame)) is not None:
                        taken.add(key)
                summary.seconds = time.perf_counter() - started
                summary.detector_s, summary.pose_s = follower.detector_s, follower.pose_s
                summary.detections = follower.detections
                summary.sides_corrected = follower.sides_corrected
                report(summary)
        finally:
            done.put(None)
            writer.join()
        if writer_error:
            raise writer_error[0]
        summary.damage = source.damage
        if isinstance(follower, ChunkedFollower):
            summary.problems = follower.problems
            summary.damage = follower.damage or source.damage
        if not (summary.frames or live or chunking.partial):
            why = summary.damage or "none lies in the part that was asked for"
            raise InputError(f"{summary.name}: no frame to process: {why}")
        who = estimator.options.person
        if who.startswith("id:") and not (summary.frames_with_people or chunking.partial):
            summary.warning = f"nobody has {who}; without --person the CSV tells who has which id"
        if given is not None:
            unread = [name for name, _ in summary.problems]
            try:
                summary.warning = given.unmatched(taken.union(unread), is_set=source.info.fps is None)
            except InputError:
                # With other boxes nothing of it can be used.
                if chunking.store is not None:
                    chunking.store.remove()
                raise
    summary.seconds = time.perf_counter() - started
    return summary
