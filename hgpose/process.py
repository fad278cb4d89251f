"""One call a command: a video, a set of images or a camera in, files out.

The command line parses, calls these and prints; so can a program of one's own.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from hgpose.chunks import Chunking, ChunkStore
from hgpose.detect import GivenBoxes
from hgpose.errors import HgposeError, InputError, OptionsError, notes, told
from hgpose.estimate import Estimator
from hgpose.manifest import origin
from hgpose.options import VideoOptions
from hgpose.pipeline import Summary, on_signals, run
from hgpose.places import Place, is_uri, shown
from hgpose.sinks import SINKS, Run, Sink
from hgpose.sources import Source
from hgpose.sources.images import ImageSource, find_images
from hgpose.sources.video import VideoSource
from hgpose.types import SourceInfo

Report = Callable[[Summary, int | None], None]

#: Name of the files that hold the keypoints of a whole image set.
_IMAGE_SET_STEM = "keypoints"


def _quiet(summary: Summary, frame_count: int | None) -> None:
    pass


def find_videos(inputs: Sequence[str]) -> list[str]:
    """Glob patterns as the files they match, sorted; all else (files, URLs, ``-``) as it stands.

    A pattern that matches nothing stays, too: it fails like a missing file and stops no other input.
    """
    found: list[str] = []
    for given in inputs:
        # A file may have the name of a pattern. Path.glob knows no absolute patterns.
        itself = glob.glob(glob.escape(given))  # noqa: PTH207
        found += itself or sorted(glob.glob(given, recursive=True)) or [given]  # noqa: PTH207
    return list(dict.fromkeys(found))


def output_stem(video: str) -> str:
    """The name, without suffix, of a video's results.

    Raises:
        InputError: a URL that is none.
    """
    if video == "-":
        return "stdin"
    if is_uri(video):
        try:
            parts = urlsplit(video)
        except ValueError as error:
            raise InputError(f"{shown(video)}: not a URL ({error}); check its spelling") from error
        if not parts.hostname:
            raise InputError(f"{shown(video)}: not a URL (it names no host); check its spelling")
        return Path(parts.path).stem or parts.hostname
    return Path(video).stem


def check_kinds(save: Iterable[str]) -> None:
    """Sees to it that all kinds of output are known.

    Raises:
        OptionsError: one is not; the message lists those that are.
    """
    if unknown := [kind for kind in save if kind not in SINKS]:
        raise OptionsError(f"--save {','.join(unknown)}: unknown; known: {', '.join(SINKS)}")


SinksOf = Callable[[Source], list[Sink]]


def file_sinks(
    estimator: Estimator,
    options: VideoOptions,
    out: Path,
    stem: str,
    inputs: Collection[Path] = frozenset(),
) -> SinksOf:
    """What makes the sinks of a run once its source is open.

    Args:
        estimator: whose poses are written.
        options: which kinds, and how they look.
        out: folder for the files.
        stem: their name without its suffix.
        inputs: files that are read, which are never written over.

    Raises:
        OptionsError: an unknown kind.
    """
    check_kinds(options.save)
    if estimator.options.detector.startswith("boxes:"):
        inputs = {*inputs, estimator.options.boxes_file.resolve()}

    def make(source: Source) -> list[Sink]:
        model, keypoint_set = estimator.model, estimator.keypoint_set
        what = Run(source.info, model, keypoint_set, options.style, options.overwrite, inputs)
        return [SINKS[kind](out, stem, what) for kind in dict.fromkeys(options.save)]

    return make


def process_video(
    video: str | Path,
    out: str | Path,
    estimator: Estimator,
    options: VideoOptions | None = None,
    report: Report = _quiet,
) -> Summary:
    """Finds the people on every frame of a video and writes ``<stem>.mp4``, ``.csv`` and ``.json``.

    Ctrl-C and SIGTERM (in the main thread) end a stream, whose files are completed with what came.

    Args:
        video: a file, ``-`` for standard input, or an http, https or rtsp URL.
        out: folder for the results; made if need be.
        estimator: from :func:`hgpose.load_estimator`.
        options: which part of the video, which files, how they look.
        report: called now and then with what was done so far, and how many frames there will be
            if the container declares it rightly; ``None`` if it does not.

    Raises:
        InputError: the video cannot be opened or shows no picture in the part asked for.
        OutputError: a file cannot be written or is there already.
        OptionsError: an unknown kind of file.
    """
    return _process_video(video, Path(out), estimator, options or VideoOptions(), report, None)


@dataclass
class _Course:
    """How far a run over several videos is, for ``--resume``.

    Attributes:
        finished: of each finished video the store that says so.
        begun: whether chunks of an unfinished one are kept.
    """

    finished: list[ChunkStore] = field(default_factory=list)
    begun: bool = False


def _process_video(
    video: str | Path,
    out: Path,
    estimator: Estimator,
    options: VideoOptions,
    report: Report,
    course: _Course | None,
) -> Summary:
    """:func:`process_video` as one of several, or by itself."""
    name = str(video)
    if options.resume and estimator.options.heatmaps:
        raise OptionsError("--resume: heatmaps are not kept; leave out --heatmaps or --resume")
    if name == "-" or (isinstance(video, str) and is_uri(video)):
        if options.resume:
            raise InputError(f"{shown(name)}: a stream cannot be resumed; leave out --resume")
        sinks = file_sinks(estimator, options, out, output_stem(name))
        chunking, stop = Chunking(options.every, options.chunk_s), threading.Event()
        with on_signals(stop.set):
            return run_video(video, sinks, estimator, options, chunking, report, stop)
    # A name of its own that every file system takes.
    folder = out / f".hgpose-{hashlib.sha256(os.fsencode(output_stem(name))).hexdigest()[:16]}"
    now = origin(estimator.options, options, [name])
    store = ChunkStore(Place.of(folder), estimator.keypoint_set, now)
    if not options.resume:
        store.forget()
    elif store.changed:
        raise InputError(f"{name}: cannot go on: {store.changed}; leave out --resume to begin anew")
    elif store.there:
        # Whatever the interrupted run has finished already is written again, and the same.
        options = replace(options, overwrite=True)
    sinks = file_sinks(estimator, options, out, output_stem(name))
    if store.finished:
        if course is not None and (files := _there(video, sinks, options)):
            course.finished.append(store)
            return Summary(Path(name).name, files=files, kept=True)
        store.forget()
    # Heatmaps are not kept, so a run with them is never resumed.
    kept = None if estimator.options.heatmaps else store
    chunking = Chunking(options.every, options.chunk_s, kept, pictures="overlay" in options.save)
    try:
        summary = run_video(video, sinks, estimator, options, chunking, report)
    except BaseException as error:
        if store.tidy():
            if course is not None:
                course.begun = True
            error.add_note(f"what was done of {name} is kept in {folder}: --resume goes on from there")
        raise
    if course is None or kept is None:
        store.remove()
    else:
        store.finish()
        course.finished.append(store)
    return summary


def run_video(
    video: str | Path,
    sinks: SinksOf,
    estimator: Estimator,
    options: VideoOptions,
    chunking: Chunking,
    report: Report = _quiet,
    stop: threading.Event | None = None,
) -> Summary:
    """:func:`process_video` with sinks and chunks of one's own; once ``stop`` is set the video is over."""
    source = VideoSource(video, start_s=options.start_s, end_s=options.end_s, every=options.every, stop=stop)
    return run(
        source,
        sinks,
        estimator,
        options.detect_every,
        estimator.options.batch,
        report=lambda summary: report(summary, _expected_frames(source.info, options)),
        chunking=chunking,
        stop=stop,
    )


def _there(video: str | Path, sinks: SinksOf, options: VideoOptions) -> list[str]:
    """The files that ``sinks`` would write of a video, if all of them are there."""
    with VideoSource(video, start_s=options.start_s) as source:
        paths = [sink.path for sink in sinks(source) if sink.path is not None]
    return [str(path) for path in paths] if all(path.exists() for path in paths) else []


def _expected_frames(info: SourceInfo, options: VideoOptions) -> int | None:
    if info.frame_count is None or info.fps is None:
        return None
    ends = (info.frame_count, math.inf if options.end_s is None else options.end_s * info.fps)
    return max(0, math.ceil((min(ends) - options.start_s * info.fps) / options.every))


def process_videos(
    videos: Sequence[str],
    out: str | Path,
    estimator: Estimator,
    options: VideoOptions | None = None,
    report: Report = _quiet,
) -> list[Summary]:
    """:func:`process_video` for each; one that fails has its ``error`` set and stops no other.

    Of several of one stem the first has the name, even if it fails: what a file is of must not depend on
    how the others went.

    Raises:
        OptionsError: an unknown kind of file.
    """
    options = options or VideoOptions()
    summaries: list[Summary] = []
    first_with: dict[str, str] = {}
    course = _Course()
    try:
        for video in videos:
            name = shown(video)
            try:
                if (other := first_with.setdefault(output_stem(video), video)) != video:
                    raise InputError(
                        f"{name}: its results would be called as those of {shown(other)}; give it another "
                        "-o, or use hgpose batch, which keeps folders apart"
                    )
                summaries.append(_process_video(video, Path(out), estimator, options, report, course))
            except OptionsError:
                raise
            except HgposeError as error:
                summaries.append(Summary(name, error=told(error)))
            # Whatever a decoder or a GPU answers one video with, the others shall be done.
            except Exception as error:
                summaries.append(Summary(name, error=unexpected(name, error)))
    except BaseException as error:
        if course.finished:
            error.add_note("videos that are finished are left as they are by --resume")
        raise
    if not course.begun:
        for store in course.finished:
            store.remove()
    return summaries


def unexpected(name: str, error: Exception) -> str:
    """What to say of an error that nobody thought of."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
    return "; ".join([f"{name}: failed unexpectedly: {what}", "please report it", *notes(error)])


def process_images(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    estimator: Estimator,
    options: VideoOptions | None = None,
    report: Report = _quiet,
) -> Summary:
    """Finds the people on images and writes an overlay each, and one ``keypoints.csv`` and ``.json``.

    Args:
        inputs: a folder (with all below), a file or a glob pattern, or several.
        out, estimator, options, report: as for :func:`process_video`.

    Raises:
        InputError: an input is missing or holds no image, not one image can be read, or boxes were given
            for none of them.
        OutputError: a file cannot be written or is there already.
        OptionsError: an unknown kind of file.
    """
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    if not inputs:
        raise InputError("no input was given")
    place = Path(out).resolve()
    # Where ``out`` lies inside an input folder, what an earlier run has left there is no input.
    images = [
        (path, name)
        for path, name in find_images(inputs)
        if place not in path.resolve().parents[: name.count("/")]
    ]
    if isinstance(estimator.detector, GivenBoxes):
        # An error before the first overlay is written.
        estimator.detector.unmatched([name for _, name in images], is_set=True)
    options = options or VideoOptions()
    name = str(inputs[0]) if len(inputs) == 1 else "images"
    return run(
        ImageSource(images, name),
        file_sinks(estimator, options, Path(out), _IMAGE_SET_STEM, {path.resolve() for path, _ in images}),
        estimator,
        batch=estimator.options.batch,
        report=lambda summary: report(summary, len(images)),
    )
