"""How fast each stage is alone, and all of them together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from hgpose.estimate import Estimator
from hgpose.follow import Finished, Follower
from hgpose.options import VideoOptions
from hgpose.process import process_video
from hgpose.sinks import SINKS, Run
from hgpose.sources.video import VideoSource

#: Frames kept in memory to be drawn and written again and again.
_KEPT = 48
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


def benchmark(video: Path, estimator: Estimator, options: VideoOptions, seconds: float = 8.0) -> Benchmark:
    """Measures a video's stages one after the other, then the pipeline.

    Finding and following people is measured on the frames that it manages within the time, from the
    first one on, and the pipeline on the same ones: some frames show more people than others.

    Args:
        video: a file.
        estimator: from :func:`hgpose.load_estimator`.
        options: what is written.
        seconds: at most so long a stage.

    Raises:
        InputError: the video cannot be opened.
    """
    with VideoSource(video) as source:
        # Nothing is at its usual speed from the start.
        Follower(estimator, options.detect_every, source.info.fps).push(list(islice(source, _WARM_UP)))
    with VideoSource(video) as source:
        decode, info = _rate(source, seconds), source.info
    rate, followed, detector, pose, end_s = _follow(video, estimator, options.detect_every, seconds)
    stages = {"decode": decode, "find and follow people": rate}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = Run(info, estimator.model, estimator.keypoint_set, options.style)
        sinks = [stack.enter_context(SINKS[kind](Path(folder), "bench", run)) for kind in options.save]

        def written() -> Iterator[None]:
            for count, (frame, people) in enumerate(cycle(followed)):
                # The encoder wants times that rise.
                frame = replace(frame, index=count, time_s=count / float(info.fps or 25))
                for sink in sinks:
                    sink.write(frame, people)
                yield

        stages["draw and write"] = _rate(written(), seconds)
    with tempfile.TemporaryDirectory() as folder:
        summary = process_video(video, folder, estimator, replace(options, end_s=end_s))
    mean = sum(len(poses) for _, poses in followed) / len(followed)
    return Benchmark(stages, summary.frames / summary.seconds, detector, pose, mean)


def _follow(
    video: Path, estimator: Estimator, detect_every: int, seconds: float
) -> tuple[float, Finished, float, float, float | None]:
    """Finds and follows people, nothing beside it, as the pipeline does.

    Returns:
        frames a second, without the time to decode them; the first frames with their people; the shares
        of that time in the detector and in the pose network; and where the frames that it took end,
        seconds, ``None`` for the end of the video.
    """
    count, spent_s, kept, end_s = 0, 0.0, Finished(), None
    with VideoSource(video) as source:
        follower = Follower(estimator, detect_every, source.info.fps)
        frames = iter(source)
        first_s = 0.0
        while batch_frames := list(islice(frames, estimator.options.batch)):
            if not count:
                first_s = batch_frames[0].time_s
            if spent_s >= seconds:
                end_s = batch_frames[0].time_s - first_s
                break
            started = time.perf_counter()
            finished = follower.push(batch_frames)
            spent_s += time.perf_counter() - started
            count += len(batch_frames)
            kept += finished[: _KEPT - len(kept)]
    kept += follower.flush()[: _KEPT - len(kept)]
    return count / spent_s, kept, follower.detector_s / spent_s, follower.pose_s / spent_s, end_s
