"""Frames of a video file, of a stream on standard input, or of a stream from the network."""

from __future__ import annotations

import io
import os
import re
import select
import struct
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from numpy.typing import NDArray

from hgpose.errors import InputError, OptionsError
from hgpose.types import LONGEST_GAP_S, Frame, SourceInfo

#: What counts as a video inside a folder. A file given by name is tried whatever its suffix.
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
#: What ffmpeg may open while it reads a source of each scheme: the scheme itself and what it is
#: made of, never a file. A local file comes through Python's own file object, so it needs nothing.
_PROTOCOLS = {
    "http": "http,https,httpproxy,tcp,tls",
    "https": "https,http,httpproxy,tcp,tls",
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,udp,tcp,tls",
}
STREAM_URL = re.compile(rf"({'|'.join(_PROTOCOLS)})://", re.IGNORECASE)
_NETWORK_TIMEOUT_S = 10.0
#: How often a stalled standard input is given up on if it shall stop.
_TICK_S = 0.1
#: What it means that a stream cannot be opened, and what to do; the first kind that fits says it.
_NO_STREAM: tuple[tuple[type[BaseException], str], ...] = (
    (
        av.HTTPUnauthorizedError,
        "the server asks for a user and password (401); put them into the URL, as http://USER:PASSWORD@HOST/",
    ),
    (
        av.HTTPForbiddenError,
        "the server refuses it (403 Forbidden); check that it may be read without logging in",
    ),
    (av.HTTPNotFoundError, "the server has no such file (404 Not Found); check the address"),
    (av.HTTPTooManyRequestsError, "the server gets too many requests (429); try again later"),
    (av.HTTPClientError, "the server does not accept the request (4xx); check the address"),
    (av.HTTPServerError, "the server failed (5xx); try again later"),
    (
        av.InvalidDataError,
        "what the server sends is no video, or ends before it is one; see in a browser what is there",
    ),
    (ConnectionRefusedError, "nothing answers there (connection refused); check host, port and server"),
    (OSError, "no such host, or what it sends is no video; check the address in a browser"),
)
#: A container's declared duration is trusted no closer than this.
_DURATION_SLACK_S = 0.5
_FALLBACK_FPS = Fraction(25)
_LONGEST_GAP_H = LONGEST_GAP_S // 3600


@dataclass(frozen=True)
class _Display:
    """From a stored frame to the picture a player shows: first scaled, then transposed, then flipped."""

    size_wh: tuple[int, int]
    transpose: bool
    flip_x: bool
    flip_y: bool

    @classmethod
    def of(cls, frame: av.VideoFrame, pixel_aspect: Fraction) -> _Display:
        # The longer side grows, so that no detail is lost.
        width, height = Fraction(frame.width), Fraction(frame.height)
        if pixel_aspect > 1:
            width *= pixel_aspect
        else:
            height /= pixel_aspect
        # The library's stub knows motion vectors only.
        attached = cast(SideDataContainer, frame.side_data)
        turn = next((bytes(data) for data in attached if data.type.name == "DISPLAYMATRIX"), None)
        # Native int32 (a, b, u, c, d, v, x, y, w): stored (p, q) is shown at (a p + c q, b p + d q).
        a, b, _, c, d = struct.unpack_from("=5i", turn) if turn else (1, 0, 0, 0, 1)
        transpose = abs(b) > abs(a)
        along_x, along_y = (c, b) if transpose else (a, d)
        return cls((round(width), round(height)), transpose, along_x < 0, along_y < 0)

    @property
    def shown_wh(self) -> tuple[int, int]:
        width, height = self.size_wh
        return (height, width) if self.transpose else (width, height)

    def picture(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """``(H, W, 3)`` uint8 RGB, H and W those of ``shown_wh``."""
        width, height = self.size_wh
        # One thread: spreading a conversion of a millisecond over several costs more than it gains.
        scaled = frame.reformat(width, height, format="rgb24", threads=1)
        image: NDArray[Any] = scaled.to_ndarray()
        if self.transpose:
            image = cv2.transpose(image)
        if self.flip_x or self.flip_y:
            # OpenCV's codes: 0 around the x axis, 1 around the y axis, -1 around both.
            image = cv2.flip(image, -1 if self.flip_x and self.flip_y else int(self.flip_x))
        return np.asarray(image, dtype=np.uint8)


class _Stdin(io.FileIO):
    """Standard input, unbuffered, so that a live stream is not held back; at its end once ``stop`` is set."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(0, closefd=False)
        self._stop = stop

    def read(self, size: int | None = -1) -> bytes:
        """As of any file, but for the end."""
        # A read that waits for a stalled stream hears of nothing else; Windows cannot wait for a pipe so.
        while os.name == "posix" and not select.select([self], [], [], _TICK_S)[0]:
            if self._stop.is_set():
                return b""
        return super().read(size) or b""


class VideoSource:
    """A video as a player shows it: turned by its rotation metadata, with square pixels.

    The frame rate is the container's, exact; each frame has the container's own timestamp. A frame
    without one, or with one before its predecessor's, comes 1 / fps after its predecessor, as does one
    that is :data:`~hgpose.types.LONGEST_GAP_S` late: then the file is damaged, and the frames after it
    keep their distance. If the picture size changes on the way, later frames are scaled to the first one's.

    Skipped frames are decoded all the same, so ``Frame.index`` always counts from the first frame of
    the video; containers do not tell reliably how many frames lie before a place to seek to.

    Args:
        location: a file, ``"-"`` for standard input, or an http, https, rtsp or rtsps URL. A
            :class:`~pathlib.Path` is always a file.
        start_s: the first frame to yield, seconds after the first frame's timestamp.
        end_s: the end, seconds after the first frame's timestamp, itself excluded; ``None``: all.
        every: yields each ``every``-th frame from the first one yielded on.
        live: hands out each frame as soon as it arrives, at the price of decoding speed.
        stop: once it is set, standard input is at its end.

    Attributes:
        skip: so many of the frames that it would yield are left out, which costs no more than to decode
            them; may be set until the first one is asked for.

    Raises:
        OptionsError: the range is empty or ``every`` is not positive.
    """

    def __init__(
        self,
        location: str | Path,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        every: int = 1,
        live: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        if every < 1:
            raise OptionsError(f"every: must be 1 or more, got {every}")
        if not start_s >= 0 or (end_s is not None and not end_s > start_s):
            raise OptionsError(f"start and end: need 0 <= start < end, got {start_s} and {end_s}")
        self._location = location
        self._start_s, self._end_s, self._every, self._live = start_s, end_s, every, live
        self._stop = stop or threading.Event()
        self.skip = 0
        self._resources = ExitStack()
        self._frames: Iterator[Frame] | None = None
        self._info: SourceInfo | None = None
        self._problems: Counter[str] = Counter()

    @property
    def info(self) -> SourceInfo:
        """Known once the source is entered."""
        if self._info is None:
            raise RuntimeError("a source must be entered (with ...) before it is used")
        return self._info

    @property
    def damage(self) -> str | None:
        """After iterating: why frames may be missing, or ``None``."""
        return (
            "; ".join(f"{what} ({n} times)" if n > 1 else what for what, n in self._problems.items()) or None
        )

    def __enter__(self) -> Self:
        """Opens the video and decodes its first frame.

        Raises:
            InputError: it is missing, unreadable, no video, or holds no frame that can be decoded.
        """
        with ExitStack() as resources:
            container, name, path = self._open(resources)
            stream = container.streams.best("video")
            # Cover art of a sound file is a video stream to ffmpeg.
            if (
                not isinstance(stream, av.VideoStream)
                or stream.disposition & av.stream.Disposition.attached_pic
            ):
                raise InputError(f"{name}: has no pictures (sound only?); give a video")
            if stream.codec_context is None:
                raise InputError(f"{name}: its codec is unknown; convert it, for example to H.264")
            # Frame threads are faster but hold back one frame each.
            stream.thread_type = "SLICE" if self._live else "AUTO"
            decoded = self._decode(container, stream)
            resources.callback(decoded.close)
            first = next(decoded, None)
            if first is None:
                self._check_stopped(name)
                why, mend = self.damage or "it is empty", "check that it plays in a player"
                if "mp4" in container.format.name and not (path is not None and path.is_file()):
                    mend = (
                        "an MP4 with its index at the end cannot be read as a stream: give the file itself, "
                        "or put the index first (ffmpeg -i IN -c copy -movflags +faststart OUT)"
                    )
                raise InputError(f"{name}: not one frame can be decoded: {why}; {mend}")
            aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
            display = _Display.of(first, aspect)
            fps = stream.average_rate or stream.guessed_rate or _FALLBACK_FPS
            # AVI has no presentation times; ffmpeg's guess is out of order where there are B-frames.
            timed = not (container.format.name == "avi" and stream.codec_context.has_b_frames)
            frames = self._select(chain([first], decoded), display, fps, timed)
            resources.callback(frames.close)
            # A pipe with a name can be read once only: nobody else may open it.
            file = path if path is not None and path.is_file() else None
            self._info = SourceInfo(
                name, *display.shown_wh, fps, stream.frames or None, stream.time_base, file
            )
            self._frames = frames
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the video."""
        self._frames = None
        self._resources.close()

    def __iter__(self) -> Iterator[Frame]:
        """Goes on where an earlier iteration stopped."""
        if self._frames is None:
            raise RuntimeError("a source must be entered (with ...) before it is used")
        return self._frames

    def _open(self, resources: ExitStack) -> tuple[InputContainer, str, Path | None]:
        location = self._location
        url = STREAM_URL.match(location) if isinstance(location, str) else None
        self._is_url = url is not None
        try:
            if url and isinstance(location, str):
                parts = urlsplit(location)
                scheme = url[1].lower()
                # Neither password nor query belongs in results and messages.
                name, path = f"{parts.hostname or f'{scheme}://'}{parts.path}", None
                options = {"protocol_whitelist": _PROTOCOLS[scheme], "rtsp_flags": "prefer_tcp"}
                if self._live:
                    options |= {"fflags": "nobuffer", "analyzeduration": "1000000"}
                container = av.open(
                    # ffmpeg knows its protocols in lower case only.
                    scheme + location[len(scheme) :],
                    "r",
                    options=options,
                    timeout=_NETWORK_TIMEOUT_S,
                    metadata_errors="replace",
                )
            else:
                stdin = location == "-"
                name, path = ("stdin", None) if stdin else (Path(location).name, Path(location))
                file = resources.enter_context(_Stdin(self._stop) if path is None else io.FileIO(str(path)))
                # Being a file object, its name is never taken for a protocol or a pattern, and a
                # playlist finds no protocol to open other files with.
                container = av.open(
                    file, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace"
                )
        except (av.FFmpegError, OSError, ValueError) as error:
            self._check_stopped(name)
            why = _why_no_stream(name, error) if url else _why_not(str(location) if path else name, error)
            raise InputError(why) from error
        return resources.enter_context(container), name, path

    def _check_stopped(self, name: str) -> None:
        if self._stop.is_set():
            raise InputError(f"{name}: stopped before its first frame")

    def _decode(self, container: InputContainer, stream: av.VideoStream) -> Generator[av.VideoFrame]:
        """All frames that can be decoded, in display order; notes what goes wrong."""
        is_matroska = "matroska" in container.format.name
        last: int | None = None
        reached_s = 0.0
        failure: Exception | None = None
        try:
            # All streams are read, as only together they tell where the file ends.
            for packet in container.demux():
                # With B-frames the last to be decoded is not the last to be shown.
                shown = max((t for t in (packet.dts, packet.pts) if t is not None), default=None)
                if shown is not None:
                    reached_s = max(reached_s, float((shown + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != stream.index:
                    continue
                # An index tells decoding times, Matroska's the times of display.
                stamps = [t for t in (packet.dts, packet.pts if is_matroska else None, last) if t is not None]
                last = max(stamps, default=None)
                try:
                    frames = stream.decode(packet)
                except av.FFmpegError:
                    self._problems["a frame cannot be decoded"] += 1
                    continue
                if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
                    self._problems["a frame is damaged"] += 1
                yield from frames
        except (av.FFmpegError, OSError) as error:
            failure = error
            # After an end that is one the decoder gives out what it has held back.
            with suppress(av.FFmpegError):
                yield from stream.decode(None)
        entries = len(stream.index_entries)
        indexed = stream.index_entries[entries - 1].timestamp if entries else None
        begins, lasts = container.start_time or 0, container.duration or 0
        # The duration of a Matroska file that begins late counts from 0 where an old stream was cut up.
        ends = lasts if is_matroska and lasts > begins else begins + lasts
        missing_s = ends / av.time_base - reached_s
        cut = (indexed is not None and last is not None and indexed > last) or missing_s > _DURATION_SLACK_S
        if failure is not None and (problem := self._why_ended(container, failure, cut)):
            self._problems[problem] += 1
        if cut:
            self._problems["cut short: it ends before the end that it declares"] += 1

    def _why_ended(self, container: InputContainer, failure: Exception, cut: bool) -> str | None:
        """What it means that no more could be read; ``None`` if it is nothing to worry about."""
        if not self._is_url or isinstance(failure, av.ExitError):
            return f"reading failed: {_reason(failure)}"
        if cut or container.size > 0:
            return "the connection broke off; run it again"
        # A server that tells no length ends a whole file so, too; ffmpeg takes it for an error.
        if container.duration:
            return None
        return "the connection ended, and the server had not said where: check that the end is there"

    def _select(
        self, decoded: Iterable[av.VideoFrame], display: _Display, fps: Fraction, timed: bool
    ) -> Generator[Frame]:
        """The asked-for frames, as pictures with index and time."""
        first_time: Fraction | None = None
        time: Fraction | None = None
        # By how much the container's clock has jumped.
        jumped = Fraction(0)
        yielded_from: int | None = None
        for index, frame in enumerate(decoded):
            due = Fraction(0) if time is None else time + 1 / fps
            stamp = due
            if timed and frame.pts is not None and frame.time_base is not None:
                own = frame.pts * frame.time_base
                # A clock that jumped may jump back.
                stamp = own if time is not None and time <= own <= time + LONGEST_GAP_S else own - jumped
                if time is not None and stamp - time > LONGEST_GAP_S:
                    self._problems[f"a time more than {_LONGEST_GAP_H} hours after the one before"] += 1
                    jumped, stamp = own - due, due
            time = due if time is not None and stamp < time else stamp
            first_time = time if first_time is None else first_time
            since_first_s = float(time - first_time)
            if self._end_s is not None and since_first_s >= self._end_s:
                return
            if since_first_s < self._start_s:
                continue
            yielded_from = index if yielded_from is None else yielded_from
            taken, between = divmod(index - yielded_from, self._every)
            if not between and taken >= self.skip:
                yield Frame(display.picture(frame), index, float(time))


def _why_not(location: str, error: Exception) -> str:
    if isinstance(error, IsADirectoryError):
        return f"{location}: is a folder; hgpose batch takes folders"
    why = _reason(error)
    return f"{location}: cannot be opened as a video ({why}); check the name and that it plays in a player"


def _why_no_stream(name: str, error: Exception) -> str:
    for kind, what in _NO_STREAM:
        if isinstance(error, kind):
            return f"{name}: {what}"
    return f"{name}: cannot be opened ({_reason(error)}); check the address and that the server runs"


def _reason(error: Exception) -> str:
    if isinstance(error, av.ExitError):
        # What ffmpeg says when it is told to wait no longer.
        return f"nothing came for {_NETWORK_TIMEOUT_S:.0f} s"
    return getattr(error, "strerror", None) or str(error)
