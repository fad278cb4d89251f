"""Small clips, pictures and streams for the tests, made on the spot."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB: a red and a blue quarter, the rest a grey that tells ``index``."""
    image = np.full((height, width, 3), grey(index), np.uint8)
    image[: height // 2, : width // 2] = (255, 0, 0)
    image[height // 2 :, width // 2 :] = (0, 0, 255)
    return image


def grey(index: int) -> int:
    """The level by which :func:`picture` tells its index; repeats after 32."""
    return 4 + index % 32 * 7


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A full disk, for all that the process writes, libraries included."""
    # Windows has none, and may use the rest.
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_clip(
    path: Path,
    *,
    frames: int = 20,
    size_wh: tuple[int, int] = (64, 48),
    rate: Fraction = Fraction(25),
    times_s: Sequence[Fraction] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    b_frames: int = 0,
    rotation_deg: int = 0,
    hflip: bool = False,
    pixel_aspect: Fraction = Fraction(1),
    audio: bool = False,
    video: bool = True,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A clip of :func:`picture` 0, 1, 2...; the container is told by the suffix of ``path``.

    Args:
        path: where it goes.
        frames: how many.
        size_wh: of the stored (not yet turned) frame, px.
        rate: frames a second.
        times_s: the time of each frame, for a variable rate; overrides ``frames``.
        codec: the encoder.
        pix_fmt: the stored pixel format.
        b_frames: most B-frames in a row.
        rotation_deg: counter-clockwise turn that a player applies; 0, 90, 180 or 270.
        hflip: mirrored by the player as well.
        pixel_aspect: width over height of a pixel.
        audio: adds one second of a tone for each second of pictures.
        video: ``False`` leaves the pictures out.
        container_options: as ffmpeg's muxer knows them.
    """
    time_base = Fraction(1, 90000) if times_s else 1 / rate
    ticks = [round(t / time_base) for t in times_s] if times_s else list(range(frames))
    with av.open(str(path), "w", options=container_options or {}) as out:
        if video:
            pictures = cast(av.VideoStream, out.add_stream(codec, rate=rate))
            pictures.width, pictures.height = size_wh
            pictures.pix_fmt = pix_fmt
            context = pictures.codec_context
            context.time_base = time_base
            context.gop_size = 8
            context.max_b_frames = b_frames
            context.sample_aspect_ratio = pixel_aspect
            context.thread_count = 1
            if codec == "libx264":
                pictures.options = {"preset": "ultrafast", "crf": "12", "bf": str(b_frames)}
            if rotation_deg or hflip:
                pictures.set_display_rotation(rotation_deg, hflip=hflip)
        if audio:
            sound = out.add_stream("aac", rate=44100, layout="mono")
        if video:
            for index, tick in enumerate(ticks):
                frame = av.VideoFrame.from_ndarray(picture(index, *size_wh), format="rgb24")
                frame.pts, frame.time_base = tick, time_base
                out.mux(pictures.encode(frame))
            out.mux(pictures.encode(None))
        if audio:
            for start in range(0, int(44100 * frames / rate), 1024):
                wave = np.sin(np.arange(start, start + 1024, dtype=np.float32) / 16)[None]
                heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = 44100, start, Fraction(1, 44100)
                out.mux(sound.encode(heard))
            out.mux(sound.encode(None))
    return path


@contextmanager
def _serve(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _FileHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            super().copyfile(source, outputfile)


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """Serves the files of a folder on loopback: the URL of the folder."""
    with _serve(partial(_FileHandler, directory=str(folder))) as url:
        yield url


@contextmanager
def answering_server(status: int, body: bytes = b"", length: int | None = None) -> Iterator[str]:
    """A server on loopback that answers everything so, then closes the connection: its URL.

    Args:
        status: of HTTP.
        body: what it sends.
        length: what it says that it will send; ``None``: nothing.
    """

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _serve(Answer) as url:
        yield url


@contextmanager
def mjpeg_server(frames: int, interval_s: float = 0.02, size_wh: tuple[int, int] = (64, 48)) -> Iterator[str]:
    """A camera on loopback: its URL; each caller gets :func:`picture` 0, 1, 2..., then the line is cut."""

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                for index in range(frames):
                    jpeg = io.BytesIO()
                    Image.fromarray(picture(index, *size_wh)).save(jpeg, "JPEG", quality=95)
                    body = jpeg.getvalue()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                    self.wfile.write(head.encode() + body + b"\r\n")
                    time.sleep(interval_s)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _serve(Camera) as url:
        yield f"{url}/stream.mjpg"
