"""Who does the work of a batch: processes on this machine, or the actors of a Ray cluster.

All run :class:`Worker`. A worker on a CPU computes with one thread, however many workers there are: on
some processors the number of threads changes the last bits of what a network says, and so what is written.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any
from urllib.parse import quote

import cv2
import torch

from hgpose.chunks import IMAGES, Chunking, ChunkStore
from hgpose.cores import usable_cores
from hgpose.errors import HgposeError, OptionsError
from hgpose.estimate import Estimator, load_estimator
from hgpose.inputs import Item
from hgpose.keypoints import BODY19, KeypointSet
from hgpose.manifest import Origin
from hgpose.options import EstimatorOptions, VideoOptions
from hgpose.pipeline import Summary, run
from hgpose.places import Place, local_files
from hgpose.process import run_video, unexpected
from hgpose.sinks import SINKS, Run, Sink
from hgpose.sinks.overlay import OverlayImages, overlay_name
from hgpose.sinks.parquet import ParquetSink
from hgpose.sources import Source
from hgpose.sources.images import ImageSource
from hgpose.types import ModelInfo, SourceInfo

#: Where in the folder for results the chunks of unfinished items are.
WORK = ".hgpose/work"
#: Where chunks of images wait in a workshop until their overlays are in place.
_CHUNKS = ".chunks"
#: The address of a Ray cluster, and how long to wait for it to answer.
_HOST, _KNOCK_S = re.compile(r"(ray://)?(?P<name>[^/:]+):(?P<port>\d+)"), 5.0
#: A task whose worker died is given to another so often.
_ATTEMPTS = 2
#: File systems take little longer names.
_NAME_BYTES = 240


@dataclass(frozen=True)
class Setup:
    """What all workers of a batch are told."""

    how: EstimatorOptions
    what: VideoOptions
    out: str


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Attributes:
        item: what it is of; of a part of a set only the images of that part.
        key: name of the item's folder for chunks.
        origin: of the item.
        first, end: the chunks to put in store; ``end`` ``None``: to the end of the source.
        finish: write the results, too; ``first`` is 0.
    """

    item: Item
    key: str
    origin: Origin
    first: int = 0
    end: int | None = None
    finish: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        key: of the task.
        summary: of its frames.
        fatal: why no task can be done at all.
    """

    key: str
    summary: Summary
    fatal: HgposeError | None = None


def result_sinks(item: Item, kinds: Iterable[str], root: Path, what: Run) -> list[Sink]:
    """The sinks of an item's results below the folder ``root``; Parquet is a part of one data set of all."""
    path = PurePosixPath(item.name)
    return [
        ParquetSink(root / _dataset_part(item), what, dataset=True)
        if kind == "parquet"
        else SINKS[kind](root / path.parent, path.name, what)
        for kind in dict.fromkeys(kinds)
    ]


def _dataset_part(item: Item) -> str:
    """Its place in a data set that is partitioned by source, as Hive does it."""
    parent = PurePosixPath(item.name).parent
    source = str(parent if item.is_set else parent / item.source)
    text = os.fsencode(source).decode("utf-8", "replace")
    name = "".join(c if c.isalnum() or c in " !(),-._~" else quote(c, safe="") for c in text)
    if len(name.encode()) > _NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
        name = f"{name.encode()[: _NAME_BYTES - 20].decode(errors='ignore').rpartition('%')[0]}~{digest}"
    return f"keypoints.parquet/source={name}/part-0.parquet"


def results_of(item: Item, kinds: Iterable[str]) -> list[str]:
    """The files and folders, relative to the folder for results, that an item's results will be."""
    unknown = SourceInfo(item.source, 0, 0, None if item.is_set else Fraction(1))
    found: list[str] = []
    for sink in result_sinks(item, kinds, Path(), Run(unknown, ModelInfo("", ""), BODY19)):
        if isinstance(sink, OverlayImages):
            parent = PurePosixPath(item.name).parent
            found += [str(parent / overlay_name(name)) for _, name in item.files]
        elif sink.path is not None:
            found.append(sink.path.as_posix())
    return found


def chunk_count(item: Item) -> int:
    """In how many chunks a set of images is done."""
    return math.ceil(len(item.files) / IMAGES)


class Worker:
    """Does tasks, one after the other; the networks are loaded for the first one and kept."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._place = Place.of(setup.out)
        torch.set_num_threads(1)
        cv2.setNumThreads(1)

    @cached_property
    def _estimator(self) -> Estimator:
        return load_estimator(self._setup.how)

    def __call__(self, task: Task) -> Outcome:
        """Does a task; whatever goes wrong is told in the outcome."""
        label = task.item.label
        try:
            keypoint_set = self._estimator.keypoint_set
        except HgposeError as error:
            return Outcome(task.key, Summary(label), error)
        try:
            summary = self._do(task, keypoint_set)
        except HgposeError as error:
            summary = Summary(label, error=str(error))
        # Whatever a decoder or a GPU answers to one input, the others shall be done.
        except Exception as error:
            summary = Summary(label, error=unexpected(label, error))
        return Outcome(task.key, summary)

    def _do(self, task: Task, keypoint_set: KeypointSet) -> Summary:
        place = self._place.below(f"{WORK}/{task.key}")
        store = ChunkStore(place, keypoint_set, task.origin)
        with ExitStack() as stack:
            shop = place.workshop()
            stack.callback(shutil.rmtree, shop, ignore_errors=True)
            item, save = task.item, self._setup.what.save
            if not item.is_set:
                kinds = save if task.finish else ()
                summary = self._video(task, store, kinds, shop)
            elif task.finish and chunk_count(item) > 1:
                # The overlays were drawn when the pictures were there.
                kinds = tuple(kind for kind in save if kind != "overlay")
                summary = self._images(item, task, store, kinds, shop)
            else:
                kinds = save if task.finish else tuple(kind for kind in save if kind == "overlay")
                paths = stack.enter_context(local_files(item.locations))
                here = zip(map(str, paths), (name for _, name in item.files), strict=True)
                item = replace(item, files=tuple(here))
                if not task.finish:
                    # Once they are in store nobody asks for the overlays any more.
                    store = ChunkStore(Place.of(shop / _CHUNKS), keypoint_set, task.origin)
                summary = self._images(item, task, store, kinds, shop)
            for name in results_of(item, kinds):
                # An image that could not be read has no overlay.
                if (shop / name).exists():
                    self._place.move_in(shop / name, name)
            for name in Place.of(shop / _CHUNKS).files():
                place.move_in(shop / _CHUNKS / name, name)
        return summary

    def _video(self, task: Task, store: ChunkStore, kinds: Sequence[str], shop: Path) -> Summary:
        what = self._setup.what
        chunking = Chunking(
            what.every,
            what.chunk_s,
            store,
            task.first,
            task.end,
            partial=not task.finish,
            pictures="overlay" in kinds or not task.finish,
        )
        with local_files(task.item.locations) as (path,):
            sinks = partial(self._sinks, task.item, kinds, shop)
            return run_video(path, sinks, self._estimator, what, chunking)

    def _images(self, item: Item, task: Task, store: ChunkStore, kinds: Sequence[str], shop: Path) -> Summary:
        images = [(Path(location), name) for location, name in item.files]
        return run(
            ImageSource(images, item.source, task.first * IMAGES),
            partial(self._sinks, item, kinds, shop),
            self._estimator,
            batch=self._setup.how.batch,
            chunking=Chunking(
                store=store,
                first=task.first,
                end=chunk_count(item) if task.end is None else task.end,
                partial=not task.finish,
                pictures="overlay" in kinds or not task.finish,
            ),
        )

    def _sinks(self, item: Item, kinds: Sequence[str], shop: Path, source: Source) -> list[Sink]:
        estimator = self._estimator
        what = Run(source.info, estimator.model, estimator.keypoint_set, self._setup.what.style)
        return result_sinks(item, kinds, shop, what)


# Processes on this machine.


def _serve(link: Connection, setup: Setup) -> None:
    """A worker's process: takes tasks and gives outcomes until nobody is there any more."""
    # Ctrl-C is for the process that gives out the tasks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def follow_parent() -> None:
        if parent is not None:
            parent.join()
            # At once: what a worker without a master writes nobody would expect.
            os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    worker = Worker(setup)
    with suppress(EOFError, BrokenPipeError):
        while True:
            link.send(worker(link.recv()))


@contextmanager
def _nameless_program() -> Iterator[None]:
    """Hides the program from a process that is spawned, which would else run it as a module.

    A script that calls :func:`hgpose.process_batch` would call it once more in each worker.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


class _Process:
    """A worker's process, and what it is at."""

    def __init__(self, setup: Setup) -> None:
        context = get_context("spawn")
        self.link, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, setup), daemon=True)
        with _nameless_program():
            self._process.start()
        # With only the worker holding it, its death is an end of file.
        other.close()
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        self.task = task
        with suppress(OSError):
            self.link.send(task)

    def take(self) -> Outcome | int:
        """The outcome that is ready, or how the process died."""
        try:
            outcome: Outcome = self.link.recv()
        except (EOFError, OSError):
            self._process.join()
            return self._process.exitcode or 0
        return outcome

    def stop(self) -> None:
        self.link.close()
        self._process.kill()
        self._process.join()


def local_devices(how: EstimatorOptions, workers: int | None) -> list[str]:
    """The device of each worker: by default every GPU, or as many processes as there are cores."""
    gpus = torch.cuda.device_count() if how.device in {"auto", "cuda"} else 0
    if gpus:
        return [f"cuda:{i % gpus}" for i in range(workers or gpus)]
    return [how.device] * (workers or (usable_cores() if how.device in {"auto", "cpu"} else 1))


def run_local(tasks: Sequence[Task], setup: Setup, devices: Sequence[str]) -> Iterator[Outcome]:
    """Does tasks in processes on this machine, one for each device; outcomes as they come.

    A task whose process died is tried once more, by a new one.
    """
    waiting = deque((task, 1) for task in tasks)
    setups = [replace(setup, how=replace(setup.how, device=device)) for device in devices[: len(tasks)]]
    processes: dict[int, _Process] = {}
    attempts: dict[int, int] = {}
    try:
        while waiting or any(process.task for process in processes.values()):
            for i, own in enumerate(setups):
                if waiting and not (i in processes and processes[i].task):
                    process = processes.get(i) or processes.setdefault(i, _Process(own))
                    given, attempts[i] = waiting.popleft()
                    process.give(given)
            ready = wait([process.link for process in processes.values() if process.task])
            for i, process in [(i, process) for i, process in processes.items() if process.link in ready]:
                task, answer = process.task, process.take()
                process.task = None
                if isinstance(answer, Outcome):
                    yield answer
                    continue
                processes.pop(i).stop()
                if task is not None and attempts[i] < _ATTEMPTS:
                    waiting.appendleft((task, attempts[i] + 1))
                elif task is not None:
                    yield Outcome(task.key, Summary(task.item.label, error=_death(task, answer)))
    finally:
        for process in processes.values():
            process.stop()


def _death(task: Task, code: int) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return (
        f"{task.item.label}: its worker died twice ({how}); if memory ran out take fewer --workers, "
        "else the file may crash its decoder"
    )


# Ray.


class _Actor:
    """A worker as Ray Data calls it: a row with a pickled task into one with its pickled outcome."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        setup, task = pickle.loads(rows["task"][0])
        self._worker = self._worker or Worker(setup)
        return {"outcome": [pickle.dumps(self._worker(task))]}


def begin_ray(address: str | None) -> None:
    """Joins a Ray cluster, or begins one on this machine.

    Raises:
        OptionsError: Ray is not installed, or there is no such cluster.
    """
    # Nothing is sent anywhere.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise OptionsError("--engine ray needs a package: pip install 'hgpose[ray]'") from None
    if ray.is_initialized():
        return
    # Not whatever a crashed program has left on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        if host := _HOST.fullmatch(address):
            # Ray itself would knock for minutes.
            socket.create_connection((host["name"], int(host["port"])), _KNOCK_S).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise OptionsError(f"--address {address}: no Ray cluster to join there ({error})") from error


def ray_workers(how: EstimatorOptions, workers: int | None) -> tuple[int, int]:
    """How many actors the cluster takes, and how many GPUs each of them."""
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if how.device in {"auto", "cuda"} else 0
    return workers or gpus or max(int(resources.get("CPU", 1)), 1), int(gpus > 0)


def run_ray(tasks: Sequence[Task], setup: Setup, actors: int, gpus: int) -> Iterator[Outcome]:
    """Does tasks in a pool of Ray actors; outcomes as they come.

    Ray Data gives an actor the next task when it is done with the one before, holds back where nobody
    takes the outcomes, and gives the tasks of an actor that died to another.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # The setup travels with each task: what an actor is made from could be lost with a node.
    rows = [{"task": pickle.dumps((setup, task))} for task in tasks]
    actors = min(actors, len(rows))
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        batch_size=1,
        num_cpus=1,
        num_gpus=gpus,
        # A node that is lost must not be waited for; tasks are long, so none waits at a busy actor.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=1
        ),
    )
    for row in done.iter_rows():
        yield pickle.loads(row["outcome"])
