"""Whole folders: every video and image below them, on as many workers as there are, again after a crash.

In the folder for results, below ``.hgpose``, a record an input says what became of it (the manifest), and
the chunks of inputs that are not finished wait.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import av
import filelock

from hgpose.atomic import output_errors
from hgpose.chunks import IMAGES, ChunkStore, Grid
from hgpose.errors import InputError, OptionsError, OutputError
from hgpose.inputs import Item, find_items
from hgpose.keypoints import BODY19
from hgpose.manifest import Origin, differences, origin, read_origin
from hgpose.options import BatchOptions, EstimatorOptions, VideoOptions
from hgpose.pipeline import Summary
from hgpose.places import Place, as_path, file_system, is_uri
from hgpose.process import check_kinds
from hgpose.workers import (
    WORK,
    Outcome,
    Setup,
    Task,
    begin_ray,
    chunk_count,
    local_devices,
    ray_workers,
    results_of,
    run_local,
    run_ray,
)

_MANIFEST = ".hgpose/manifest"
#: What a whole record has at least.
_RECORD = {"input": str, "state": str, "problems": list, "files": list, "origin": dict, "written": dict}
#: A video is split if it is more than one of so many parts a worker of all the work there is.
_PARTS = 4
#: Requests to a store behind a URI at once.
_REQUESTS = 16


@dataclass
class BatchProgress:
    """How far a batch is.

    Attributes:
        inputs: how many there are.
        done: of them, those of earlier runs and those that failed among them.
        tasks, tasks_done: pieces of work in this run.
        frames: that were processed in this run.
        notes: what there is to say at the beginning.
    """

    inputs: int = 0
    done: int = 0
    tasks: int = 0
    tasks_done: int = 0
    frames: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class BatchSummary:
    """What became of a batch.

    Attributes:
        summaries: of the inputs that were done in this run.
        kept: inputs that an earlier run had done.
        failures: input, and reason, of each file that could not be read, is damaged or failed otherwise;
            also of those an earlier run had done.
    """

    summaries: list[Summary] = field(default_factory=list)
    kept: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Job:
    """An item in this run.

    Attributes:
        key: name of its record and its folder for chunks.
        done: what became of its tasks so far.
        left: tasks before it is finished.
    """

    item: Item
    key: str
    origin: Origin
    done: list[Summary] = field(default_factory=list)
    left: int = 0


def process_batch(
    inputs: str | Sequence[str],
    out: str | Path,
    how: EstimatorOptions | None = None,
    what: VideoOptions | None = None,
    who: BatchOptions | None = None,
    report: Callable[[BatchProgress], None] = lambda progress: None,
) -> BatchSummary:
    """Finds the people in all videos and images of some folders, and writes files as they lie there.

    Each video has the files of :func:`hgpose.process_video`, each folder of images those of
    :func:`hgpose.process_images`; Parquet is one data set ``keypoints.parquet``. What an earlier run has
    done of the same inputs with the same options and weights is kept; what is done does not depend on how
    many workers there are.

    Args:
        inputs: folders, files, glob patterns, text files with an input a line, or URIs of the same; or one.
        out: folder for the results, or a URI.
        how: how people are found.
        what: what is written. ``overwrite`` replaces files that no batch has written.
        who: does the work.
        report: called now and then, and first with the notes.

    Returns:
        The summary; ``failures.json`` in ``out`` has its failures. One file never stops the others.

    Raises:
        OptionsError: an unknown kind, a stream, boxes of a file; no such device or Ray cluster.
        WeightsError: weights are missing or damaged.
        OutputError: nothing can be written to ``out``, or another batch is at it.
    """
    inputs = [inputs] if isinstance(inputs, str) else inputs
    how, what, who = how or EstimatorOptions(), what or VideoOptions(), who or BatchOptions()
    check_kinds(what.save)
    if how.detector.startswith("boxes:"):
        raise OptionsError(
            "--detector boxes: belongs to one video or set of images; use hgpose video or images"
        )
    if how.heatmaps:
        raise OptionsError("--heatmaps: a batch does not draw them; use hgpose video or images")
    out = as_path(str(out))
    place = Place.of(out)
    items, failures = find_items(inputs, out)
    summary = BatchSummary(failures=failures)
    progress = BatchProgress(inputs=len(items) + len(failures), done=len(failures))
    with _locked(out):
        manifest = _Manifest(place, what)
        jobs = list(_to_do(items, manifest, place, how, what, summary, progress))
        progress.done = progress.inputs - len(jobs)
        report(progress)
        _work(jobs, manifest, place, Setup(how, what, out), who, summary, progress, report)
        told = [{"input": name, "reason": reason} for name, reason in summary.failures]
        place.write("failures.json", (json.dumps(told, indent=1) + "\n").encode())
    return summary


@contextmanager
def _locked(out: str) -> Iterator[None]:
    """Keeps a second batch out of a folder of this machine."""
    if is_uri(out):
        yield
        return
    path = Path(out, ".hgpose", "lock")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise OutputError(
                f"{out}: another batch is at work there; wait for it, or choose another -o"
            ) from None
    try:
        yield
    finally:
        lock.release()


class _Manifest:
    """A record an input.

    Args:
        place: folder for the results.
        what: the options of this run.
    """

    def __init__(self, place: Place, what: VideoOptions) -> None:
        self._place = place
        self._written = {"save": list(what.save), "style": asdict(what.style)}
        #: All there is in the folder for the results, and the folders of that.
        self.there: set[str] = set()
        for name in place.files():
            self.there.update([name, *(str(parent) for parent in Path(name).parents)])
        names = [name for name in self.there if name.startswith(f"{_MANIFEST}/") and name.endswith(".json")]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            records = pool.map(lambda name: read_origin(place.read(name)), names)
        self._records = {
            Path(name).stem: record
            for name, record in zip(names, records, strict=True)
            if record is not None and all(isinstance(record.get(key), kind) for key, kind in _RECORD.items())
        }

    def record(self, key: str) -> Mapping[str, Any] | None:
        """What there is to know of an input."""
        return self._records.get(key)

    def files_of(self, label: str) -> set[str]:
        """The results of an input, also those by a name that it had before it shared its stem."""
        location = _absolute(label)
        own = [record for record in self._records.values() if _absolute(record["input"]) == location]
        return {name for record in own for name in record["files"]}

    def begun(self, key: str) -> bool:
        """Whether the input's results are there or may be: then they may be replaced."""
        record = self._records.get(key)
        # What a damaged record said nobody knows.
        done = record["state"] == "done" if record else f"{_MANIFEST}/{key}.json" in self.there
        return done or f"{WORK}/{key}" in self.there

    def why_again(self, record: Mapping[str, Any], now: Origin) -> str:
        """Why an input that is done must be done again; empty if it need not be."""
        changed = differences(record["origin"], now) or differences(record["written"], self._written)
        gone = [name for name in record["files"] if name not in self.there]
        return changed or (f"{gone[0]} is gone" if gone else "")

    def write(self, job: _Job, summary: Summary) -> None:
        """Says what became of an input."""
        record = {
            "input": job.item.label,
            "state": "done" if summary.error is None else "failed",
            "error": summary.error,
            "problems": summary.problems,
            "frames": summary.frames,
            "files": summary.files,
            "origin": job.origin,
            "written": self._written,
        }
        self._place.write(f"{_MANIFEST}/{job.key}.json", json.dumps(record, indent=1).encode())


def _to_do(
    items: Sequence[Item],
    manifest: _Manifest,
    place: Place,
    how: EstimatorOptions,
    what: VideoOptions,
    summary: BatchSummary,
    progress: BatchProgress,
) -> Iterator[_Job]:
    """What is not done yet; notes the rest."""
    read = {_absolute(location) for item in items for location in item.locations}
    first_with: dict[str, str] = {}
    again: dict[str, list[str]] = {}
    with ThreadPoolExecutor(_REQUESTS) as pool:
        origins = list(pool.map(lambda item: _origin(how, what, item), items))
    for item, now in zip(items, origins, strict=True):
        key = sha256(item.name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        results = results_of(item, what.save)
        try:
            for name in results:
                if (other := first_with.setdefault(name, item.label)) != item.label:
                    raise InputError(f"{item.label}: its results would replace those of {other}; rename one")
                if _absolute(f"{place}/{name}") in read:
                    raise OutputError(
                        f"{place}/{name} is an input and will not be written over; choose another -o"
                    )
            if isinstance(now, InputError):
                raise now
            record = manifest.record(key)
            if record is not None and record["state"] == "done":
                why = manifest.why_again(record, now)
                if not why:
                    summary.kept += 1
                    summary.failures += [(name, reason) for name, reason in record["problems"]]
                    continue
                other = record["input"]
                if (
                    record["origin"].get("input") != now["input"]
                    and _absolute(other) != _absolute(item.label)
                    and not what.overwrite
                ):
                    raise OutputError(
                        f"{item.label}: its results would replace those of {other}; pass --overwrite "
                        "or choose another -o"
                    )
                again.setdefault(why, []).append(item.label)
            elif not manifest.begun(key) and not what.overwrite:
                for name in results:
                    if name in manifest.there and name not in manifest.files_of(item.label):
                        raise OutputError(
                            f"{place}/{name} already exists; pass --overwrite to replace it or choose "
                            "another -o"
                        )
            yield _Job(item, key, now)
        except (InputError, OutputError) as error:
            summary.failures.append((item.label, str(error)))
    if full := [item for item in items if item.is_called_in_full]:
        names = ", ".join(PurePosixPath(item.name).name for item in full[:2])
        progress.notes.append(
            f"{len(full)} videos share a stem with others in their folder; results are called by the whole "
            f"name: {names}{', ...' if len(full) > 2 else ''}"
        )
    if summary.kept:
        progress.notes.append(f"{summary.kept} of {progress.inputs} inputs are done already")
    for why, labels in again.items():
        which = labels[0] if len(labels) == 1 else f"{len(labels)} inputs"
        progress.notes.append(f"{which}: done again, as {why}")


def _absolute(location: str) -> str:
    return location if is_uri(location) else str(Path(location).resolve())


def _origin(how: EstimatorOptions, what: VideoOptions, item: Item) -> Origin | InputError:
    try:
        found = origin(how, what, item.locations)
        if item.is_set:
            # Overlays of images are drawn when their chunk is computed.
            found["drawn"] = {"overlay": "overlay" in what.save} | asdict(what.style)
        return found
    except InputError as error:
        return error


def _work(
    jobs: Sequence[_Job],
    manifest: _Manifest,
    place: Place,
    setup: Setup,
    who: BatchOptions,
    summary: BatchSummary,
    progress: BatchProgress,
    report: Callable[[BatchProgress], None],
) -> None:
    """Does all jobs: first all chunks, and with them what is one task; then the results of all else."""
    if not jobs:
        return
    run: Callable[[Sequence[Task]], Iterator[Outcome]]
    if who.engine == "ray":
        begin_ray(who.address)
        workers, gpus = ray_workers(setup.how, who.workers)
        run = partial(run_ray, setup=setup, actors=workers, gpus=gpus)
    else:
        devices = local_devices(setup.how, who.workers)
        workers = len(devices)
        run = partial(run_local, setup=setup, devices=devices)
    by_key = {job.key: job for job in jobs}
    first = _first_tasks(jobs, place, setup.how, setup.what, workers)
    whole = {task.key for task in first if task.finish}
    for task in first:
        by_key[task.key].left += 1
    for job in jobs:
        job.left += job.key not in whole
    progress.tasks = sum(job.left for job in jobs)

    def do(tasks: Sequence[Task]) -> None:
        for outcome in run(tasks) if tasks else ():
            if outcome.fatal is not None:
                raise outcome.fatal
            job = by_key[outcome.key]
            job.done.append(outcome.summary)
            job.left -= 1
            progress.tasks_done += 1
            progress.frames += outcome.summary.frames
            if not job.left:
                _conclude(job, setup.what, manifest, place, summary)
                progress.done += 1
            report(progress)

    do(first)
    failed = [job for job in jobs if job.left and any(s.error is not None for s in job.done)]
    for job in failed:
        _conclude(job, setup.what, manifest, place, summary)
        progress.done += 1
    do([Task(job.item, job.key, job.origin) for job in jobs if job.left and job not in failed])


def _first_tasks(
    jobs: Sequence[_Job], place: Place, how: EstimatorOptions, what: VideoOptions, workers: int
) -> list[Task]:
    """What can be done at once: whole items, or parts of long ones of which chunks are missing."""

    def prepared(job: _Job) -> tuple[set[int], int]:
        """The chunks that are there, and how many there will be, about."""
        store = ChunkStore(place.below(f"{WORK}/{job.key}"), BODY19, job.origin)
        store.begin()
        if job.item.is_set:
            return store.numbers(), chunk_count(job.item)
        return store.numbers(), _video_chunks(job.item.locations[0], how, what) if workers > 1 else 1

    with ThreadPoolExecutor(_REQUESTS) as pool:
        chunks = list(pool.map(prepared, jobs))
    all_left = sum(max(count - len(there), 1) for there, count in chunks)
    share = max(math.ceil(all_left / (_PARTS * workers)), 1)
    tasks = []
    for job, (there, count) in zip(jobs, chunks, strict=True):
        missing = [number for number in range(count) if number not in there]
        if count == 1 or (not job.item.is_set and len(missing) <= share):
            tasks.append(Task(job.item, job.key, job.origin, end=1 if job.item.is_set else None))
            continue
        if job.item.is_set:
            for number in missing:
                files = job.item.files[number * IMAGES : (number + 1) * IMAGES]
                part = replace(job.item, files=files)
                tasks.append(Task(part, job.key, job.origin, number, number + 1, finish=False))
            continue
        first = 0
        while first < len(missing):
            # Chunks in a row, so that what lies before them is decoded once.
            last = first
            while last + 1 < min(len(missing), first + share) and missing[last + 1] == missing[last] + 1:
                last += 1
            # Nobody knows the length of a video before it is decoded.
            end = missing[last] + 1 if missing[last] + 1 < count else None
            tasks.append(Task(job.item, job.key, job.origin, missing[first], end, finish=False))
            first = last + 1
    return tasks


def _video_chunks(location: str, how: EstimatorOptions, what: VideoOptions) -> int:
    """In how many chunks a video will be done, by what it says of itself."""
    # What is wrong with a video shows when it is processed.
    with suppress(Exception), ExitStack() as stack:
        if is_uri(location):
            system, path = file_system(location)
            file = stack.enter_context(system.open(path, "rb"))
        else:
            file = stack.enter_context(Path(location).open("rb"))
        container = stack.enter_context(av.open(file, options={"protocol_whitelist": "none"}))
        stream = container.streams.video[0]
        fps = Fraction(stream.average_rate or stream.guessed_rate or 25)
        frames = stream.frames or float(fps) * (container.duration or 0) / av.time_base
        return max(math.ceil(frames / what.every / Grid.of(fps, what.every, how, what.chunk_s).length), 1)
    return 1


def _conclude(
    job: _Job, what: VideoOptions, manifest: _Manifest, place: Place, summary: BatchSummary
) -> None:
    """Writes down what became of an item."""
    item = job.item
    error = next((s.error for s in job.done if s.error is not None), None)
    if error is not None:
        found = Summary(item.label, error=error)
        summary.failures.append((item.label, error))
    else:
        # The last task has written the results and seen all frames.
        found = job.done[-1]
        unread = {name for name, _ in found.problems} if item.is_set else set()
        readable = replace(item, files=tuple(file for file in item.files if file[1] not in unread))
        # The folder of files a person is empty where nobody is seen, and a store keeps no empty folders.
        kinds = [kind for kind in what.save if kind != "trc" or found.people]
        found.name, found.files = item.label, results_of(readable, kinds)
        found.seconds = sum(s.seconds for s in job.done)
        found.problems = [
            (f"{item.label}/{name}" if item.is_set else item.label, reason) for name, reason in found.problems
        ]
        summary.failures += found.problems
    summary.summaries.append(found)
    manifest.write(job, found)
    work = place.below(f"{WORK}/{job.key}")
    if error is None or not ChunkStore(work, BODY19, job.origin).numbers():
        work.remove()
