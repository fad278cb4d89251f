"""One contract for all sinks, then what is special to each."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from subprocess import PIPE
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from media import files_no_larger_than, write_clip
from numpy.typing import NDArray

from hgpose.atomic import atomic_path
from hgpose.errors import OutputError
from hgpose.keypoints import BODY19
from hgpose.sinks import SINKS, Run, Sink
from hgpose.sinks.record import people, rounded
from hgpose.sources.video import VideoSource
from hgpose.types import Frame, ModelInfo, Poses, SourceInfo

MODEL = ModelInfo("tiny", "0" * 64)
VIDEO = SourceInfo("a clip.mp4", 64, 48, Fraction(30000, 1001), None, Fraction(1001, 30000))
IMAGES = SourceInfo("pictures", 0, 0, None, 3)
KINDS = [(kind, info) for kind in SINKS for info in (VIDEO, IMAGES)]
each_kind = pytest.mark.parametrize(
    ("kind", "info"), KINDS, ids=[f"{k}-{'video' if i.fps else 'images'}" for k, i in KINDS]
)


def run(info: SourceInfo = VIDEO, **more: Any) -> Run:
    return Run(info, MODEL, BODY19, **more)


def make_poses(n: int, seed: int = 0) -> Poses:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-10, 70, (n, 19, 2)).astype(np.float32)
    return Poses(
        points,
        rng.uniform(0, 1, (n, 19)).astype(np.float32),
        np.sort(rng.uniform(0, 60, (n, 2, 2)), axis=1).reshape(n, 4).astype(np.float32),
        rng.uniform(0, 1, n).astype(np.float32),
        np.arange(n, dtype=np.int64) + 1,
        BODY19,
    )


def make_frame(index: int, info: SourceInfo = VIDEO, name: str = "") -> Frame:
    image = np.full((48, 64, 3), index * 8 % 256, np.uint8)
    if info.fps:
        return Frame(image, index, float(index / info.fps))
    return Frame(image, index, 0.0, name or f"a/{index}.png")


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def contents(path: Path) -> dict[str, bytes]:
    """Of a file, or of all files of a folder. An archive says when it was made, and is left empty."""
    return {
        p.name: b"" if p.suffix == ".npz" else p.read_bytes() for p in (path, *path.rglob("*")) if p.is_file()
    }


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


# The contract.


@each_kind
def test_results_appear_whole_and_only_at_the_end(tmp_path: Path, kind: str, info: SourceInfo) -> None:
    # What a killed run may have left.
    (tmp_path / ".hgpose-0.part").write_bytes(b"stale")
    sink: Sink = SINKS[kind](tmp_path / "new" / "deep", "k", run(info))
    with sink:
        for i, n in enumerate((0, 1, 50, 0)):
            sink.write(make_frame(i, info), make_poses(n))
        if not (kind == "overlay" and info is IMAGES):
            assert not sink.path.exists()
    assert sink.path.exists()
    made = files(tmp_path) - {".hgpose-0.part"}
    assert made and not any(name.endswith(".part") for name in made)


@each_kind
def test_an_error_leaves_nothing_half_written(tmp_path: Path, kind: str, info: SourceInfo) -> None:
    sink = SINKS[kind](tmp_path, "k", run(info))
    # An error of the source is not blamed on the sink, not even an OSError.
    with pytest.raises(ConnectionResetError), sink:
        sink.write(make_frame(0, info), make_poses(1))
        raise ConnectionResetError
    whole = {"a/0.png"} if kind == "overlay" and info is IMAGES else set()
    assert files(tmp_path) == whole


@each_kind
def test_a_full_disk(tmp_path: Path, kind: str, info: SourceInfo) -> None:
    sink = SINKS[kind](tmp_path, "k", run(info))
    rng = np.random.default_rng(0)
    with pytest.raises(OutputError, match=str(tmp_path)), files_no_larger_than(4000), sink:
        for i in range(40):
            noise = Frame(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), i, i / 30, f"{i}.png")
            sink.write(noise, make_poses(20))
    assert files(tmp_path) == set()


@pytest.mark.parametrize("size", [0, 700, 1200])
@pytest.mark.parametrize("kind", SINKS)
def test_a_disk_that_is_full_only_at_the_end(tmp_path: Path, kind: str, size: int) -> None:
    sink = SINKS[kind](tmp_path, "k", run())
    with pytest.raises(OutputError, match=str(tmp_path)), files_no_larger_than(size), sink:
        sink.write(make_frame(0), make_poses(6))
    assert files(tmp_path) == set()


@pytest.mark.parametrize("kind", SINKS)
def test_something_in_the_way(tmp_path: Path, kind: str) -> None:
    def write(folder: Path, overwrite: bool) -> Path:
        with SINKS[kind](folder, "k", run(overwrite=overwrite)) as sink:
            sink.write(make_frame(0), make_poses(1))
        return sink.path

    made = write(tmp_path, False)
    before = contents(made)
    with pytest.raises(OutputError, match="already exists; pass --overwrite"):
        write(tmp_path, False)
    assert contents(made) == before
    if is_folder := made.is_dir():
        (made / "old").write_bytes(b"old")
    else:
        made.write_bytes(b"old")
    write(tmp_path, True)
    assert contents(made) == before
    if is_folder:
        shutil.rmtree(made)
        made.touch()
    else:
        made.unlink()
        made.mkdir()
    with pytest.raises(OutputError, match="of that name is in the way"):
        write(tmp_path, True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/k"):
        write(tmp_path / "file", True)
    assert files(tmp_path) == {"file"} | ({made.name} if is_folder else set())


@each_kind
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, kind: str, info: SourceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by permissions: they do not stop root.
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for call in ("touch", "mkdir"):
        monkeypatch.setattr(Path, call, denied)
    with pytest.raises(OutputError, match="Permission denied"), SINKS[kind](tmp_path, "k", run(info)) as sink:
        sink.write(make_frame(0, info), make_poses(1))


@each_kind
@pytest.mark.parametrize("stem", ["-o", "two words", "žluťoučký 馬", 'quo"te\nline', "a.b.c", "\udcff"])
def test_names(tmp_path: Path, kind: str, info: SourceInfo, stem: str) -> None:
    sink = SINKS[kind](tmp_path, stem, run(info))
    with sink:
        sink.write(make_frame(0, info, f"{stem}.png"), make_poses(1))
    assert sink.path.exists()
    if kind != "overlay" or info is IMAGES:
        assert any(name.startswith(stem) for name in files(tmp_path))
    if info is IMAGES:
        if kind == "csv":
            assert read_csv(sink.path)[0]["name"] == f"{stem}.png"
        if kind == "json":
            assert json.loads(sink.path.read_text())["frames"][0]["name"] == f"{stem}.png"


@each_kind
def test_numbers_that_are_none(tmp_path: Path, kind: str, info: SourceInfo) -> None:
    poses = make_poses(3)
    poses.keypoints[0, :5] = np.nan
    poses.keypoints[1] = np.inf
    poses.scores[2] = np.nan
    poses.boxes[1] = np.nan
    sink = SINKS[kind](tmp_path, "k", run(info))
    with sink:
        sink.write(make_frame(0, info), poses)
    if kind not in ("overlay", "npz", "parquet"):
        for data in contents(sink.path).values():
            numbers = data.replace(b"NaN", b"") if kind in ("trc", "dlc") else data
            assert b"nan" not in numbers.lower() and not re.search(rb"\binf", numbers.lower())


@each_kind
def test_memory_does_not_grow(tmp_path: Path, kind: str, info: SourceInfo) -> None:
    poses = make_poses(2)
    frames = [make_frame(i, info) for i in range(2)]
    with SINKS[kind](tmp_path, "k", run(info, overwrite=True)) as sink:

        def write(begin: int, end: int) -> None:
            for i in range(begin, end):
                sink.write(Frame(frames[0].image, i, i / 30, f"{i}.png"), poses)

        write(0, 60)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        write(60, 140)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # One 64x48 picture is 9 kB: 80 that were kept would be 700 kB, their rows alone over 200 kB.
    assert after - before < 40_000


# JSON and CSV.


def write_both(
    folder: Path, info: SourceInfo, each: list[Poses]
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    frames = [make_frame(i, info) for i in range(len(each))]
    for kind in ("json", "csv"):
        with SINKS[kind](folder, "k", run(info, overwrite=True)) as sink:
            for frame, poses in zip(frames, each, strict=True):
                sink.write(frame, poses)
    return json.loads((folder / "k.json").read_text()), read_csv(folder / "k.csv")


@pytest.mark.parametrize("info", [VIDEO, IMAGES], ids=["video", "images"])
def test_json_and_csv_agree_with_each_other_and_with_the_poses(tmp_path: Path, info: SourceInfo) -> None:
    each = [make_poses(n, seed=n) for n in (0, 1, 50, 3, 0)]
    each[3].keypoints[1, 4] = np.nan
    each[3].ids[:] = -1
    document, rows = write_both(tmp_path, info, each)

    def text(value: float | None) -> str:
        return "" if value is None else repr(value)

    expected = []
    for frame in document["frames"]:
        key = [str(frame["frame"]), repr(frame["time_s"])]
        if info is IMAGES:
            key.append(frame["name"])
        for person in frame["people"]:
            values = [*person["box"], *(v for point in person["keypoints"] for v in point)]
            expected.append([*key, text(person["id"]), text(person["score"]), *map(text, values)])
        if not frame["people"]:
            expected.append([*key, *[""] * (6 + 57)])
    assert [list(row.values()) for row in rows] == expected
    assert [frame["people"] for frame in document["frames"]] == [people(poses) for poses in each]
    assert document["frames"][3]["people"][0]["id"] is None
    for frame, poses in zip(document["frames"], each, strict=True):
        for person, points, scores in zip(frame["people"], poses.keypoints, poses.scores, strict=True):
            written = np.array(person["keypoints"], np.float64)
            np.testing.assert_allclose(written[:, :2], points, atol=0.0051)
            np.testing.assert_allclose(written[:, 2], scores, atol=0.000051)


def test_json_header(tmp_path: Path) -> None:
    document, _ = write_both(tmp_path, VIDEO, [make_poses(1)] * 12)
    assert list(document) == [
        "schema", "source", "model", "keypoint_set", "keypoints", "skeleton", "frames"
    ]  # fmt: skip
    assert document["schema"] == "hgpose/1"
    assert document["source"] == {
        "name": "a clip.mp4",
        "width": 64,
        "height": 48,
        "fps": 30000 / 1001,
        "fps_exact": "30000/1001",
        "frames": 12,
    }
    assert document["model"] == {"name": "tiny", "sha256": "0" * 64}
    assert document["keypoint_set"] == "body19"
    assert document["keypoints"] == list(BODY19.names)
    assert document["skeleton"] == [list(edge) for edge in BODY19.edges]
    assert [frame["frame"] for frame in document["frames"]] == list(range(12))
    assert document["frames"][1]["time_s"] == 0.033367
    # A line a frame, so that line-wise tools work too.
    lines = (tmp_path / "k.json").read_text().splitlines()
    assert json.loads(lines[3].rstrip(",")) == document["frames"][2]


def test_json_of_images_and_of_nothing(tmp_path: Path) -> None:
    document, _ = write_both(tmp_path, IMAGES, [make_poses(0)] * 2)
    assert document["source"] == {"name": "pictures", "frames": 2}
    assert document["frames"][1] == {
        "frame": 1, "time_s": 0.0, "name": "a/1.png", "width": 64, "height": 48, "people": []
    }  # fmt: skip
    document, rows = write_both(tmp_path, VIDEO, [])
    assert document["frames"] == [] and document["source"]["frames"] == 0 and rows == []


def test_csv_columns(tmp_path: Path) -> None:
    write_both(tmp_path, IMAGES, [make_poses(1)])
    columns = (tmp_path / "k.csv").read_text().splitlines()[0].split(",")
    assert columns[:9] == ["frame", "time_s", "name", "person", "score", "x1", "y1", "x2", "y2"]
    assert columns[9:] == [f"{name}_{what}" for name in BODY19.names for what in ("x", "y", "score")]


@given(arrays(np.float32, 5, elements=st.floats(width=32)))
def test_rounding(values: np.ndarray) -> None:
    for value, plain in zip(values.tolist(), rounded(values, 2), strict=True):
        if not math.isfinite(value):
            assert plain is None
            continue
        assert plain == pytest.approx(value, abs=0.005 + 1e-9, rel=1e-12)
        assert json.loads(json.dumps(plain)) == float(str(plain)) == plain
        assert math.copysign(1, plain) == 1 or plain < 0


# Overlay video.


def overlay(source: Path, folder: Path, **selection: Any) -> Path:
    with VideoSource(source, **selection) as frames, SINKS["overlay"](folder, "k", run(frames.info)) as sink:
        for frame in frames:
            sink.write(frame, Poses.empty(BODY19))
    return sink.path


def probe(path: Path) -> tuple[NDArray[np.float64], float]:
    """The times of a video's decoded frames and its duration, seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration is not None and stream.time_base is not None
        times_s = np.array([frame.time for frame in container.decode(stream)], np.float64)
        return times_s, float(stream.duration * stream.time_base)


VARIABLE = [Fraction(t, 1000) for t in (0, 33, 66, 190, 200, 400, 433, 900)]
CLIPS: dict[str, dict[str, Any]] = {
    "constant": {},
    "29.97": {"rate": Fraction(30000, 1001)},
    "b-frames": {"b_frames": 2},
    "variable": {"times_s": VARIABLE},
    "odd": {"size_wh": (63, 47), "pix_fmt": "yuv444p"},
    "tall": {"size_wh": (50, 94)},
    "rotated": {"rotation_deg": 90},
    "audio": {"audio": True},
    "one frame": {"frames": 1},
    "mkv": {"suffix": ".mkv"},
}


@pytest.mark.parametrize("name", CLIPS)
def test_overlay_has_count_size_rate_times_and_duration_of_its_source(tmp_path: Path, name: str) -> None:
    options = dict(CLIPS[name])
    source = write_clip(tmp_path / f"source{options.pop('suffix', '.mp4')}", **options)
    made = overlay(source, tmp_path / "out")
    with VideoSource(source) as before, VideoSource(made) as after:
        old, new = before.info, after.info
        times_s = [frame.time_s for frame in before]
        assert (new.width, new.height) == (old.width, old.height)
        assert new.frame_count == len(times_s) == len(list(after))
        # The average rate of uneven times depends on how long the last frame is shown.
        tolerance = 0.1 if name in ("variable", "mkv") else 0
        assert float(new.fps or 0) == pytest.approx(float(old.fps or 0), rel=tolerance, abs=1e-9)
    new_times_s, new_duration_s = probe(made)
    # Half a microsecond beyond a tick of the time base: what a float of the container loses.
    np.testing.assert_allclose(new_times_s, np.array(times_s) - times_s[0], atol=1e-6)
    if name != "mkv":
        _, old_duration_s = probe(source)
        frame_s = float(1 / (old.fps or 1))
        assert new_duration_s == pytest.approx(old_duration_s, abs=frame_s if name == "variable" else 1e-3)


def test_overlay_keeps_colours(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4", size_wh=(64, 48))
    made = overlay(source, tmp_path / "out")
    with VideoSource(source) as before, VideoSource(made) as after:
        for old, new in zip(before, after, strict=True):
            shift = new.image.astype(int).mean((0, 1)) - old.image.astype(int).mean((0, 1))
            # The wrong one of BT.601 and BT.709 shifts red or blue by more than 5.
            assert np.abs(shift).max() < 1.5
            for y, x in ((12, 16), (36, 48), (12, 48)):
                np.testing.assert_allclose(new.image[y, x].astype(int), old.image[y, x], atol=6)
    with av.open(str(made)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (
            1,
        ) * 4


def test_overlay_draws_and_can_be_streamed(tmp_path: Path) -> None:
    with SINKS["overlay"](tmp_path, "k", run()) as sink:
        for i in range(5):
            sink.write(Frame(np.zeros((48, 64, 3), np.uint8), i, i * 1001 / 30000), make_poses(1))
    with VideoSource(sink.path) as drawn:
        assert all(frame.image.max() > 150 for frame in drawn)
    data = sink.path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def sound(path: Path) -> tuple[str, np.ndarray, float]:
    """Codec, samples of the first channel, and the time of the first one, of a file's sound."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        assert frames[0].time is not None
        samples = [frame.to_ndarray()[0].astype(np.float64) for frame in frames]
        return stream.codec_context.codec.canonical_name, np.concatenate(samples), frames[0].time


def test_overlay_copies_the_sound(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "source.mp4", frames=50, audio=True)
    made = overlay(source, tmp_path / "out")
    old_codec, old, old_start_s = sound(source)
    new_codec, new, new_start_s = sound(made)
    assert (new_codec, new_start_s) == (old_codec, old_start_s)
    # Copied, not encoded again: the very same samples, to the end of the pictures (one packet is 1024).
    assert abs(len(new) - len(old)) <= 2048
    length = min(len(new), len(old)) - 1024
    np.testing.assert_array_equal(new[:length], old[:length])


def test_overlay_of_a_part_has_the_sound_of_that_part(tmp_path: Path) -> None:
    source = write_sweep(tmp_path / "source.mkv", "pcm_s16le")
    made = overlay(source, tmp_path / "out", start_s=1.0, end_s=2.0, every=2)
    times_s, duration_s = probe(made)
    np.testing.assert_allclose(times_s, np.arange(13) * 0.08, atol=1e-3)
    assert duration_s == pytest.approx(1.04, abs=1e-3)
    codec, samples, start_s = sound(made)
    assert codec == "aac"
    assert len(samples) / 48000 == pytest.approx(1.04, abs=0.1)
    # The source is silent but for a beep at 1.5 s, half a second into the part.
    beep_s = start_s + np.flatnonzero(np.abs(samples) > 0.2)[0] / 48000
    assert beep_s == pytest.approx(0.5, abs=0.03)


def write_sweep(path: Path, codec: str) -> Path:
    """Three seconds of black at 25 frames/s with a beep from 1.5 to 1.7 s."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = out.add_stream(codec, rate=48000, layout="stereo")
        assert isinstance(audio, av.AudioStream)
        wave = np.zeros(3 * 48000, np.int16)
        wave[72000:81600] = 20000 * np.sin(np.arange(9600) / 10)
        for i in range(75):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
            part = np.repeat(wave[i * 1920 : (i + 1) * 1920], 2)[None]
            heard = av.AudioFrame.from_ndarray(part, format="s16", layout="stereo")
            heard.sample_rate, heard.pts, heard.time_base = 48000, i * 1920, Fraction(1, 48000)
            out.mux(audio.encode(heard))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "kept"),
    [
        (".ts", "aac", "aac"),
        (".mkv", "mp3", "mp3"),
        (".mkv", "libopus", "opus"),
        (".mkv", "flac", "aac"),
        (".avi", "ac3", "ac3"),
    ],
)
def test_overlay_copies_sound_of_other_containers(tmp_path: Path, suffix: str, codec: str, kept: str) -> None:
    made = overlay(write_sweep(tmp_path / f"source{suffix}", codec), tmp_path / "out")
    new_codec, samples, start_s = sound(made)
    assert new_codec == kept
    # Fixed-point decoders give integers.
    beep = np.flatnonzero(np.abs(samples) > 0.3 * np.abs(samples).max())[0] / 48000
    assert start_s + beep == pytest.approx(1.5, abs=0.06)


def test_overlay_without_its_source_file_is_silent(tmp_path: Path) -> None:
    gone = SourceInfo("gone", 64, 48, Fraction(25), None, Fraction(1, 25), tmp_path / "gone.mp4")
    with SINKS["overlay"](tmp_path, "k", run(gone)) as sink:
        sink.write(make_frame(0), make_poses(0))
    with av.open(str(sink.path)) as container:
        assert not container.streams.audio and len(list(container.decode(video=0))) == 1


def test_overlay_of_a_live_source_and_of_equal_times(tmp_path: Path) -> None:
    live = SourceInfo("camera", 64, 48, Fraction(30), None, None)
    with SINKS["overlay"](tmp_path, "k", run(live)) as sink:
        for i, time_s in enumerate((5.0, 5.1, 5.1, 5.3)):
            sink.write(Frame(make_frame(0).image, i, time_s), make_poses(0))
    np.testing.assert_allclose(probe(sink.path)[0], np.array([0, 0.1, 0.1, 0.3]), atol=1e-4)


def test_overlay_that_h264_cannot_hold(tmp_path: Path) -> None:
    wide = SourceInfo("wide", 17000, 16, Fraction(25), None, Fraction(1, 25))
    with pytest.raises(OutputError, match="17000x16"), SINKS["overlay"](tmp_path, "k", run(wide)) as sink:
        sink.write(Frame(np.zeros((16, 17000, 3), np.uint8), 0, 0.0), make_poses(0))
    assert files(tmp_path) == set()


def test_overlay_never_replaces_its_source(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "k.mp4")
    before = source.read_bytes()
    with VideoSource(source) as frames:
        sink = SINKS["overlay"](tmp_path, "k", run(frames.info, overwrite=True))
        with pytest.raises(OutputError, match="is an input"), sink:
            pass
    assert source.read_bytes() == before


# Overlay images.


def test_overlay_images_keep_their_paths_and_kinds(tmp_path: Path) -> None:
    names = ["a.jpg", "b/c d.JPEG", "b/e.png", "f.webp", "g.tif", "g.png", "noext"]
    with SINKS["overlay"](tmp_path, "k", run(IMAGES)) as sink:
        for i, name in enumerate(names):
            image = np.full((30 + i, 41, 3), (200, 100, 20), np.uint8)
            sink.write(Frame(image, i, 0.0, name), make_poses(0))
    made = {name: name for name in names} | {"g.tif": "g.tif.png", "noext": "noext.png"}
    assert sink.path == tmp_path
    assert files(tmp_path) == set(made.values())
    for i, name in enumerate(names):
        read = cv2.imread(str(tmp_path / made[name]))
        assert read is not None and read.shape == (30 + i, 41, 3)
        np.testing.assert_allclose(read[5, 5], (20, 100, 200), atol=6)


def test_overlay_images_never_replace_their_sources(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"mine")
    both = run(IMAGES, overwrite=True, inputs={source.resolve()})
    with pytest.raises(OutputError, match="is an input"), SINKS["overlay"](tmp_path, "k", both) as sink:
        sink.write(make_frame(0, IMAGES, "a.png"), make_poses(1))
    assert source.read_bytes() == b"mine"


def test_atomic_path_when_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "final") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert files(tmp_path) == set()


WRITES = """
import os, signal, sys
from pathlib import Path
from hgpose.atomic import atomic_path
from hgpose.sinks.folder import atomic_folder

with atomic_path(Path("file")) as file, atomic_folder(Path("folder")) as folder:
    file.write_text("whole")
    (folder / "inside").touch()
    print("writes", flush=True)
    if not sys.stdin.readline():
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_killed_run_left_is_removed_by_the_next(killed: bool, tmp_path: Path) -> None:
    call = [sys.executable, "-c", WRITES]
    with subprocess.Popen(call, cwd=tmp_path, stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "writes\n"
        if killed:
            other.stdin.close()
            other.wait()
        with atomic_path(tmp_path / "mine") as part:
            left = set(tmp_path.iterdir()) - {part}
            assert len(left) == (0 if killed else 2)
        if not killed:
            other.stdin.write("go on\n")
    assert files(tmp_path) == ({"mine"} if killed else {"mine", "file", "folder/inside"})
