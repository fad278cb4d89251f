"""The loop from a source to its sinks: decoding, inference and writing overlap, memory stays bounded."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np

from hgpose.estimate import Estimator, keypoint_box
from hgpose.sinks import Sink
from hgpose.sources import Source
from hgpose.types import Detections, Frame, Poses

#: Frames that may wait between two stages. Enough to even out slow frames, little memory.
_QUEUE = 8
#: The same for a camera, where a frame that waits is a frame shown late.
_LIVE_QUEUE = 1


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
        damage: why frames may be missing, or ``None``.
        files: that were written.
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
    damage: str | None = None
    files: list[str] = field(default_factory=list)
    error: str | None = None


@contextmanager
def _read_ahead(source: Source, batch: int, live: bool) -> Iterator[Iterator[list[Frame]]]:
    """Frames in lists of at most ``batch``: what is ready, at least one; read ahead in a thread unless live."""
    if live:
        yield ([frame] for frame in source)
        return
    ready: queue.Queue[Frame | BaseException | None] = queue.Queue(max(_QUEUE, batch))
    stopped = threading.Event()

    def put(item: Frame | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                return ready.put(item, timeout=0.1)

    def read() -> None:
        end: BaseException | None = None
        try:
            for frame in source:
                put(frame)
                if stopped.is_set():
                    return
        except BaseException as error:
            # Raised again where the frames are taken.
            end = error
        put(end)

    def batches() -> Iterator[list[Frame]]:
        frames: list[Frame] = []
        while True:
            item = ready.get()
            if isinstance(item, Frame):
                frames.append(item)
                if len(frames) < batch and not ready.empty():
                    continue
            if frames:
                yield frames
                frames = []
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return

    thread = threading.Thread(target=read, name="decode", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        stopped.set()
        thread.join()


class Follower:
    """Finds the people of frames in order, detecting anew on every n-th frame only.

    Between two detections each person is looked for where its keypoints were on the frame before.
    """

    def __init__(self, estimator: Estimator, detect_every: int) -> None:
        self.estimator, self.detect_every = estimator, detect_every
        self._last: Poses | None = None
        self._since = 0
        self.detector_s = self.pose_s = 0.0
        self.detections = 0

    def __call__(self, frames: Sequence[Frame]) -> list[Poses]:
        """The people of each frame; ``frames`` go on where those of the last call ended."""
        if self.detect_every == 1:
            return self._detect(frames)
        found: list[Poses] = []
        for frame in frames:
            if self._last is None or self._since >= self.detect_every:
                poses = self._detect([frame])[0]
                self._since = 0
            else:
                started = time.perf_counter()
                boxes = [
                    keypoint_box(*person)
                    for person in zip(self._last.keypoints, self._last.scores, self._last.boxes, strict=True)
                ]
                people = Detections(np.array(boxes, np.float32).reshape(-1, 4), self._last.box_scores)
                poses = self.estimator.poses([frame], [people])[0]
                self.pose_s += time.perf_counter() - started
            self._since += 1
            self._last = poses
            found.append(poses)
        return found

    def _detect(self, frames: Sequence[Frame]) -> list[Poses]:
        started = time.perf_counter()
        people = self.estimator.detector(frames)
        detected = time.perf_counter()
        found = self.estimator.poses(frames, people)
        self.detector_s += detected - started
        self.pose_s += time.perf_counter() - detected
        self.detections += len(frames)
        return found


def run(
    source: Source,
    sinks: Callable[[Source], Sequence[Sink]],
    estimator: Estimator,
    detect_every: int = 1,
    batch: int = 1,
    live: bool = False,
    report: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Takes every frame of a source through the networks to the sinks.

    Args:
        source: not yet entered.
        sinks: makes the sinks once the source is open.
        estimator: finds people and keypoints.
        detect_every: the detector runs on every n-th frame.
        batch: frames that go through the networks together, at most.
        live: the source is a camera: nothing is read ahead.
        report: called now and then with what was done so far.

    Returns:
        The summary; all files are complete.

    Raises:
        InputError: the source cannot be opened or shows no frame.
        OutputError: a file cannot be written; none of this source's unfinished files is left.
    """
    started = time.perf_counter()
    follower = Follower(estimator, detect_every)
    with ExitStack() as stack:
        stack.enter_context(source)
        summary = Summary(source.info.name)
        opened = [stack.enter_context(sink) for sink in sinks(source)]
        summary.files = [str(sink.path) for sink in opened]
        batches = stack.enter_context(_read_ahead(source, 1 if live else batch, live))
        done: queue.Queue[tuple[Frame, Poses] | None] = queue.Queue(_LIVE_QUEUE if live else _QUEUE)
        failed = threading.Event()
        writer_error: list[BaseException] = []

        def write() -> None:
            try:
                while (item := done.get()) is not None:
                    for sink in opened:
                        sink.write(*item)
            except BaseException as error:
                writer_error.append(error)
                failed.set()
                while done.get() is not None:
                    pass

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        try:
            for frames in batches:
                if failed.is_set():
                    break
                for frame, poses in zip(frames, follower(frames), strict=True):
                    done.put((frame, poses))
                    summary.frames += 1
                    summary.frames_with_people += len(poses) > 0
                    summary.people = max(summary.people, len(poses))
                summary.seconds = time.perf_counter() - started
                summary.detector_s, summary.pose_s = follower.detector_s, follower.pose_s
                summary.detections = follower.detections
                report(summary)
        finally:
            done.put(None)
            writer.join()
        if writer_error:
            raise writer_error[0]
        summary.damage = source.damage
    summary.seconds = time.perf_counter() - started
    return summary
