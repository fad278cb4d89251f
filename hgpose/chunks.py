"""Long sources in chunks, so that they can be resumed and shared out among machines.

The chunks of a source lie on a fixed grid. Each is followed from a clean state that warms up on the last
frames before it, the overlap, and looks ahead as far as following ever does; so what comes of a chunk does
not depend on who computes it or what was computed before. Its people are joined to those of the chunk
before by how well both agree on the overlap. That is the one way in which files are processed: at one go,
resumed, or chunk by chunk on many machines.

Symbols: N people, K keypoints.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgpose.detect import iou
from hgpose.errors import InputError
from hgpose.estimate import Estimator
from hgpose.follow import Chooser, Finished, Follower
from hgpose.keypoints import KeypointSet
from hgpose.manifest import Origin, differences, read_origin
from hgpose.options import EstimatorOptions
from hgpose.places import Place
from hgpose.sources import Source
from hgpose.sources.images import ImageSource, describe_failures
from hgpose.sources.video import VideoSource
from hgpose.track import join
from hgpose.types import Frame, Poses

#: Images in a chunk.
IMAGES = 64
#: The overlap is longer than a person may be out of sight by this, seconds, and has at least so many frames.
_OVERLAP_S, _OVERLAP_FRAMES = 1.0, 20
#: No container's frame rate above this is believed.
_MOST_FPS = 240.0
_ORIGIN, _FINISHED, _CHUNK = "origin.json", "finished", re.compile(r"chunk-(\d+)\.npz")
#: People whose boxes overlap on the frames that two chunks share by this on average are the same.
_SAME = 0.5


@dataclass(frozen=True)
class Grid:
    """Where the chunks of a source lie.

    Frames are counted by position: those taken of a video, all images of a set.

    Attributes:
        length: positions in a chunk.
        overlap: positions before a chunk that are looked at, too.
    """

    length: int
    overlap: int = 0

    @classmethod
    def of(cls, fps: Fraction | None, every: int, options: EstimatorOptions, chunk_s: float) -> Grid:
        """The grid of a source; it depends on nothing else.

        Args:
            fps: of the source, ``None`` for an image set.
            every: which frames are taken.
            options: whether people are followed, and how long they may be out of sight.
            chunk_s: length of a chunk, seconds.
        """
        if fps is None:
            return cls(IMAGES)
        taken_fps = min(float(fps), _MOST_FPS) / every
        length = max(math.ceil(chunk_s * taken_fps), 1)
        if not options.track:
            return cls(length)
        overlap = max(math.ceil((options.lost_s + _OVERLAP_S) * taken_fps), _OVERLAP_FRAMES)
        return cls(max(length, 2 * overlap), overlap)

    def begin(self, number: int) -> int:
        """Position of the first frame of a chunk."""
        return number * self.length

    def start(self, number: int) -> int:
        """Position of the first frame that is looked at for it."""
        return max(self.begin(number) - self.overlap, 0)


@dataclass(frozen=True)
class Seen:
    """A frame without its picture, and everybody on it; ids are those of the chunk."""

    index: int
    time_s: float
    name: str
    size_wh: tuple[int, int]
    poses: Poses

    def blank(self) -> Frame:
        """The frame with a black picture that takes no memory."""
        width, height = self.size_wh
        image = np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))
        return Frame(image, self.index, self.time_s, self.name)


@dataclass
class Chunk:
    """What came of a chunk.

    Attributes:
        number: from 0.
        before: the frames of the overlap.
        frames: its own.
        last: the source ends in it.
        sides_corrected: as of :class:`~hgpose.follow.Follower`, on its own frames.
        problems: name and reason of each image that cannot be read, or of the video if it is damaged.
    """

    number: int
    before: list[Seen] = field(default_factory=list)
    frames: list[Seen] = field(default_factory=list)
    last: bool = False
    sides_corrected: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def encode(self) -> bytes:
        """All of it as an ``.npz`` archive."""
        seen = [*self.before, *self.frames]
        people = [s.poses for s in seen if len(s.poses)]
        arrays: dict[str, NDArray[Any]] = {
            "about": np.array([self.number, len(self.before), self.last, self.sides_corrected], np.int64),
            "problems": np.frombuffer(json.dumps(self.problems).encode(), np.uint8),
            "index": np.array([s.index for s in seen], np.int64),
            "time_s": np.array([s.time_s for s in seen], np.float64),
            "names": np.frombuffer(json.dumps([s.name for s in seen]).encode(), np.uint8),
            "size_wh": np.array([s.size_wh for s in seen], np.int64).reshape(-1, 2),
            "people": np.array([len(s.poses) for s in seen], np.int64),
        }
        for name in ("keypoints", "scores", "boxes", "box_scores", "ids", "raw", "interpolated"):
            parts = [part for p in people if (part := getattr(p, name)) is not None]
            if parts:
                arrays[name] = np.concatenate(parts)
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def decode(cls, data: bytes, keypoint_set: KeypointSet) -> Chunk:
        """What :meth:`encode` gave.

        Raises:
            ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile: it is not that.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            a = {name: arrays[name] for name in arrays.files}
        number, before, last, sides = a["about"].tolist()
        names = json.loads(a["names"].tobytes())
        seen, first = [], 0
        for i, count in enumerate(a["people"].tolist()):
            rows = slice(first, first + count)
            first += count
            poses = Poses.empty(keypoint_set)
            if count:
                poses = Poses(
                    a["keypoints"][rows],
                    a["scores"][rows],
                    a["boxes"][rows],
                    a["box_scores"][rows],
                    a["ids"][rows],
                    keypoint_set,
                    None,
                    a["raw"][rows] if "raw" in a else None,
                    a["interpolated"][rows] if "interpolated" in a else None,
                )
            width, height = a["size_wh"][i].tolist()
            seen.append(Seen(int(a["index"][i]), float(a["time_s"][i]), names[i], (width, height), poses))
        problems = [(name, reason) for name, reason in json.loads(a["problems"].tobytes())]
        return cls(number, seen[:before], seen[before:], bool(last), sides, problems)


class ChunkStore:
    """The chunks of one source that are done, each a file.

    Args:
        place: a folder of their own.
        keypoint_set: of their poses.
        now: what they would come from by now.

    Attributes:
        changed: what is not as it was when those in store were computed, in words; empty if all is.
        there: whether any are in store that came from the same.
        finished: whether the results of the same are, for which nothing is in store any more.
    """

    def __init__(self, place: Place, keypoint_set: KeypointSet, now: Origin) -> None:
        self._place, self._keypoint_set, self._now = place, keypoint_set, now
        names = set(place.files())
        before = read_origin(place.read(_ORIGIN)) if _ORIGIN in names else None
        self.changed = "" if before is None else differences(before, now)
        self._names = names if before is not None and not self.changed else set()
        self._begun = self.there = bool(self._names)
        self.finished = _FINISHED in self._names

    def forget(self) -> None:
        """Begins anew."""
        self._names, self._begun, self.there, self.finished = set(), False, False, False

    def begin(self) -> None:
        """Makes room for chunks, unless there are some that came from the same."""
        if not self._begun:
            self._place.remove()
            self._place.write(_ORIGIN, json.dumps(self._now).encode())
            self._begun = True

    def read(self, number: int) -> Chunk | None:
        """The chunk, or ``None`` if it is not there whole."""
        name = self._name(number)
        if name not in self._names or (data := self._place.read(name)) is None:
            return None
        try:
            return Chunk.decode(data, self._keypoint_set)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            return None

    def numbers(self) -> set[int]:
        """Of the chunks that were there at first."""
        return {int(found[1]) for name in self._names if (found := _CHUNK.fullmatch(name))}

    def write(self, chunk: Chunk) -> None:
        """Puts a chunk there, whole or not at all."""
        self.begin()
        self._place.write(self._name(chunk.number), chunk.encode())

    def tidy(self) -> bool:
        """Removes what is of no use without a chunk; whether there is one, of this run or one before."""
        names = self._place.files()
        if any(_CHUNK.fullmatch(name) for name in names):
            return True
        if names:
            self._place.remove()
        return False

    def finish(self) -> None:
        """Puts in the chunks' place that their results are written."""
        self.forget()
        self.begin()
        self._place.write(_FINISHED, b"")

    def remove(self) -> None:
        """Removes all that is in store."""
        self._place.remove()

    @staticmethod
    def _name(number: int) -> str:
        return f"chunk-{number:06d}.npz"


class _Open(ABC):
    """A chunk at work: frames go in, finished ones wait in ``out``.

    Attributes:
        chunk: what came of it so far.
        out: its own frames that are finished, and not yet taken.
        done: nothing more will come.
    """

    def __init__(self, chunk: Chunk, begin: int, end: int) -> None:
        self.chunk, self._begin, self._end = chunk, begin, end
        self.out: deque[tuple[Frame, Poses]] = deque()
        self.done = False

    @abstractmethod
    def push(self, position: int, frame: Frame) -> None:
        """Takes the next frame."""

    def close(self) -> None:
        """No frame will follow."""
        self.done = True


class _Stored(_Open):
    """A chunk that was computed before."""

    def __init__(self, chunk: Chunk, begin: int, end: int) -> None:
        super().__init__(chunk, begin, end)
        self._left = deque(chunk.frames)
        self.done = not self._left

    def push(self, position: int, frame: Frame) -> None:
        if self._begin <= position < self._end:
            if not self._left or self._left[0].index != frame.index:
                raise InputError(f"frame {frame.index} was not there before: the source has changed")
            self.out.append((frame, self._left.popleft().poses))
            self.done = not self._left

    def replay(self) -> None:
        """Lets all its frames out, with black pictures."""
        self.out.extend((seen.blank(), seen.poses) for seen in self._left)
        self.done = True


class _Computed(_Open):
    """A chunk that is computed.

    Args:
        chunk, begin, end: as of :class:`_Open`.
        start: position of the first frame that goes in.
        follower: fresh.
        batch: frames that go through the networks together, if they are each by itself.
    """

    def __init__(
        self, chunk: Chunk, begin: int, end: int, start: int, follower: Follower, batch: int
    ) -> None:
        super().__init__(chunk, begin, end)
        self.follower, self._batch = follower, 1 if follower.follows else batch
        self._position, self._sides_before = start, 0
        self._gathered: list[Frame] = []

    def push(self, position: int, frame: Frame) -> None:
        if self.done:
            return
        if position >= self._end and not self.follower.follows:
            self.close()
            return
        self._gathered.append(frame)
        if len(self._gathered) == self._batch:
            self._compute()

    def close(self) -> None:
        if not self.done:
            if self._gathered:
                self._compute()
            self._take(self.follower.flush())
            self.done = True

    def _compute(self) -> None:
        frames, self._gathered = self._gathered, []
        self._take(self.follower.push(frames))

    def _take(self, finished: Finished) -> None:
        for frame, poses in finished:
            height, width = frame.image.shape[:2]
            seen = Seen(frame.index, frame.time_s, frame.name, (width, height), replace(poses, heatmaps=None))
            if self.follower.follows and self._position < self._begin:
                self.chunk.before.append(seen)
                self._sides_before = self.follower.sides_corrected
            elif not self.done:
                self.chunk.frames.append(seen)
                self.out.append((frame, poses))
                self.done = self.follower.follows and self._position + 1 == self._end
            self._position += 1
        self.chunk.sides_corrected = self.follower.sides_corrected - self._sides_before


class _Identities:
    """Ids that go on from chunk to chunk."""

    def __init__(self, overlap: int) -> None:
        self._next = 1
        self._tail: deque[Poses] = deque(maxlen=overlap)
        self._names: dict[int, int] = {}

    def begin(self, before: list[Seen]) -> None:
        """Begins a chunk, of which these frames lie before it."""
        self._names = {}
        tail = list(self._tail)[-len(before) :] if before else []
        seen = [s.poses for s in before][-len(tail) :] if tail else []
        old = sorted({identity for poses in tail for identity in poses.ids.tolist()})
        new = sorted({identity for poses in seen for identity in poses.ids.tolist()})
        together = np.zeros((len(old), len(new)))
        old_frames, new_frames = np.zeros(len(old)), np.zeros(len(new))
        for a, b in zip(tail, seen, strict=True):
            rows = [old.index(identity) for identity in a.ids.tolist()]
            columns = [new.index(identity) for identity in b.ids.tolist()]
            together[np.ix_(rows, columns)] += iou(a.boxes, b.boxes)
            old_frames[rows] += 1
            new_frames[columns] += 1
        alike = together / np.maximum(np.minimum(old_frames[:, None], new_frames[None]), 1)
        self._names = {new[j]: old[i] for i, j in join(alike, _SAME)}

    def __call__(self, poses: Poses) -> Poses:
        """The people of the chunk's next frame, by the ids that they have over all chunks."""
        for identity in poses.ids.tolist():
            if identity not in self._names:
                self._names[identity], self._next = self._next, self._next + 1
        if len(poses):
            ids = np.array([self._names[identity] for identity in poses.ids.tolist()], np.int64)
            order = np.argsort(ids)
            poses = replace(poses[order], ids=ids[order])
        self._tail.append(poses)
        return poses


@dataclass(frozen=True)
class Chunking:
    """Which chunks of a source are wanted, and where they are kept.

    Attributes:
        every, chunk_s: as of :class:`~hgpose.options.VideoOptions`.
        store: of the chunks that are done, and for those that will be.
        first, end: the chunks wanted; ``end`` ``None``: to the end of the source.
        partial: others compute the rest; there may be nothing in this part.
        pictures: frames must have their pictures; otherwise those of chunks in store may be black.
    """

    every: int = 1
    chunk_s: float = 60.0
    store: ChunkStore | None = None
    first: int = 0
    end: int | None = None
    partial: bool = False
    pictures: bool = True


#: All of a source, nothing kept.
AT_ONE_GO = Chunking()


class ChunkedFollower:
    """Takes the frames of a source, whatever is in store of it already, to those who are on them.

    Args:
        estimator: finds people and keypoints.
        source: entered, not yet read.
        detect_every, batch: as of :func:`hgpose.pipeline.run`.
        chunking: which chunks.

    Attributes:
        detector_s, pose_s, detections: of all chunks that were computed.
        sides_corrected: of all chunks.
        problems: of all chunks so far.

    Raises:
        OptionsError: as of :class:`~hgpose.follow.Follower`.
    """

    def __init__(
        self, estimator: Estimator, source: Source, detect_every: int, batch: int, chunking: Chunking
    ) -> None:
        self._estimator, self._source, self._store = estimator, source, chunking.store
        self._detect_every, self._batch = detect_every, batch
        fps = source.info.fps
        self._fps = None if fps is None else fps / chunking.every
        self._grid = Grid.of(fps, chunking.every, estimator.options, chunking.chunk_s)
        self._is_set = fps is None
        # Says at once what options forbid.
        self._follows = self._fresh().follows
        self._next, self._last = chunking.first, None if chunking.end is None else chunking.end - 1
        self._over = self._last is not None and self._next > self._last
        self._open: deque[_Open] = deque()
        self._begun = False
        self._identities = _Identities(self._grid.overlap)
        self._choose = Chooser(estimator.options)
        self.detector_s = self.pose_s = 0.0
        self.detections = self.sides_corrected = 0
        self.problems: list[tuple[str, str]] = []
        self._lead = 0 if chunking.pictures else self._stored_from(self._next)
        if isinstance(source, VideoSource):
            source.skip = self._grid.start(self._next + self._lead)

    @property
    def damage(self) -> str | None:
        """Why frames of the chunks so far may be missing, or ``None``."""
        if self._is_set:
            return describe_failures(self.problems, self._source.info.frame_count)
        return "; ".join(reason for _, reason in self.problems) or None

    def _fresh(self) -> Follower:
        return Follower(self._estimator, self._detect_every, self._fps)

    def _stored_from(self, first: int) -> int:
        """How many chunks in a row are in store."""
        count = 0
        while not self._over and (chunk := self._read(first + count)) is not None:
            count += 1
            if chunk.last or chunk.number == self._last:
                break
        return count

    def _read(self, number: int) -> Chunk | None:
        return None if self._store is None else self._store.read(number)

    def __call__(self, frames: Iterator[Frame]) -> Iterator[Finished]:
        """Every frame of the chunks wanted with its people, by id, in order."""
        for _ in range(self._lead):
            chunk = self._read(self._next)
            if chunk is None:
                raise InputError("a chunk that was in store is gone; run it again")
            opened = _Stored(chunk, 0, 0)
            opened.replay()
            self._open.append(opened)
            self._next += 1
            yield self._drain()
        position = self._grid.start(self._next)
        while not self._over:
            frame = next(frames, None)
            if frame is None:
                yield self._end(position)
                return
            if self._is_set:
                position = frame.index
            yield self._push(position, frame)
            position += 1

    def _push(self, position: int, frame: Frame) -> Finished:
        while (self._last is None or self._next <= self._last) and self._grid.start(self._next) <= position:
            self._open.append(self._opened(self._next))
            self._next += 1
        for opened in self._open:
            opened.push(position, frame)
        return self._drain()

    def _opened(self, number: int) -> _Open:
        begin, end = self._grid.begin(number), self._grid.begin(number + 1)
        if (chunk := self._read(number)) is not None:
            return _Stored(chunk, begin, end)
        return _Computed(Chunk(number), begin, end, self._grid.start(number), self._fresh(), self._batch)

    def _end(self, position: int) -> Finished:
        """The source has ended; ``position`` is that of the frame that would have followed."""
        # The last one may have been warmed up for nothing.
        while self._open and self._grid.begin(self._open[-1].chunk.number) >= position:
            self._count(self._open.pop())
        if self._is_set:
            # Where not one image of a chunk can be read, it is done all the same.
            while self._last is not None and self._next <= self._last:
                self._open.append(self._opened(self._next))
                self._next += 1
        for opened in self._open:
            opened.close()
            opened.chunk.last = not self._is_set and self._grid.begin(opened.chunk.number + 1) >= position
        finished = self._drain()
        self.problems += self._new_problems(ended=False)
        return finished

    def _drain(self) -> Finished:
        """What the oldest chunk has finished, then the next one."""
        finished: Finished = []
        while self._open:
            oldest = self._open[0]
            if not self._begun and oldest.out:
                self._identities.begin(oldest.chunk.before)
                self._begun = True
            while oldest.out:
                frame, poses = oldest.out.popleft()
                if self._follows:
                    poses = self._choose(frame, self._identities(poses))
                finished.append((frame, poses))
            if not oldest.done:
                break
            self._close(oldest)
        return finished

    def _close(self, oldest: _Open) -> None:
        self._open.popleft()
        self._begun = False
        chunk = oldest.chunk
        if isinstance(oldest, _Computed):
            self._count(oldest)
            chunk.problems = self._new_problems(chunk.last)
            if self._store is not None:
                self._store.write(chunk)
        self.problems += chunk.problems
        self.sides_corrected += chunk.sides_corrected
        self._over = chunk.last or chunk.number == self._last

    def _count(self, opened: _Open) -> None:
        if isinstance(opened, _Computed):
            self.detector_s += opened.follower.detector_s
            self.pose_s += opened.follower.pose_s
            self.detections += opened.follower.detections

    def _new_problems(self, ended: bool) -> list[tuple[str, str]]:
        if isinstance(self._source, ImageSource):
            return self._source.failures[len(self.problems) :]
        return [(self._source.info.name, self._source.damage)] if ended and self._source.damage else []
