"""Small clips, pictures and streams for the tests, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def picture(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """``(H, W, 3)`` uint8 RGB: top left quarter red, bottom right blue, the rest a grey that tells ``index``."""
    image = np.full((height, width, 3), grey(index), np.uint8)
    image[: height // 2, : width // 2] = (255, 0, 0)
    image[height // 2 :, width // 2 :] = (0, 0, 255)
    return image


def grey(index: int) -> int:
    """The level by which :func:`picture` tells its index; repeats after 32."""
    return 4 + index % 32 * 7


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
            stream = out.add_stream(codec, rate=rate)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = size_wh
            stream.pix_fmt = pix_fmt
            context = stream.codec_context
            context.time_base = time_base
            context.gop_size = 8
            context.max_b_frames = b_frames
            context.sample_aspect_ratio = pixel_aspect
            context.thread_count = 1
            if codec == "libx264":
                stream.options = {"preset": "ultrafast", "crf": "12", "bf": str(b_frames)}
            if rotation_deg or hflip:
                stream.set_display_rotation(rotation_deg, hflip=hflip)
        if audio:
            sound = out.add_stream("aac", rate=44100, layout="mono")
            assert isinstance(sound, av.AudioStream)
        if video:
            for index, tick in enumerate(ticks):
                frame = av.VideoFrame.from_ndarray(picture(index, *size_wh), format="rgb24")
                frame.pts, frame.time_base = tick, time_base
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        if audio:
            for start in range(0, int(44100 * frames / rate), 1024):
                wave = np.sin(np.arange(start, start + 1024, dtype=np.float32) / 16)[None]
                heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = 44100, start, Fraction(1, 44100)
                out.mux(sound.encode(heard))
            out.mux(sound.encode(None))
    return path
