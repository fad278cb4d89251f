"""Pictures with the skeletons drawn on them: a video of a video, an image of an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from hgpose.atomic import atomic_path, output_errors
from hgpose.cores import usable_cores
from hgpose.draw import draw_poses
from hgpose.errors import OutputError
from hgpose.sinks.audio import SoundPacket, add_sound
from hgpose.sinks.file import FileSink
from hgpose.sinks.record import Run
from hgpose.types import LONGEST_GAP_S, Frame, Poses

#: Of a live source, which has no timestamps of a container.
_LIVE_TIME_BASE = Fraction(1, 90_000)
#: MP4 counts the ticks between two frames with 31 bits: a finer time base cannot hold the longest gap.
_FINEST_TIME_BASE = Fraction(LONGEST_GAP_S, 2**31)
#: Veryfast, but for whole macroblocks and the simplest search between pixels: a third less CPU time, files a
#: twentieth larger. (Superfast saves less, its files are twice as large.)
#: Without B-frames packets stand in display order, so that times and duration are the source's.
#: With more threads than half the cores it would take the networks' time.
_X264 = {
    "preset": "veryfast",
    "subq": "1",
    "partitions": "none",
    "crf": "20",
    "bf": "0",
    "threads": str(max(usable_cores() // 2, 1)),
}

#: Formats that an image overlay keeps; that of any other is a PNG.
_KEPT_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class OverlayVideo(FileSink):
    """An MP4 (H.264) with the frames, size, rate and timestamps of its source, and its sound.

    Time 0 is the first frame written. The sound is that of the frames' time range. An odd width or
    height is kept exactly, with full chroma (4:4:4), which not every player knows.
    """

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with atomic_path(self.path, self._run.overwrite) as part, ExitStack() as self._resources:
            with self._errors():
                self._out = av.open(
                    str(part.absolute()), "w", format="mp4", options={"movflags": "+faststart"}
                )
            try:
                self._begin()
                yield
                with self._errors():
                    self._end()
            except BaseException:
                # The file is removed: that its end cannot be written either is no news.
                with suppress(av.FFmpegError):
                    self._out.close()
                raise

    def write(self, frame: Frame, poses: Poses) -> None:
        """Draws and encodes one frame; see :meth:`FileSink.write`."""
        picture = draw_poses(frame.image, poses, self._run.style)
        with self._errors():
            self._encode(picture, frame.index, Fraction(frame.time_s))

    def _begin(self) -> None:
        info = self._run.info
        self._rate = info.fps or Fraction(1)
        self._time_base = info.time_base or _LIVE_TIME_BASE
        if self._time_base < _FINEST_TIME_BASE:
            self._time_base = _LIVE_TIME_BASE
        self._video = self._out.add_stream("libx264", rate=self._rate, options=_X264)
        self._video.width, self._video.height = info.width, info.height
        self._video.pix_fmt = "yuv444p" if info.width % 2 or info.height % 2 else "yuv420p"
        context = self._video.codec_context
        context.time_base = self._time_base
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        self._start_s: Fraction | None = None
        self._index = self._ticks = self._frame_ticks = 0

    def _encode(self, picture: NDArray[np.uint8], index: int, time_s: Fraction) -> None:
        if self._start_s is None:
            self._start_s = time_s
            self._sound = self._open_sound(time_s)
            self._heard = next(self._sound, None)
            ticks, skipped = 0, 1
        else:
            # Encoders want each frame later than the one before.
            ticks = max(round((time_s - self._start_s) / self._time_base), self._ticks + 1)
            skipped = index - self._index
        # How long the frame is shown matters for the last one only: as long as its source's rate says.
        self._frame_ticks = max(1, round(skipped / self._rate / self._time_base))
        self._index, self._ticks = index, ticks
        # One thread: spreading a conversion of a millisecond over several costs more than it gains.
        frame = av.VideoFrame.from_numpy_buffer(picture, format="rgb24").reformat(
            format=self._video.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.pts, frame.time_base = ticks, self._time_base
        self._mux(self._video.encode(frame))
        self._mux_sound(ticks)

    def _end(self) -> None:
        if self._start_s is None:
            self._out.start_encoding()
        else:
            self._mux(self._video.encode(None))
            self._mux_sound(self._ticks + self._frame_ticks)
        self._out.close()

    def _mux(self, packets: list[av.Packet[av.VideoStream]]) -> None:
        for packet in packets:
            packet.duration = self._frame_ticks
            self._out.mux(packet)

    def _open_sound(self, start_s: Fraction) -> Iterator[SoundPacket]:
        path = self._run.info.path
        return iter(()) if path is None else add_sound(path, self._out, start_s, self._resources)

    def _mux_sound(self, until_ticks: int) -> None:
        """Writes the sound that begins before a time of the video, so that both grow together."""
        until_s = until_ticks * self._time_base
        while self._heard is not None and (self._heard.pts or 0) * self._heard.time_base < until_s:
            self._out.mux(self._heard)
            self._heard = next(self._sound, None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the file system or the encoder refuses, as an error that names the file."""
        with output_errors(self.path):
            try:
                yield
            except av.FFmpegError as error:
                if isinstance(error, OSError):
                    raise
                info = self._run.info
                raise OutputError(
                    f"cannot write {self.path}: H.264 does not take {info.width}x{info.height} px at "
                    f"{info.fps} frames/s ({error.strerror}); scale the video, or leave out the overlay"
                ) from error


class OverlayImages:
    """One overlay an image, its path below a folder the same as that of the image below its own.

    JPEG, PNG and WebP stay what they are, the overlay of any other is ``<name>.png``. Each file is
    whole when it appears, so those that are written stay when a later one fails.

    Args:
        path: the folder.
        run: what is known of the run.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self._run = run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def write(self, frame: Frame, poses: Poses) -> None:
        """Draws and writes one image.

        Raises:
            OutputError: it cannot be written, stands there already, or is one of the inputs.
        """
        target = self.path / overlay_name(frame.name)
        self._run.refuse_input(target)
        picture = draw_poses(frame.image, poses, self._run.style)
        _, data = cv2.imencode(target.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        with atomic_path(target, self._run.overwrite) as part, output_errors(target):
            part.write_bytes(data.tobytes())


def overlay_name(image: str) -> str:
    """The path of an image's overlay below the results' folder, of the image's own."""
    return image if Path(image).suffix.lower() in _KEPT_SUFFIXES else f"{image}.png"


def overlay_sink(folder: Path, stem: str, run: Run) -> OverlayVideo | OverlayImages:
    """The overlay sink that fits the source: ``<stem>.mp4`` in ``folder``, or images below it."""
    return OverlayImages(folder, run) if run.is_image_set else OverlayVideo(folder / f"{stem}.mp4", run)
