"""Saved keypoints into other files, overlays among them, without a network."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from hgpose.errors import InputError, OptionsError
from hgpose.options import DEFAULT_STYLE, Style
from hgpose.results import ResultFrame, Results, open_results
from hgpose.sinks import SINKS, Run
from hgpose.sources import Source
from hgpose.sources.images import IMAGE_SUFFIXES, ImageSource, find_images
from hgpose.sources.video import VideoSource
from hgpose.types import Frame, Poses, SourceInfo


def convert(
    results: str | Path,
    out: str | Path,
    kinds: Collection[str],
    source: str | Path | None = None,
    style: Style = DEFAULT_STYLE,
    overwrite: bool = False,
) -> list[Path]:
    """Writes saved keypoints as other kinds of output.

    Args:
        results: what :func:`hgpose.results.open_results` reads.
        out: folder for the files; made if need be. They are called by the name of ``results``.
        kinds: see :data:`hgpose.sinks.SINKS`. The overlay needs ``source``.
        source: the video, or the folder of images or the image, that the results are of. Needed where
            they do not tell its size and rate: all but hgpose's JSON, JSON lines and Parquet. YOLO's are
            shares of its size.
        style: how overlays are drawn.
        overwrite: replace files that are there.

    Returns:
        The files and folders that were written.

    Raises:
        InputError: the results or the source cannot be read, or do not belong together.
        OutputError: a file cannot be written or is there already.
        OptionsError: an unknown kind, or the overlay without ``source``.
    """
    if unknown := [kind for kind in kinds if kind not in SINKS]:
        raise OptionsError(f"{','.join(unknown)}: unknown kind; known: {', '.join(SINKS)}")
    if "overlay" in kinds and source is None:
        raise OptionsError("an overlay needs the pictures; run: hgpose draw RESULTS VIDEO -o OUT")
    path = Path(results)
    with ExitStack() as stack:
        opened = stack.enter_context(open_results(path))
        if source is not None:
            pictures = stack.enter_context(_open_source(Path(source)))
            info, frames = pictures.info, _joined(opened, pictures)
        elif opened.info is not None:
            info, frames = opened.info, _without_pictures(opened, opened.info)
        else:
            raise InputError(
                f"{path}: does not tell the size and rate of its frames; add --source with the video or the "
                "folder of images"
            )
        run = Run(info, opened.model, opened.keypoint_set, style, overwrite, {path.resolve()})
        sinks = [SINKS[kind](Path(out), path.stem, run) for kind in dict.fromkeys(kinds)]
        paths = [sink.path for sink in sinks if sink.path is not None]
        for written in paths:
            run.refuse_input(written)
        for sink in sinks:
            stack.enter_context(sink)
        for frame, poses in frames:
            for sink in sinks:
                sink.write(frame, poses)
    return paths


def _open_source(path: Path) -> Source:
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(find_images([path]), str(path))
    return VideoSource(path)


def _without_pictures(results: Results, info: SourceInfo) -> Iterator[tuple[Frame, Poses]]:
    """Frames of the right size that show nothing and take no memory."""
    for found in results.frames:
        name = PurePosixPath(found.name)
        # Files are called by it.
        if (
            name.is_absolute()
            or ".." in name.parts
            or "\0" in found.name
            or (info.fps is None and not name.name)
        ):
            raise InputError(
                f"{results.path}: {found.name!r} is no name of an image in a folder; mend it or add --source"
            )
        width, height = found.size_wh or (info.width, info.height)
        image = np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))
        yield Frame(image, found.index, found.time_s, found.name), found.poses


def _joined(results: Results, source: Source) -> Iterator[tuple[Frame, Poses]]:
    """The frames of a source that results tell of, or all, with nobody, if those leave empty frames out."""
    found = next(results.frames, None)
    for frame in source:
        if found is not None and _is_of(found, frame):
            yield frame, _in_px(found.poses, frame) if results.is_relative else found.poses
            found = next(results.frames, None)
        elif results.has_empty_frames and found is None:
            break
        elif not results.has_empty_frames:
            yield frame, Poses.empty(results.keypoint_set)
    if found is not None:
        which = found.name or f"number {found.index}"
        damage = f" ({source.damage})" if source.damage else ""
        raise InputError(
            f"{results.path}: frame {which} is not in {source.info.name}, or not in its order{damage}; "
            "give the source these results are of"
        )


def _is_of(found: ResultFrame, frame: Frame) -> bool:
    if found.name and frame.name:
        # Some kinds call a file by its image, without the suffix.
        return found.name in (frame.name, str(PurePosixPath(frame.name).with_suffix("")))
    return found.index == frame.index


def _in_px(poses: Poses, frame: Frame) -> Poses:
    """Shares of a picture as image px; its corner is half a pixel from the centre of its first pixel."""
    size = np.array(frame.image.shape[1::-1], np.float32)
    corners = poses.boxes.reshape(-1, 2, 2) * size - np.float32(0.5)
    points = poses.keypoints * size - np.float32(0.5)
    return replace(poses, keypoints=points, boxes=corners.reshape(-1, 4))
