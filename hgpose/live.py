"""A camera, live: the newest frame with its people in a window and in the browser, recorded if asked for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from hgpose.draw import draw_poses
from hgpose.errors import OutputError
from hgpose.estimate import Estimator
from hgpose.options import CameraOptions, Style, VideoOptions
from hgpose.pipeline import Summary, on_signals, run
from hgpose.process import SinksOf, file_sinks
from hgpose.sinks import Sink
from hgpose.sources import Source
from hgpose.sources.camera import CameraSource
from hgpose.types import Frame, Poses

#: The window answers keys, and the report is called, at least this often.
_TICK_S = 0.05
#: The rate of frames is that over so many.
_RATE_FRAMES = 30
#: A browser that takes no data for so long is given up.
_CLIENT_TIMEOUT_S = 10.0
#: Pictures that wait in the connection of a slow browser are old when it gets them: keep few.
_CLIENT_BUFFER_BYTES = 1 << 16
_JPEG_QUALITY = 80
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@dataclass(frozen=True)
class LiveStatus:
    """How a live run stands.

    Attributes:
        frames: processed so far.
        fps: frames processed a second, of late.
        latency_s: from the moment the newest frame was read to the one its people were known, seconds.
        people: on the newest frame.
        dropped: frames passed over so far because a newer one had come.
        url: of the preview in the browser, or ``None``.
        no_window: why there is no window, or ``None`` where there is one.
    """

    frames: int
    fps: float
    latency_s: float
    people: int
    dropped: int
    url: str | None = None
    no_window: str | None = None

    def __str__(self) -> str:
        return (
            f"{self.fps:.1f} frames/s  latency {self.latency_s * 1000:.0f} ms  "
            f"people {self.people}  dropped {self.dropped}"
        )


class Shot:
    """One frame with its people, drawn and encoded when somebody looks, and then kept.

    Args:
        frame: as it came.
        poses: its people.
        style: how they are drawn.
    """

    def __init__(self, frame: Frame, poses: Poses, style: Style) -> None:
        self._frame, self._poses, self._style = frame, poses, style

    @cached_property
    def picture(self) -> NDArray[np.uint8]:
        """``(H, W, 3)`` uint8 RGB."""
        return draw_poses(self._frame.image, self._poses, self._style)

    @cached_property
    def jpeg(self) -> bytes:
        """The picture as a JPEG file."""
        bgr = cv2.cvtColor(self.picture, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


class Preview:
    """A sink that keeps the newest frame for whoever looks, at his own pace, and writes no file.

    Args:
        source: the camera, entered before a frame comes.
        style: how people are drawn.

    Attributes:
        ended: no frame will follow.
        url, no_window: for the status, as there.
    """

    path = None

    def __init__(self, source: CameraSource, style: Style) -> None:
        self._source, self._style = source, style
        self._changed = threading.Condition()
        self._newest: Shot | None = None
        self._times_s: deque[float] = deque(maxlen=_RATE_FRAMES)
        self._frames = self._people = 0
        self._latency_s = 0.0
        self.ended = False
        self.url: str | None = None
        self.no_window: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """No frame will follow: whoever waits for one is told so."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def write(self, frame: Frame, poses: Poses) -> None:
        """Takes the place of the frame before; nothing is drawn yet."""
        now_s = time.monotonic()
        with self._changed:
            self._newest = Shot(frame, poses, self._style)
            self._frames += 1
            self._people = len(poses)
            self._latency_s = now_s - self._source.start_s - frame.time_s
            self._times_s.append(now_s)
            self._changed.notify_all()

    def next(self, last: Shot | None, timeout_s: float | None = None) -> Shot | None:
        """Waits for the newest frame, if it is still ``last``.

        Args:
            last: the one seen before.
            timeout_s: wait no longer.

        Returns:
            ``None`` after the last frame and when time is up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not last or self.ended, timeout_s)
            return None if self._newest is last else self._newest

    def status(self) -> LiveStatus:
        """How things stand now; a rate falls while no frame comes."""
        with self._changed:
            since_s = time.monotonic() - self._times_s[0] if self._times_s else 0.0
            fps = (len(self._times_s) - 1) / since_s if since_s > 0 else 0.0
            return LiveStatus(
                self._frames,
                fps,
                self._latency_s,
                self._people,
                self._source.dropped,
                self.url,
                self.no_window,
            )


def _quiet(status: LiveStatus) -> None:
    pass


def _no_files(source: Source) -> list[Sink]:
    return []


def watch_camera(
    camera: int | str,
    estimator: Estimator,
    options: CameraOptions | None = None,
    report: Callable[[LiveStatus], None] = _quiet,
) -> Summary:
    """Finds the people in front of a camera until asked to end.

    It ends on ``q``, Esc or closing the window, on Ctrl-C and SIGTERM (called from the main thread),
    and when the camera does. Files are whole in every case; recorded ones are called
    ``camera_<date>_<time>`` and never replace others.

    Args:
        camera: index of a device, or an http, https or rtsp URL; ``"0"`` is taken as 0.
        estimator: from :func:`hgpose.load_estimator`.
        options: what to show and to record.
        report: called in this thread with every frame shown, and at least 20 times a second.

    Returns:
        The summary. Its ``damage`` says why the camera ended; it is ``None`` if that was asked for.

    Raises:
        InputError: there is no such camera, or it gives no picture.
        OutputError: a file cannot be written, or the port of the preview is taken.
        OptionsError: unknown kinds of files.
    """
    options = options or CameraOptions()
    source = CameraSource(camera, mirror=options.mirror)
    preview = Preview(source, options.style)
    files: SinksOf = _no_files
    if options.record is not None:
        what = VideoOptions(save=options.save, style=options.style)
        # Milliseconds, for two cameras that one script starts.
        stem = f"camera_{datetime.now():%Y%m%d_%H%M%S_%f}"[:-3]
        files = file_sinks(estimator, what, Path(options.record), stem)
    with ExitStack() as stack:
        if options.serve is not None:
            preview.url = stack.enter_context(serve(preview, options.host, options.serve))
        preview.no_window = window_problem() if options.window else "it was not asked for"
        window = stack.enter_context(_Window("hgpose")) if preview.no_window is None else None
        stack.enter_context(on_signals(source.stop))
        # This thread stays free for the window, which must live in the main one, and for signals:
        # both answer even while the camera hangs.
        worker = stack.enter_context(ThreadPoolExecutor(1, "live"))
        stack.callback(source.stop)
        job = worker.submit(
            run,
            source,
            # First, so that a picture is shown before it is encoded.
            lambda source: [preview, *files(source)],
            estimator,
            options.detect_every,
            live=True,
        )
        shot = None
        while not (job.done() or preview.ended):
            shot = preview.next(shot, _TICK_S) or shot
            status = preview.status()
            report(status)
            if window is not None and shot is not None and not window.show(shot.picture, str(status)):
                source.stop()
                window = None
        summary = job.result()
    return summary


# ---- the window ----


def window_problem() -> str | None:
    """Why no window can be shown, or ``None`` if one can."""
    if threading.current_thread() is not threading.main_thread():
        return "windows need the main thread"
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return "there is no display"
    # A display that does not answer makes the window library abort: let it abort another process.
    probe = "import cv2; cv2.namedWindow('hgpose'); cv2.destroyAllWindows()"
    if subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode != 0:
        return "the display cannot be used, or OpenCV is built without windows"
    return None


class _Window:
    """Shows pictures until the user has had enough. Lives in the main thread."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._opened = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened:
            cv2.destroyAllWindows()

    def show(self, picture: NDArray[np.uint8], line: str) -> bool:
        """Shows ``picture`` ``(H, W, 3)`` uint8 RGB with a line of text; whether to go on."""
        height, width = picture.shape[:2]
        if not self._opened:
            cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
            cv2.resizeWindow(self._title, width, height)
            self._opened = True
        canvas = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), dtype=np.uint8)
        scale = max(0.4, width / 1600)
        canvas[height - round(40 * scale) :] //= 3
        at, font = (8, height - round(12 * scale)), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(canvas, line, at, font, scale, (255, 255, 255), 1, cv2.LINE_AA)
        cv2.imshow(self._title, canvas)
        if cv2.waitKey(1) & 0xFF in {ord("q"), ord("Q"), 27}:
            return False
        try:
            return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:
            # How OpenCV's Qt says that the last window was closed.
            return False


# ---- the browser ----

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hgpose</title>
<style>
  body { margin: 0; height: 100vh; display: flex; flex-direction: column;
         background: #16161a; color: #ddd; font: 15px system-ui, sans-serif; }
  img { flex: 1; min-height: 0; object-fit: contain; }
  p { margin: 0; padding: .6em 1em; font-variant-numeric: tabular-nums; }
</style>
<img src="/stream.mjpg" alt="camera">
<p id="status">waiting for the camera</p>
<script>
  const line = document.getElementById("status");
  // A page that slept has been given up meanwhile.
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) document.querySelector("img").src = `/stream.mjpg?${Date.now()}`;
  });
  const timer = setInterval(async () => {
    try {
      const s = await (await fetch("/status.json")).json();
      line.textContent = `${s.fps.toFixed(1)} frames/s \\u00b7 latency ${(s.latency_s * 1000).toFixed(0)} ms`
        + ` \\u00b7 people ${s.people} \\u00b7 dropped ${s.dropped}`;
    } catch {
      line.textContent = "ended";
      clearInterval(timer);
    }
  }, 500);
</script>
</html>
"""


class _Server(ThreadingHTTPServer):
    """A thread a browser, so that none holds up another, let alone the camera."""

    # A thread that still draws when Python ends would abort it: closing waits for all.
    daemon_threads = False

    def __init__(self, address: tuple[str, int], preview: Preview) -> None:
        self.preview = preview
        self._connections: set[Any] = set()
        super().__init__(address, _Client)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the thread."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection that is done with."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stops listening, and hangs up on whoever is still there."""
        for connection in tuple(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        # That a browser went away is no news.
        if not isinstance(sys.exception(), OSError):
            raise


class _Client(BaseHTTPRequestHandler):
    """Answers one request of a browser."""

    server: _Server
    timeout = _CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        """The page, its picture and its numbers."""
        answer = {"/": self._page, "/stream.mjpg": self._stream, "/status.json": self._status}
        if not self._is_meant():
            self.send_error(403, "Address this preview by 127.0.0.1 or localhost")
        elif (path := urlsplit(self.path).path) in answer:
            answer[path]()
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing below the command line prints."""

    def _is_meant(self) -> bool:
        """Whether the page was asked for by its own address.

        A web site may let its name point to loopback (DNS rebinding) and so try to read the camera.
        """
        if self.server.server_address[0] not in _LOOPBACK:
            return True
        try:
            return urlsplit(f"//{self.headers.get('Host', '')}").hostname in _LOOPBACK
        except ValueError:
            return False

    def _page(self) -> None:
        self._send("text/html; charset=utf-8", _PAGE.encode())

    def _status(self) -> None:
        self._send("application/json", json.dumps(asdict(self.server.preview.status())).encode())

    def _send(self, content_type: str, body: bytes) -> None:
        self._head(content_type)
        self.wfile.write(body)

    def _head(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def _stream(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CLIENT_BUFFER_BYTES)
        self._head("multipart/x-mixed-replace; boundary=frame")
        self.wfile.write(b"--frame\r\n")
        shot = None
        while (shot := self.server.preview.next(shot)) is not None:
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(shot.jpeg)}\r\n\r\n"
            # The boundary goes with the picture it ends: browsers show a picture when they see it.
            self.wfile.write(head.encode() + shot.jpeg + b"\r\n--frame\r\n")


@contextmanager
def serve(preview: Preview, host: str, port: int) -> Iterator[str]:
    """Serves a preview to browsers while the context lasts; the URL.

    ``/`` is the page, ``/stream.mjpg`` the picture, ``/status.json`` the numbers of
    :class:`LiveStatus`. A browser that is slow misses frames and slows nobody.

    Args:
        preview: what is shown.
        host: address to listen on.
        port: 0 for any free one.

    Raises:
        OutputError: the port is taken, or the address is not this computer's.
    """
    try:
        server = _Server((host, port), preview)
    except OSError as error:
        raise OutputError(
            f"cannot serve the preview on {host}:{port}: {error.strerror or error}; "
            "choose another port with --serve, 0 for any free one"
        ) from error
    with server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="preview", daemon=True
        )
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}/"
        finally:
            preview.end()
            server.shutdown()
            thread.join()
