"""The newest frame of a camera, however slow its consumer."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.errors import InputError
from hgpose.sources.video import STREAM_URL, VideoSource
from hgpose.types import Frame, SourceInfo

_FALLBACK_FPS = Fraction(30)
#: Of OpenCV's numbers of cameras, which are those of C.
_MOST_CAMERAS = 2**31
#: The usual clock of video streams.
_TIME_BASE = Fraction(1, 90_000)
#: A device that hangs must not hold up the exit; its thread closes it once it wakes up.
_JOIN_TIMEOUT_S = 2.0


class CameraSource:
    """Live frames. A thread reads all of them; iterating gives the newest and passes over the others.

    ``Frame.index`` counts all frames read, so it jumps where frames were passed over; ``Frame.time_s``
    is when the frame was read, seconds after the first, on a clock that never steps.

    Args:
        camera: index of a device (or ``/dev/video<index>``), or a stream as
            :class:`~hgpose.sources.video.VideoSource` takes it: a URL, or ``-``.
        mirror: swaps left and right, as one expects of one's own picture.

    Attributes:
        start_s: what ``time.monotonic`` said at the first frame; known once the source is entered.
    """

    def __init__(self, camera: int | str, *, mirror: bool = False) -> None:
        number = re.fullmatch(r"(?:/dev/video)?(-?\d+)", str(camera))
        self._camera = int(number[1]) if number else str(camera)
        self._mirror = mirror
        self._info: SourceInfo | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition(threading.RLock())
        self._newest: Frame | None = None
        self._ended = False
        self._stopped = False
        self._damage: str | None = None
        self._dropped = 0

    @property
    def info(self) -> SourceInfo:
        """Known once the source is entered."""
        if self._info is None:
            raise RuntimeError("a source must be entered (with ...) before it is used")
        return self._info

    @property
    def damage(self) -> str | None:
        """After iterating: why the camera ended, or ``None`` if it was asked to by :meth:`stop`."""
        return self._damage

    @property
    def dropped(self) -> int:
        """Frames passed over so far because a newer one came before they were asked for."""
        return self._dropped

    def stop(self) -> None:
        """Makes the iteration end at once; may be called from another thread or a signal handler."""
        # The lock is reentrant: the handler may have interrupted the very thread that holds it.
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        """Opens the camera and starts reading it.

        Raises:
            InputError: there is no such camera, or it gives no picture.
        """
        with ExitStack() as resources:
            if isinstance(self._camera, str) and self._camera != "-" and not STREAM_URL.match(self._camera):
                raise InputError(
                    f"{self._camera!r} is neither the number of a camera nor an http or rtsp URL; "
                    "hgpose video takes files"
                )
            if isinstance(self._camera, int):
                fps, images = resources.enter_context(_device(self._camera))
                name = f"camera {self._camera}"
            else:
                stream = resources.enter_context(VideoSource(self._camera, live=True))
                fps, images = stream.info.fps or _FALLBACK_FPS, (frame.image for frame in stream)
                name = stream.info.name
            first = next(images, None)
            if first is None:
                raise InputError(f"{name}: gives no picture; check that no other program uses it")
            height, width = first.shape[:2]
            self.start_s = time.monotonic()
            self._info = SourceInfo(name, width, height, fps, time_base=_TIME_BASE)
            # The thread owns the camera from here on, as it alone knows when no read is under way.
            self._thread = threading.Thread(
                target=self._read, args=(first, images, resources.pop_all()), name=name, daemon=True
            )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the camera."""
        self.stop()
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)
            self._thread = None

    def __iter__(self) -> Iterator[Frame]:
        if self._thread is None:
            raise RuntimeError("a source must be entered (with ...) before it is used")
        return self._take()

    def _take(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended or self._stopped)
                frame, self._newest = self._newest, None
                if frame is None or self._stopped:
                    return
            yield frame

    def _read(
        self, first: NDArray[np.uint8], images: Iterator[NDArray[np.uint8]], resources: ExitStack
    ) -> None:
        image: NDArray[np.uint8] | None = first
        index = 0
        try:
            with resources:
                while image is not None and not self._stopped:
                    if image.shape != first.shape:
                        # A device may change its format at any time, files cannot.
                        image = np.asarray(cv2.resize(image, first.shape[1::-1]), dtype=np.uint8)
                    if self._mirror:
                        image = np.asarray(cv2.flip(image, 1), dtype=np.uint8)
                    frame = Frame(image, index, time.monotonic() - self.start_s)
                    with self._changed:
                        self._dropped += self._newest is not None
                        self._newest = frame
                        self._changed.notify_all()
                    image = next(images, None)
                    index += 1
        finally:
            with self._changed:
                if not self._stopped:
                    self._damage = f"{self.info.name} stopped sending pictures after {index} frames"
                self._ended = True
                self._changed.notify_all()


@contextmanager
def _device(index: int) -> Iterator[tuple[Fraction, Iterator[NDArray[np.uint8]]]]:
    """Frame rate and pictures of a local camera."""
    if not 0 <= index < _MOST_CAMERAS:
        raise InputError(f"camera {index}: there is no such number; the first camera is 0")
    log_level = cv2.utils.logging.getLogLevel()
    # OpenCV would report to the terminal each of its drivers that does not know the camera.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(index)
    finally:
        cv2.utils.logging.setLogLevel(log_level)
    try:
        if not capture.isOpened():
            raise InputError(
                f"camera {index}: cannot be opened; check that it is plugged in, that no other program "
                "uses it and that you may use it, or try another number"
            )
        fps = capture.get(cv2.CAP_PROP_FPS)
        yield (
            Fraction(fps).limit_denominator(1001) if 0 < fps < math.inf else _FALLBACK_FPS,
            _pictures(capture),
        )
    finally:
        capture.release()


def _pictures(capture: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    while True:
        got, image = capture.read()
        if not got:
            return
        yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
