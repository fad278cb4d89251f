"""How fast each stage is alone, and all of them together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hgpose.errors import InputError
from hgpose.estimate import Estimator
from hgpose.options import VideoOptions
from hgpose.process import process_video
from hgpose.sinks import SINKS, Run
from hgpose.sources.video import VideoSource
from hgpose.types import Frame

#: Decoded frames kept in memory to feed the stages behind the decoder.
_KEPT = 48


@dataclass(frozen=True)
class Benchmark:
    """Frames a second.

    Attributes:
        stages: of each stage alone, by its name.
        pipeline: of all together, from opening the source to the last file's completion.
        people: on an average frame.
    """

    stages: dict[str, float]
    pipeline: float
    people: float

    @property
    def slowest(self) -> str:
        """The stage that is slowest alone."""
        return min(self.stages, key=lambda name: self.stages[name])

    @property
    def ratio(self) -> float:
        """The pipeline's rate as a share of its slowest stage's."""
        return self.pipeline / self.stages[self.slowest]


def _rate(frames: Iterable[object], seconds: float) -> float:
    """Items a second of an iterator, over at most so many seconds."""
    started = time.perf_counter()
    count = 0
    for _ in frames:
        count += 1
        if time.perf_counter() - started > seconds:
            break
    return count / (time.perf_counter() - started)


def benchmark(video: Path, estimator: Estimator, options: VideoOptions, seconds: float = 8.0) -> Benchmark:
    """Measures a video's stages one after the other, then the pipeline over the whole video.

    Args:
        video: a file.
        estimator: from :func:`hgpose.load_estimator`.
        options: what is written.
        seconds: at most so long a stage.

    Raises:
        InputError: the video cannot be opened or is shorter than two batches.
    """
    batch = estimator.options.batch
    with VideoSource(video) as source:
        decode = _rate(source, seconds)
    with VideoSource(video) as source:
        frames = list(islice(source, _KEPT // batch * batch or batch))
        info = source.info
    if len(frames) < 2 * batch:
        raise InputError(f"{video}: too short to measure; give one of at least {2 * batch} frames")
    batches = [frames[i : i + batch] for i in range(0, len(frames) - batch + 1, batch)]

    def per_frame(work: Callable[[list[Frame], int], object]) -> float:
        work(batches[0], 0)
        return batch * _rate((work(b, i) for i, b in _endless(batches)), seconds)

    people = [estimator.detector(b) for b in batches]
    poses = [estimator.poses(b, p) for b, p in zip(batches, people, strict=True)]
    stages = {
        "decode": decode,
        "detect": per_frame(lambda b, i: estimator.detector(b)),
        "pose": per_frame(lambda b, i: estimator.poses(b, people[i])),
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = Run(info, estimator.model, estimator.keypoint_set, options.style)
        sinks = [stack.enter_context(SINKS[kind](Path(folder), "bench", run)) for kind in options.save]
        count = 0

        def write(b: list[Frame], i: int) -> None:
            nonlocal count
            for frame, found in zip(b, poses[i], strict=True):
                # The encoder wants times that rise.
                moved = Frame(frame.image, count, count / float(info.fps or 25))
                count += 1
                for sink in sinks:
                    sink.write(moved, found)

        stages["draw and write"] = per_frame(write)
    with tempfile.TemporaryDirectory() as folder:
        summary = process_video(video, folder, estimator, options)
    mean = sum(len(p) for found in poses for p in found) / (len(batches) * batch)
    return Benchmark(stages, summary.frames / summary.seconds, mean)


def _endless(batches: list[list[Frame]]) -> Iterable[tuple[int, list[Frame]]]:
    while True:
        yield from enumerate(batches)
