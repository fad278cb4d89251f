"""One call a command: a video, a set of images or a camera in, files out.

The command line parses, calls these and prints; so can a program of one's own.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from hgpose.errors import HgposeError, InputError, OptionsError
from hgpose.estimate import Estimator
from hgpose.options import VideoOptions
from hgpose.pipeline import Summary, run
from hgpose.sinks import SINKS, Run, Sink
from hgpose.sources import Source
from hgpose.sources.images import ImageSource, find_images
from hgpose.sources.video import VideoSource

Report = Callable[[Summary, int | None], None]

_URL = re.compile(r"[a-z]+://", re.IGNORECASE)
#: Name of the files that hold the keypoints of a whole image set.
_IMAGE_SET_STEM = "keypoints"


def _quiet(summary: Summary, frame_count: int | None) -> None:
    pass


def find_videos(inputs: Sequence[str]) -> list[str]:
    """Files, URLs and ``-`` as they stand; glob patterns as the files they match, sorted.

    Raises:
        InputError: a pattern matches nothing.
    """
    found: list[str] = []
    for given in inputs:
        if given == "-" or _URL.match(given) or Path(given).exists() or not glob.has_magic(given):
            found.append(given)
        elif matches := sorted(glob.glob(given, recursive=True)):
            found += matches
        else:
            raise InputError(f"{given}: no file matches")
    return list(dict.fromkeys(found))


def output_stem(video: str) -> str:
    """The name, without suffix, of a video's results."""
    if video == "-":
        return "stdin"
    if _URL.match(video):
        parts = urlsplit(video)
        return Path(parts.path).stem or parts.hostname or "stream"
    return Path(video).stem


def _sinks(
    estimator: Estimator, options: VideoOptions, out: Path, stem: str, inputs: Collection[Path] = frozenset()
) -> Callable[[Source], list[Sink]]:
    unknown = sorted(set(options.save) - SINKS.keys())
    if unknown:
        raise OptionsError(f"--save {','.join(unknown)}: unknown; known: {', '.join(SINKS)}")

    def make(source: Source) -> list[Sink]:
        model, keypoint_set = estimator.model, estimator.keypoint_set
        what = Run(source.info, model, keypoint_set, options.style, options.overwrite, inputs)
        return [SINKS[kind](out, stem, what) for kind in options.save]

    return make


def process_video(
    video: str | Path,
    out: str | Path,
    estimator: Estimator,
    options: VideoOptions | None = None,
    report: Report = _quiet,
) -> Summary:
    """Finds the people on every frame of a video and writes ``<stem>.mp4``, ``.csv`` and ``.json``.

    Args:
        video: a file, ``-`` for standard input, or an http, https or rtsp URL.
        out: folder for the results; made if need be.
        estimator: from :func:`hgpose.load_estimator`.
        options: which part of the video, which files, how they look.
        report: called now and then with what was done so far, and the number of frames the
            container declares, if it does.

    Raises:
        InputError: the video cannot be opened or shows no picture.
        OutputError: a file cannot be written or is there already.
    """
    options = options or VideoOptions()
    source = VideoSource(video, start_s=options.start_s, end_s=options.end_s, every=options.every)
    return run(
        source,
        _sinks(estimator, options, Path(out), output_stem(str(video))),
        estimator,
        options.detect_every,
        estimator.options.batch,
        report=lambda summary: report(summary, source.info.frame_count),
    )


def process_videos(
    videos: Sequence[str],
    out: str | Path,
    estimator: Estimator,
    options: VideoOptions | None = None,
    report: Report = _quiet,
) -> list[Summary]:
    """:func:`process_video` for each; one that fails has its ``error`` set and stops no other."""
    summaries: list[Summary] = []
    first_with: dict[str, str] = {}
    for video in videos:
        stem = output_stem(video)
        try:
            if (other := first_with.setdefault(stem, video)) != video:
                raise InputError(f"its results would replace those of {other}; give it another -o")
            summaries.append(process_video(video, out, estimator, options, report))
        except OptionsError:
            raise
        except HgposeError as error:
            summaries.append(Summary(video, error=str(error)))
    return summaries


def process_images(
    inputs: Sequence[str | Path],
    out: str | Path,
    estimator: Estimator,
    options: VideoOptions | None = None,
    report: Report = _quiet,
) -> Summary:
    """Finds the people on images and writes an overlay each, and one ``keypoints.csv`` and ``.json``.

    Args:
        inputs: folders (with all below), files and glob patterns.
        out, estimator, options, report: as for :func:`process_video`.

    Raises:
        InputError: an input is missing or holds no image.
        OutputError: a file cannot be written or is there already.
    """
    images = find_images(inputs)
    options = options or VideoOptions()
    name = str(inputs[0]) if len(inputs) == 1 else "images"
    return run(
        ImageSource(images, name),
        _sinks(estimator, options, Path(out), _IMAGE_SET_STEM, {path.resolve() for path, _ in images}),
        estimator,
        batch=estimator.options.batch,
        report=lambda summary: report(summary, len(images)),
    )
