"""How fast each stage is alone, and all of them together."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from hgpose.estimate import Estimator
from hgpose.follow import Finished, Follower
from hgpose.options import VideoOptions
from hgpose.process import process_video
from hgpose.sinks import SINKS, Run, Sink
from hgpose.sources.video import VideoSource

#: Frames kept in memory to be drawn and written again and again.
_KEPT = 48
#: Everything is measured so often.
_ROUNDS = 3
#: Frames that are found and followed before anything is measured.
_WARM_UP = 4


@dataclass(frozen=True)
class Benchmark:
    """Frames a second.

    Attributes:
        stages: of each stage alone, by its name.
        pipeline: of all together, from opening the source to the last file's completion.
        detector, pose: shares in the time to find and follow people of the detector, and of crops, pose
            network and decoding.
        people: on an average frame.
    """

    stages: dict[str, float]
    pipeline: float
    detector: float
    pose: float
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


def benchmark(video: Path, estimator: Estimator, options: VideoOptions, seconds: float = 15.0) -> Benchmark:
    """Measures a video's stages one after the other, then the pipeline, and so on in turn.

    Of each stage the fastest round counts: what else the machine does slows now one, now another. The
    frames are the same in all rounds, the first ones: others may show more people.

    Args:
        video: a file.
        estimator: from :func:`hgpose.load_estimator`.
        options: what is written.
        seconds: about so long a stage, in all rounds.

    Raises:
        InputError: the video cannot be opened.
    """
    seconds /= _ROUNDS
    with VideoSource(video) as source:
        info = source.info
        # Nothing is at its usual speed from the start.
        Follower(estimator, options.detect_every, info.fps).push(list(islice(source, _WARM_UP)))
    first = _follow(video, estimator, options, seconds)
    options = replace(options, end_s=first.end_s)
    rounds: list[dict[str, float]] = []
    for _ in range(_ROUNDS):
        with VideoSource(video, end_s=options.end_s) as source:
            rates = {"decode": _rate(source, seconds)}
        rates["find and follow people"] = _follow(video, estimator, options, math.inf).rate
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            run = Run(info, estimator.model, estimator.keypoint_set, options.style)
            sinks = [stack.enter_context(SINKS[kind](Path(folder), "bench", run)) for kind in options.save]
            rates["draw and write"] = _rate(_written(sinks, first.kept, float(info.fps or 25)), seconds)
        with tempfile.TemporaryDirectory() as folder:
            summary = process_video(video, folder, estimator, options)
        rates["pipeline"] = summary.frames / summary.seconds
        rounds.append(rates)
    best = {name: max(rates[name] for rates in rounds) for name in rounds[0]}
    pipeline = best.pop("pipeline")
    return Benchmark(best, pipeline, first.detector, first.pose, first.people)


def _written(sinks: Sequence[Sink], finished: Finished, fps: float) -> Iterator[None]:
    """Writes the same frames again and again."""
    for count, (frame, people) in enumerate(cycle(finished)):
        # The encoder wants times that rise.
        frame = replace(frame, index=count, time_s=count / fps)
        for sink in sinks:
            sink.write(frame, people)
        yield


@dataclass(frozen=True)
class _Followed:
    """What finding and following people took, without decoding.

    Attributes:
        rate: frames a second.
        detector, pose: shares of the time.
        people: on an average frame.
        kept: the first finished frames.
        end_s: where the frames end, seconds from the first one; ``None``: with the video.
    """

    rate: float
    detector: float
    pose: float
    people: float
    kept: Finished
    end_s: float | None


def _follow(video: Path, estimator: Estimator, options: VideoOptions, seconds: float) -> _Followed:
    """Finds and follows people, nothing beside it, for so long."""
    spent_s, end_s, first_s = 0.0, None, None
    count, people, kept = 0, 0, Finished()
    with VideoSource(video, end_s=options.end_s) as source:
        follower = Follower(estimator, options.detect_every, source.info.fps)
        frames = iter(source)
        while batch := list(islice(frames, estimator.options.batch)):
            first_s = batch[0].time_s if first_s is None else first_s
            if spent_s >= seconds:
                end_s = batch[0].time_s - first_s
                break
            started = time.perf_counter()
            finished = follower.push(batch)
            spent_s += time.perf_counter() - started
            count += len(batch)
            people += sum(len(poses) for _, poses in finished)
            kept += finished[: _KEPT - len(kept)]
    finished = follower.flush()
    people += sum(len(poses) for _, poses in finished)
    kept += finished[: _KEPT - len(kept)]
    return _Followed(
        count / spent_s,
        follower.detector_s / spent_s,
        follower.pose_s / spent_s,
        people / count,
        kept,
        options.end_s if end_s is None else end_s,
    )
