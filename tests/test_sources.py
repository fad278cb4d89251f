"""Every source passes one contract suite; below it, what each kind promises besides."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import answering_server, file_server, grey, mjpeg_server, picture, write_clip
from PIL import Image

from hgpose.errors import InputError, OptionsError
from hgpose.sources import Source, video
from hgpose.sources.camera import CameraSource
from hgpose.sources.images import ImageSource, find_images, image_size, read_image
from hgpose.sources.video import VideoSource
from hgpose.types import LONGEST_GAP_S, Frame

#: Lossy coding at high quality moves a flat colour by this much at most.
COLOUR_TOLERANCE = 12
FASTSTART = {"movflags": "+faststart"}
NTSC = Fraction(30000, 1001)


def read(source: Source) -> tuple[list[Frame], Source]:
    with source:
        return list(source), source


def assert_shows(image: np.ndarray, expected: np.ndarray) -> None:
    """Compares the middles of the four quarters."""
    assert image.shape == expected.shape
    h, w = image.shape[:2]
    for y, x in ((h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (3 * h // 4, 3 * w // 4)):
        np.testing.assert_allclose(image[y, x].astype(int), expected[y, x].astype(int), atol=COLOUR_TOLERANCE)


# ---- the contract of all sources ----

KINDS = ("file", "url", "images", "camera", "damaged file", "damaged images")


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    kind: str = request.param
    with ExitStack() as stack:
        if "file" in kind:
            clip = write_clip(tmp_path / "a.mp4", b_frames=2, container_options=FASTSTART)
            if "damaged" in kind:
                clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
            made: Source = VideoSource(clip)
        elif "images" in kind:
            for index in range(3):
                Image.fromarray(picture(index, 64, 48)).save(tmp_path / f"{index}.png")
            if "damaged" in kind:
                (tmp_path / "1.png").write_bytes(b"no picture")
            made = ImageSource(find_images([tmp_path]))
        elif kind == "camera":
            made = CameraSource(stack.enter_context(mjpeg_server(20)))
        else:
            write_clip(tmp_path / "a.mp4", b_frames=2)
            made = VideoSource(stack.enter_context(file_server(tmp_path)) + "/a.mp4")
        yield made


def test_contract_frames(source: Source) -> None:
    with source:
        info = source.info
        frames = list(source)
        assert list(source) == [], "each frame comes once"
    assert frames
    for before, after in pairwise(frames):
        assert after.index > before.index
        assert after.time_s >= before.time_s
    for frame in frames:
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        assert frame.image.flags.writeable
        assert info.width == 0 or frame.image.shape == (info.height, info.width, 3)
    assert info.name
    assert info.fps is None or isinstance(info.fps, Fraction)
    if isinstance(source, VideoSource | CameraSource):
        assert info.fps is not None
        assert info.time_base is not None


def test_contract_damage_is_said(source: Source, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["source"]
    with source:
        list(source)
    # A camera that ends by itself was cut.
    assert bool(source.damage) == ("damaged" in kind or kind == "camera")


def test_contract_use_outside_the_context_is_an_error(source: Source) -> None:
    with pytest.raises(RuntimeError, match="entered"):
        next(iter(source))
    with source:
        next(iter(source))
    with pytest.raises(RuntimeError, match="entered"):
        next(iter(source))


def test_contract_leaving_early_releases_all(source: Source) -> None:
    def held() -> list[str]:
        links = []
        for link in Path("/proc/self/fd").iterdir():
            try:
                links.append(str(link.readlink()))
            except OSError:  # The descriptor of the listing itself.
                continue
        return [link for link in links if link.endswith((".mp4", ".png"))]

    threads = {thread.name for thread in threading.enumerate()}
    with source:
        first = next(iter(source))
    assert first.image.size > 0, "a frame outlives its source"
    if Path("/proc/self/fd").is_dir():
        assert held() == []
    left = {thread.name for thread in threading.enumerate()} - threads
    assert not {name for name in left if "127.0.0.1" in name or "camera" in name}


# ---- video: counts, times, geometry ----

CLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "constant": ("a.mp4", {}),
    "29.97": ("a.mp4", {"rate": NTSC}),
    "variable": ("a.mp4", {"times_s": [Fraction(i * i, 100) for i in range(20)]}),
    "rotated": ("a.mp4", {"rotation_deg": 90}),
    "odd": ("a.avi", {"size_wh": (65, 49), "codec": "mpeg4"}),
    "audio": ("a.mp4", {"audio": True}),
    "b-frames": ("a.mp4", {"b_frames": 2}),
    "b-frames, ts": ("a.ts", {"b_frames": 2}),
    "b-frames, mkv": ("a.mkv", {"b_frames": 2}),
    "b-frames, avi": ("a.avi", {"b_frames": 2}),
    "no timestamps": ("a.h264", {"b_frames": 2}),
    "fragmented": ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "mjpeg": ("a.mjpeg", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "webm": ("a.webm", {"codec": "libvpx-vp9"}),
    "10 bit": ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p10le"}),
    "lossless rgb": ("a.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
}


@pytest.mark.parametrize("case", CLIPS)
def test_video_has_every_frame_in_order(case: str, tmp_path: Path) -> None:
    suffix, options = CLIPS[case]
    frames, source = read(VideoSource(write_clip(tmp_path / suffix, **options)))
    assert source.damage is None
    assert [frame.index for frame in frames] == list(range(20))
    # The top right quarter is grey; turned by 90 degrees it is the top left.
    h, w = frames[0].image.shape[:2]
    x = w // 4 if case == "rotated" else 3 * w // 4
    shades = [int(frame.image[h // 4, x, 1]) for frame in frames]
    np.testing.assert_allclose(shades, [grey(i) for i in range(20)], atol=COLOUR_TOLERANCE)


@pytest.mark.parametrize("case", CLIPS)
def test_video_times_and_rate_are_the_containers(case: str, tmp_path: Path) -> None:
    suffix, options = CLIPS[case]
    frames, source = read(VideoSource(write_clip(tmp_path / suffix, **options)))
    rate = options.get("rate", Fraction(25))
    expected = options.get("times_s") or [i / rate for i in range(20)]
    # Matroska keeps whole milliseconds. A transport stream starts where its muxer likes.
    start = frames[0].time_s if suffix.endswith(".ts") else 0.0
    np.testing.assert_allclose([f.time_s - start for f in frames], [float(t) for t in expected], atol=1e-3)
    if "times_s" not in options:
        assert source.info.fps == rate


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("hflip", [False, True])
def test_video_is_turned_as_a_player_does(rotation: int, hflip: bool, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=1, rotation_deg=rotation, hflip=hflip)
    [frame], source = read(VideoSource(clip))
    # FFmpeg's display matrix turns counter-clockwise, then mirrors.
    expected = np.rot90(picture(0, 64, 48), rotation // 90)
    expected = expected[:, ::-1] if hflip else expected
    assert_shows(frame.image, expected)
    assert (source.info.height, source.info.width) == expected.shape[:2]


@pytest.mark.parametrize(
    ("aspect", "rotation", "shown_wh"),
    [
        (Fraction(4, 3), 0, (85, 48)),
        (Fraction(8, 9), 0, (64, 54)),
        (Fraction(4, 3), 90, (48, 85)),
    ],
)
def test_video_pixels_are_made_square(
    aspect: Fraction, rotation: int, shown_wh: tuple[int, int], tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=2, pixel_aspect=aspect, rotation_deg=rotation)
    frames, source = read(VideoSource(clip))
    assert (source.info.width, source.info.height) == shown_wh
    assert_shows(frames[0].image, np.rot90(picture(0, *shown_wh[:: -1 if rotation else 1]), rotation // 90))


@pytest.mark.parametrize("jump_s", [10_000, 1_000_000])
def test_video_clock_that_jumps(jump_s: int, tmp_path: Path) -> None:
    times = [Fraction(n + (jump_s * 25 if n >= 10 else 0), 25) for n in range(20) if n != 15]
    frames, source = read(VideoSource(write_clip(tmp_path / "a.mkv", times_s=times)))
    kept = jump_s < LONGEST_GAP_S
    assert (source.damage is None) == kept
    # Hours between two frames may be; days are damage, and the frames after it keep their distance.
    expected = [float(t) if kept else float(t % jump_s) for t in times]
    assert [f.time_s for f in frames] == pytest.approx(expected, abs=1e-3)


def test_video_clock_that_jumps_back(tmp_path: Path) -> None:
    pieces = []
    for start_s in (0, 40_000, 2):
        times = [start_s + Fraction(n, 25) for n in range(25)]
        pieces.append(write_clip(tmp_path / "piece.ts", times_s=times).read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(pieces))
    frames, source = read(VideoSource(tmp_path / "a.ts"))
    assert source.damage is not None and "hours after the one before" in source.damage
    times_s = np.array([f.time_s for f in frames]) - frames[0].time_s
    assert len(times_s) == 75
    assert np.diff(times_s).min() > 0
    # The third piece has its own times again.
    np.testing.assert_allclose(times_s[50:], 2 + np.arange(25) / 25, atol=1e-3)


def test_video_info(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a b.mp4", rate=NTSC, audio=True)
    with VideoSource(str(clip)) as source:
        info = source.info
    assert (info.name, info.width, info.height, info.fps) == ("a b.mp4", 64, 48, NTSC)
    assert (info.frame_count, info.path) == (20, clip)
    assert info.time_base is not None
    assert (1 / NTSC / info.time_base).denominator == 1


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv"])
@given(start=st.integers(0, 22), length=st.one_of(st.none(), st.integers(1, 22)), every=st.integers(1, 9))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_video_range_keeps_index_and_time(
    suffix: str, tmp_path: Path, start: int, length: int | None, every: int
) -> None:
    clip = tmp_path / f"a{suffix}"
    if not clip.exists():
        write_clip(clip, b_frames=2)
    whole, _ = read(VideoSource(clip))
    # Half a frame early, so that rounded timestamps do not decide.
    start_s = max(start - 0.5, 0) / 25
    end_s = None if length is None else (start + length - 0.5) / 25
    part, source = read(VideoSource(clip, start_s=start_s, end_s=end_s, every=every))
    wanted = whole[start : None if length is None else start + length][::every]
    assert [(f.index, f.time_s) for f in part] == [(f.index, f.time_s) for f in wanted]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(part, wanted, strict=True))
    assert source.damage is None


def test_a_recorder_s_later_piece_is_whole(tmp_path: Path) -> None:
    # Recorders cut a stream into files that keep the stream's time.
    whole = write_clip(tmp_path / "whole.mkv", frames=200)
    with (
        av.open(str(whole)) as read_from,
        av.open(str(tmp_path / "%d.mkv"), "w", "segment", {"segment_time": "3"}) as pieces,
    ):
        stream = read_from.streams.video[0]
        piece = pieces.add_stream_from_template(stream)
        for packet in read_from.demux(stream):
            if packet.dts is not None:
                packet.stream = piece
                pieces.mux(packet)
    frames, source = read(VideoSource(tmp_path / "1.mkv"))
    assert frames[0].time_s > 2.5 and len(frames) > 50
    assert source.damage is None
    (tmp_path / "cut.mkv").write_bytes((tmp_path / "1.mkv").read_bytes()[:-6000])
    _, source = read(VideoSource(tmp_path / "cut.mkv"))
    assert source.damage is not None and "cut short" in source.damage


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_slow_video_is_whole(suffix: str, tmp_path: Path) -> None:
    # The last frame to be decoded is a B-frame, shown seconds before the end.
    clip = write_clip(tmp_path / f"a{suffix}", frames=12, rate=Fraction(1), b_frames=2)
    frames, source = read(VideoSource(clip))
    assert len(frames) == 12
    assert source.damage is None


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"start_s": -1.0}, {"start_s": 2.0, "end_s": 1.0}, {"start_s": float("nan")}]
)
def test_video_impossible_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        VideoSource("a.mp4", **options)


NAMES = (
    "two words.mp4",
    "-dash.mp4",
    'it\'s "x".mp4',
    "new\nline.mp4",
    "æøå 漢字.mp4",
    "a:b.mp4",
    "http:x.mp4",
    "concat:a|b.mp4",
    "100%d.mp4",
    "b*[1]?.mp4",
    "no suffix",
    os.fsdecode(b"latin-\xe6.mp4"),
)


@pytest.mark.parametrize("name", NAMES)
def test_video_any_file_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_clip(tmp_path / "made.mp4", frames=2)
    try:
        made.rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system does not take such a name")
    monkeypatch.chdir(tmp_path)
    frames, source = read(VideoSource(name))
    assert len(frames) == 2
    assert source.info.name == name


# ---- video: standard input ----

COUNT_STDIN = """
from hgpose.sources.video import VideoSource
with VideoSource("-") as source:
    print(len(list(source)), source.info.name, source.info.path, source.damage)
"""


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv"])
def test_video_from_standard_input(suffix: str, tmp_path: Path) -> None:
    options = FASTSTART if suffix == ".mp4" else {}
    clip = write_clip(tmp_path / f"a{suffix}", b_frames=2, container_options=options)
    run = subprocess.run(
        [sys.executable, "-c", COUNT_STDIN], input=clip.read_bytes(), capture_output=True, check=True
    )
    assert run.stdout.decode().split() == ["20", "stdin", "None", "None"]
    assert run.stderr == b""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_video_from_a_named_pipe_is_no_file_that_others_may_open(tmp_path: Path) -> None:
    pipe, clip = tmp_path / "pipe", write_clip(tmp_path / "a.ts")
    os.mkfifo(pipe)
    feeder = threading.Thread(target=lambda: pipe.write_bytes(clip.read_bytes()))
    feeder.start()
    frames, source = read(VideoSource(pipe))
    feeder.join()
    assert (len(frames), source.info.name, source.info.path) == (20, "pipe", None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_video_with_its_index_at_the_end_is_no_stream(tmp_path: Path) -> None:
    # Longer than what ffmpeg keeps in its buffer, in which it can go back.
    clip = write_clip(tmp_path / "a.mp4", frames=60, size_wh=(640, 480), codec="mpeg4")
    assert clip.stat().st_size > 100_000
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def feed() -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(clip.read_bytes())

    feeder = threading.Thread(target=feed)
    feeder.start()
    with pytest.raises(InputError, match=r"index at the end .*faststart"), VideoSource(pipe):
        pass
    feeder.join()


# ---- video: bad input ----


def bad_files(folder: Path) -> dict[str, Path]:
    """What is no video, by what it is."""
    files = {kind: folder / f"{kind}.mp4" for kind in ("missing", "empty", "text", "cut header", "zero size")}
    files["empty"].write_bytes(b"")
    files["text"].write_text("This is a letter, not a video.\n" * 100)
    whole = write_clip(folder / "whole.mp4")
    files["cut header"].write_bytes(whole.read_bytes()[:-200])  # The header stands at the end.
    # A YUV4MPEG header of 0 x 0 px.
    files["zero size"].write_bytes(b"YUV4MPEG2 W0 H0 F25:1 Ip A1:1\nFRAME\n")
    files["sound"] = write_clip(folder / "sound.mp4", audio=True, video=False)
    files["folder"] = folder
    return files


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut header", "zero size", "sound", "folder"])
def test_video_bad_input(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = bad_files(tmp_path)[kind]
    capfd.readouterr()
    with pytest.raises(InputError, match=file.name), VideoSource(file):
        pass
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_video_without_permission(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=1)
    clip.chmod(0)
    with pytest.raises(InputError, match=r"a\.mp4.*ermission"), VideoSource(clip):
        pass


def test_video_from_a_url_in_capitals(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.ts")
    with file_server(tmp_path) as url:
        frames, _ = read(VideoSource(f"{url.replace('http', 'HTTP')}/a.ts"))
    assert len(frames) == 20


def test_video_from_a_server_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_NETWORK_TIMEOUT_S", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(InputError, match="nothing came for"),
        VideoSource(f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"),
    ):
        pass


def test_video_dead_url() -> None:
    with mjpeg_server(1) as url:
        pass
    with (
        pytest.raises(InputError, match=r"127\.0\.0\.1") as caught,
        VideoSource(url.replace("//", "//me:secret@")),
    ):
        pass
    assert "secret" not in str(caught.value)


ANSWERS = {
    401: r"password.*http://USER:PASSWORD@HOST/",
    403: r"refuses it \(403",
    404: r"no such file \(404.*check the address",
    410: r"\(4xx\); check the address",
    429: r"try again later",
    503: r"try again later",
    200: r"is no video",
}


@pytest.mark.parametrize("status", ANSWERS)
def test_video_that_a_server_does_not_give(status: int) -> None:
    with (
        answering_server(status, b"<html>please log in</html>", 26) as url,
        pytest.raises(InputError, match=rf"127\.0\.0\.1/a\.mp4: .*{ANSWERS[status]}"),
        VideoSource(f"{url}/a.mp4"),
    ):
        pass


@pytest.mark.parametrize(
    ("suffix", "sent", "told", "damage"),
    [
        (".mkv", 1.0, False, None),
        (".ts", 1.0, False, "had not said where"),
        (".mkv", 0.6, False, "the connection broke off; .*cut short"),
        (".ts", 0.6, True, "the connection broke off"),
    ],
)
def test_video_from_a_server_that_ends(
    suffix: str, sent: float, told: bool, damage: str | None, tmp_path: Path
) -> None:
    data = write_clip(tmp_path / f"a{suffix}", frames=100).read_bytes()
    body = data[: round(len(data) * sent)]
    with answering_server(200, body, len(data) if told else None) as url:
        frames, source = read(VideoSource(f"{url}/a{suffix}"))
    assert len(frames) == 100 if sent == 1 else 20 < len(frames) < 80
    assert source.damage is None if damage is None else re.search(damage, source.damage or "")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".flv"])
def test_video_cut_short_yields_what_is_there(suffix: str, tmp_path: Path) -> None:
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(suffix, "libx264")
    options = FASTSTART if suffix == ".mp4" else {}
    clip = write_clip(tmp_path / f"a{suffix}", frames=100, codec=codec, container_options=options)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    frames, source = read(VideoSource(clip))
    assert 20 < len(frames) < 80
    assert source.damage
    # Stopping before the damage is no damage.
    frames, source = read(VideoSource(clip, end_s=0.4))
    assert len(frames) == 10
    assert source.damage is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_video_corrupted_in_the_middle(suffix: str, tmp_path: Path) -> None:
    options = FASTSTART if suffix == ".mp4" else {}
    clip = write_clip(tmp_path / f"a{suffix}", frames=100, container_options=options)
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    clip.write_bytes(data)
    frames, source = read(VideoSource(clip))
    assert 80 < len(frames) <= 100
    assert frames[-1].time_s > 3.9, "goes on behind the damage"
    assert source.damage


@pytest.mark.parametrize("suffix", [".mp4", ".ffconcat", ".m3u8"])
@pytest.mark.parametrize("kind", ["concat", "m3u8"])
def test_video_playlist_opens_no_other_file(kind: str, suffix: str, tmp_path: Path) -> None:
    # Long enough for ffmpeg, left to itself, to play it through the playlist.
    secret = write_clip(tmp_path / "secret.ts", frames=50)
    listing = {
        "concat": f"ffconcat version 1.0\nfile {secret.name}\n",
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    }
    playlist = tmp_path / f"list{suffix}"
    playlist.write_text(listing[kind])
    with pytest.raises(InputError), VideoSource(playlist):
        pass


# ---- images ----


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_read_image_kinds(tmp_path: Path) -> None:
    rgb = picture(5, 64, 48)
    plain = Image.fromarray(rgb)
    for suffix in ("png", "bmp", "tif", "webp", "jpg"):
        quality = {"quality": 100} if suffix in ("webp", "jpg") else {}
        assert_shows(read_image(saved(tmp_path / f"a.{suffix}", plain, **quality)), rgb)
    assert_shows(read_image(saved(tmp_path / "cmyk.jpg", plain.convert("CMYK"), quality=100)), rgb)
    assert_shows(read_image(saved(tmp_path / "palette.png", plain.quantize(16))), rgb)


def test_read_image_grey(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(ramp[..., None], 3, axis=2)
    for name in ("8.png", "8.tif"):
        path = saved(tmp_path / name, Image.fromarray(ramp))
        np.testing.assert_array_equal(read_image(path), expected)
    for name in ("16.png", "16.tif"):
        path = saved(tmp_path / name, Image.fromarray(ramp.astype(np.uint16) * 257))
        np.testing.assert_array_equal(read_image(path), expected)
    one_bit = saved(tmp_path / "1.png", Image.fromarray(ramp > 127))
    np.testing.assert_array_equal(read_image(one_bit), np.where(expected > 127, 255, 0))


def test_read_image_16_bit_colour(tmp_path: Path) -> None:
    rgb = picture(5, 64, 48)
    cv2.imwrite(str(tmp_path / "a.png"), rgb[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)


def test_read_image_lays_transparency_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (10, 20, 30, 255)
    image = read_image(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    assert (image[:2] == (10, 20, 30)).all()
    assert (image[2:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = picture(3, 64, 48)
    # What a camera stores so that the tag's correction (EXIF 2.32, 4.6.4) gives the upright picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", Image.fromarray(np.ascontiguousarray(stored)), exif=exif, quality=100)
    assert_shows(read_image(path), upright)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_size_is_that_of_the_upright_picture(suffix: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(picture(3, 64, 48)), exif=exif)
    height, width = read_image(path).shape[:2]
    assert image_size(path) == (width, height)


def test_image_size_of_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png: cannot be read \(not an image, or damaged\)"):
        image_size(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png.*too many pixels"):
        image_size(saved(tmp_path / "a.png", Image.new("1", (14000, 14000))))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_read_image_takes_the_first_of_an_animation(suffix: str, tmp_path: Path) -> None:
    pictures = [Image.fromarray(picture(i, 64, 48)) for i in (2, 20)]
    path = saved(tmp_path / f"a.{suffix}", pictures[0], save_all=True, append_images=pictures[1:])
    assert_shows(read_image(path), picture(2, 64, 48))


def test_read_image_of_one_pixel(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path / "a.png", Image.new("L", (1, 1), 7))).tolist() == [[[7, 7, 7]]]


def test_read_image_refuses_a_bomb_before_decoding(tmp_path: Path) -> None:
    # 1 bit a pixel: a file of a few kB that would need 600 MB.
    bomb = saved(tmp_path / "a.png", Image.new("1", (14000, 14000)))
    start = time.process_time()
    with pytest.raises(InputError, match=r"a\.png.*too many pixels"):
        read_image(bomb)
    assert time.process_time() - start < 0.5


def test_read_image_refuses_float(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(InputError, match="32-bit"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp"])
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_image_damaged_is_an_input_error(suffix: str, tmp_path: Path, data: st.DataObject) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(picture(0, 32, 24)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 200) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = read_image(path)
    except InputError as error:
        assert path.name in str(error)
    else:
        assert image.ndim == 3


@pytest.mark.parametrize("given_path", ["missing.png", "folder", "text.png", "empty.png"])
def test_read_image_bad_input(given_path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("a letter")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=given_path):
        read_image(tmp_path / given_path)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    root = tmp_path / "album"
    for name in ("img10.png", "img2.PNG", "day 2/b.jpg", "day 10/a.png", "day 2/[x].png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    for name in ("notes.txt", ".hidden.png", "._img2.png"):
        (root / name).write_bytes(b"")
    return root


def names(*inputs: str | Path) -> list[str]:
    return [name for _, name in find_images(inputs)]


def test_find_images(album: Path) -> None:
    everything = ["day 2/[x].png", "day 2/b.jpg", "day 10/a.png", "img2.PNG", "img10.png"]
    assert names(album) == everything
    assert names(album / "**/*") == everything
    assert names(album / "day*/*.png") == ["day 2/[x].png", "day 10/a.png"]
    assert names(album / "img10.png", album / "img2.PNG") == ["img10.png", "img2.PNG"]
    assert names(album / "day 2/[x].png") == ["[x].png"], "a file's own name is no pattern"
    assert names(album / "notes.txt") == ["notes.txt"], "what is given by name is tried"
    assert names(album, album / "img2.PNG") == everything, "a file reached twice counts once"
    assert [path for path, _ in find_images([album])][3] == album / "img2.PNG"


def test_a_link_to_what_is_gone_is_named(album: Path) -> None:
    (album / "gone.png").symlink_to("nowhere.png")
    (album / "folder.png").symlink_to(album / "day 2")
    assert "gone.png" in names(album) and "folder.png" not in names(album)


@pytest.mark.parametrize("suffix", ["avif", "jfif", "jp2", "heic"])
def test_phones_photographs_in_a_folder_are_read_or_named(suffix: str, tmp_path: Path) -> None:
    whole = Image.fromarray(picture(3, 64, 48))
    kinds = {"avif": "AVIF", "jfif": "JPEG", "jp2": "JPEG2000"}
    if suffix in kinds:
        whole.save(tmp_path / f"IMG_1.{suffix}", kinds[suffix])
    else:
        (tmp_path / f"IMG_1.{suffix}").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400))
    with ImageSource(find_images([tmp_path])) as source:
        frames = list(source)
    assert len(frames) == (suffix in kinds)
    assert suffix in kinds or re.search(r"IMG_1\.heic: .*\(HEIC\); convert it to JPEG", str(source.damage))


def test_find_images_bad_input(album: Path) -> None:
    (album / "none").mkdir()
    for bad in ("missing", "none", "none/*.png"):
        with pytest.raises(InputError, match=str(album / bad).replace("*", r"\*")):
            find_images([album / bad])
    # Not the folder one is in.
    with pytest.raises(InputError, match="without a name"):
        find_images([""])
    with pytest.raises(InputError, match="xxx: cannot be read"):
        find_images(["x" * 300])
    (album / "day 2/a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"both be called a\.png"):
        find_images([album / "day 2", album / "day 10"])


def test_one_bad_image_does_not_stop_the_set(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(picture(i, 20 + i, 10)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    source = ImageSource(find_images([tmp_path]))
    with source:
        frames = list(source)
    assert [(f.index, f.name) for f in frames] == [(i, f"{i}.png") for i in range(12) if i != 2]
    assert [f.image.shape[1] for f in frames] == [20 + f.index for f in frames]
    assert [name for name, _ in source.failures] == ["2.png"]
    assert source.damage is not None
    assert "1 of 12" in source.damage
    assert source.info.frame_count == 12


# ---- camera ----


def test_camera_slow_consumer_gets_the_newest() -> None:
    interval_s, pause_s = 0.02, 0.2
    with mjpeg_server(100, interval_s) as url, CameraSource(url) as source:
        lags, indices = [], []
        started = time.monotonic()
        for frame in source:
            lags.append(time.monotonic() - started - frame.time_s)
            indices.append(frame.index)
            time.sleep(pause_s)
            if len(indices) == 6:
                break
        # Relative to the first, which came with the clock's start: a backlog would grow by the pause.
        assert max(lags) - min(lags) < pause_s + 0.1
        assert indices[-1] - indices[0] > 20
        passed_over = indices[-1] + 1 - len(indices)
        assert source.dropped >= passed_over > 0


def test_camera_cut_ends_cleanly_and_says_so() -> None:
    with mjpeg_server(15) as url, CameraSource(url) as source:
        frames = list(source)
    # The last one sent is seen, whatever was passed over.
    assert abs(int(frames[-1].image[12, 48, 1]) - grey(14)) <= COLOUR_TOLERANCE
    assert len(frames) + source.dropped == frames[-1].index + 1
    assert source.damage is not None
    assert "stopped sending" in source.damage


def test_camera_mirror() -> None:
    with mjpeg_server(5) as url, CameraSource(url, mirror=True) as source:
        image = next(iter(source)).image
    assert image[12, 48, 0] > 200, "the red quarter is at the right"
    assert image[12, 16, 0] < 150


def test_camera_stop_from_another_thread() -> None:
    with mjpeg_server(1000, 0.05) as url, CameraSource(url) as source:
        timer = threading.Timer(0.3, source.stop)
        timer.start()
        start = time.monotonic()
        frames = list(source)
        assert time.monotonic() - start < 1.0
        timer.join()
    assert frames
    assert source.damage is None


class FakeCapture:
    """Stands in for a device: five blue frames (OpenCV's order), then unplugged."""

    def __init__(self, index: int) -> None:
        self.left = 5
        self.released = False
        FakeCapture.last = self

    last: FakeCapture

    def isOpened(self) -> bool:
        return True

    def get(self, what: int) -> float:
        return 29.97002997 if what == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        image = np.zeros((4, 6, 3), np.uint8)
        image[..., 0] = 255
        return (True, image) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


def test_camera_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    with CameraSource(0) as source:
        frames = list(source)
        assert (source.info.width, source.info.height, source.info.fps) == (6, 4, NTSC)
    assert frames[-1].index == 4
    assert frames[-1].image[0, 0].tolist() == [0, 0, 255]
    assert source.damage is not None
    assert FakeCapture.last.released


@pytest.mark.parametrize("name", ["0", "/dev/video0"])
def test_camera_by_the_text_of_its_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    with CameraSource(name) as source:
        assert source.info.name == "camera 0"


@pytest.mark.parametrize("fps", [0.0, -1.0, math.nan, math.inf])
def test_camera_that_does_not_know_its_rate(fps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "get", lambda self, what: fps)
    with CameraSource(0) as source:
        assert source.info.fps == 30


def test_camera_that_changes_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(capture: FakeCapture) -> tuple[bool, np.ndarray | None]:
        capture.left -= 1
        size = (4, 6, 3) if capture.left == 4 else (8, 12, 3)
        return (True, np.full(size, 200, np.uint8)) if capture.left >= 0 else (False, None)

    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "read", read)
    with CameraSource(0) as source:
        last = list(source)[-1]
    assert last.index == 4 and last.image.shape == (4, 6, 3)


@pytest.mark.parametrize("name", ["", "clip.mp4", "file:clip.mp4", "/dev/shm"])
def test_what_is_no_camera(name: str) -> None:
    with pytest.raises(InputError, match="neither the number of a camera nor an http or rtsp URL"):
        CameraSource(name).__enter__()


@pytest.mark.parametrize("number", [-1, 2**31, 10**20])
def test_camera_of_an_impossible_number(number: int) -> None:
    with pytest.raises(InputError, match=rf"camera {number}: "), CameraSource(number):
        pass


def test_camera_missing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"camera 97: .*plugged in"), CameraSource(97):
        pass
    assert capfd.readouterr() == ("", ""), "OpenCV keeps quiet"
