"""Videos and image sets from file to files: what comes out, and what becomes of input that is none."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from media import file_server, files_no_larger_than, picture, write_clip
from numpy.typing import NDArray
from PIL import Image

from hgpose.errors import InputError, OptionsError, OutputError
from hgpose.estimate import Estimator, load_estimator
from hgpose.models import build_model
from hgpose.options import EstimatorOptions, VideoOptions
from hgpose.pipeline import Summary
from hgpose.process import find_videos, output_stem, process_images, process_video, process_videos
from hgpose.sinks import SINKS, Run
from hgpose.sinks.record import people, seconds
from hgpose.sources.images import find_images, read_image
from hgpose.sources.video import VideoSource
from hgpose.types import Detections, Frame, Poses, SourceInfo
from hgpose.weights import Card, save_weights

NTSC = Fraction(30000, 1001)
TEXT_ONLY = VideoOptions(save=("csv", "json"))
#: What a file may be called, besides sensible names.
NAMES = [
    "two words",
    "-rf",
    "--help",
    'it\'s "quoted"',
    "new\nline",
    "片 été",
    "[1]*?",
    "%03d",
    "a,b;c$HOME`id`",
    "caf\udce9",
]


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Estimator:
    """An untrained network that takes anything for a person, a frame at a time, so that bits repeat."""
    torch.manual_seed(0)
    architecture = {"kind": "stacked_hourglass", "stacks": 1, "width": 16, "outputs": 19}
    card = Card("tiny", "pose", architecture, 64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), keypoint_set="body19")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(build_model(architecture).state_dict(), card, path)
    options = EstimatorOptions(
        str(path), "whole-frame", min_person_score=0, batch=1, device="cpu", half=False, track=False
    )
    return load_estimator(options)


class Blind(Estimator):
    """Sees nobody where it would follow them; fails on the frame ``fails_at`` of the first source."""

    def __init__(self, like: Estimator, fails_at: int | None = None) -> None:
        super().__init__(like.detector, like.crops, replace(like.options, track=True))
        self._fails_at = [fails_at]

    def poses(self, frames: Sequence[Frame], people: Sequence[Detections]) -> list[Poses]:
        if self._fails_at[0] in [frame.index for frame in frames]:
            self._fails_at.clear()
            self._fails_at.append(None)
            raise RuntimeError("no memory left on the device")
        return [Poses.empty(self.keypoint_set) for _ in frames]


@pytest.fixture
def blind(estimator: Estimator) -> Estimator:
    return Blind(estimator)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def write_images(folder: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(index, 40, 30)).save(path)
    return folder


# ---- what comes out of a video ----

CLIPS: dict[str, dict[str, Any]] = {
    "constant": {"frames": 12},
    "variable": {"times_s": [Fraction(n, 100) for n in (0, 3, 4, 11, 12, 40, 41)]},
    "29.97": {"frames": 12, "rate": NTSC, "b_frames": 2},
    "rotated": {"frames": 6, "rotation_deg": 90},
    "odd": {"frames": 6, "size_wh": (63, 47), "pix_fmt": "yuv444p"},
    "audio": {"frames": 25, "audio": True},
}


@pytest.mark.parametrize("kind", CLIPS)
def test_outputs_have_the_frames_of_the_source(kind: str, tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", **CLIPS[kind])
    summary = process_video(clip, tmp_path / "out", blind)
    frames = decoded(clip)
    times_s = [float(frame.time) for frame in frames if frame.time is not None]
    overlay = tmp_path / "out" / "clip.mp4"
    with av.open(str(clip)) as old, av.open(str(overlay)) as new:
        before, after = old.streams.video[0], new.streams.video[0]
        turned = kind == "rotated"
        size_wh = (before.height, before.width) if turned else (before.width, before.height)
        assert (after.width, after.height) == size_wh
        if kind != "variable":
            assert after.average_rate == before.average_rate
        assert len(new.streams.audio) == len(old.streams.audio)
        assert before.duration is not None and before.time_base is not None
        assert after.duration is not None and after.time_base is not None
        # How long the last frame of a variable rate stays is the container's guess; all others are exact.
        slack_s = 1 / float(before.average_rate or 1) if kind == "variable" else 1e-3
        assert float(after.duration * after.time_base) == pytest.approx(
            float(before.duration * before.time_base), abs=slack_s
        )
    drawn = decoded(overlay)
    assert [float(frame.time) for frame in drawn if frame.time is not None] == pytest.approx(
        [time_s - times_s[0] for time_s in times_s], abs=1e-4
    )
    rows, document = read_csv(tmp_path / "out" / "clip.csv"), read_json(tmp_path / "out" / "clip.json")
    counts = {len(frames), len(drawn), len(rows), len(document["frames"]), document["source"]["frames"]}
    assert counts == {summary.frames}
    assert [float(row["time_s"]) for row in rows] == pytest.approx(times_s, abs=1e-6)
    assert summary.damage is None and summary.error is None


@pytest.mark.parametrize("track", [False, True])
def test_json_csv_and_api_agree(track: bool, tmp_path: Path, estimator: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=9, rate=NTSC)
    following = Estimator(estimator.detector, estimator.crops, replace(estimator.options, track=track))
    process_video(clip, tmp_path, following, VideoOptions(save=("csv", "json"), start_s=0.1, every=2))
    with VideoSource(clip, start_s=0.1, every=2) as source:
        expected = [(frame.index, seconds(frame), people(estimator(frame.image))) for frame in source]
    document, rows = read_json(tmp_path / "clip.json"), read_csv(tmp_path / "clip.csv")
    assert [index for index, _, _ in expected] == [3, 5, 7]
    assert document["keypoints"] == list(estimator.keypoint_set.names)

    for frame, row, (index, time_s, found) in zip(document["frames"], rows, expected, strict=True):
        assert (frame["frame"], frame["time_s"]) == (index, time_s)
        assert len(frame["people"]) == len(found) == 1
        # Of people who are followed the points are smoothed, and an id is added.
        assert track or frame["people"] == found
        person = frame["people"][0]
        assert (int(row["frame"]), float(row["time_s"])) == (index, time_s)
        assert row["person"] == ("" if person["id"] is None else str(person["id"]))
        assert float(row["score"]) == person["score"]
        assert [float(row[name]) for name in ("x1", "y1", "x2", "y2")] == person["box"]
        for name, point in zip(document["keypoints"], person["keypoints"], strict=True):
            assert [float(row[f"{name}_{part}"]) for part in ("x", "y", "score")] == point


def test_frames_with_nobody_are_in_every_output(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    summary = process_video(clip, tmp_path / "out", blind)
    assert (summary.frames, summary.frames_with_people, summary.people) == (5, 0, 0)
    rows = read_csv(tmp_path / "out" / "clip.csv")
    assert [row["frame"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert not any(row["person"] or row["x1"] or row["nose_x"] for row in rows)
    assert [frame["people"] for frame in read_json(tmp_path / "out" / "clip.json")["frames"]] == [[]] * 5
    assert len(decoded(tmp_path / "out" / "clip.mp4")) == 5


def test_an_id_that_nobody_has_is_told(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    assert process_video(clip, tmp_path / "all", blind).warning is None
    blind.options = replace(blind.options, person="id:9")
    warning = process_video(clip, tmp_path / "one", blind).warning
    assert warning is not None and "nobody has id:9" in warning


def test_only_what_was_asked_for_is_written(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    summary = process_video(clip, tmp_path / "out", blind, VideoOptions(save=("csv", "csv")))
    assert files(tmp_path / "out") == {"clip.csv"}
    assert summary.files == [str(tmp_path / "out" / "clip.csv")]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_will_do(
    name: str, tmp_path: Path, blind: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(f"out of {name}")
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "plain.mp4", frames=3, audio=True).rename(f"{name}.mp4")
    write_images(tmp_path, "plain.png")
    Path("plain.png").rename(f"{name}.png")
    # Given bare, so that a leading dash leads.
    summaries = process_videos(find_videos([f"{name}.mp4"]), out, blind)
    assert [(s.error, s.damage, s.frames) for s in summaries] == [(None, None, 3)]
    assert files(out) == {f"{name}.mp4", f"{name}.csv", f"{name}.json"}
    assert read_json(out / f"{name}.json")["source"]["name"] == f"{name}.mp4"
    assert process_images([f"{name}.png"], out, blind, VideoOptions(save=("csv", "overlay"))).frames == 1
    assert read_csv(out / "keypoints.csv")[0]["name"] == f"{name}.png"
    assert read_image(out / f"{name}.png").shape == (30, 40, 3)


def test_a_url_is_named_by_its_path_and_tells_no_secrets(tmp_path: Path, blind: Estimator) -> None:
    write_clip(tmp_path / "clip.mp4", frames=4)
    with file_server(tmp_path) as url:
        secret = url.replace("//", "//me:password@")
        videos = [f"{url}/clip.mp4?key=secret", f"{secret}/gone.mp4?key=secret"]
        good, bad = process_videos(videos, tmp_path / "out", blind, TEXT_ONLY)
    assert good.frames == 4 and good.error is None
    assert files(tmp_path / "out") == {"clip.csv", "clip.json"}
    assert bad.error is not None and "gone.mp4" in bad.error
    written = (tmp_path / "out" / "clip.json").read_text()
    assert not [
        text for text in (good.name, bad.name, bad.error, written) if "secret" in text or "pass" in text
    ]


def test_progress_counts_the_frames_to_come(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=20)
    totals: set[int | None] = set()
    options = VideoOptions(save=("csv",), start_s=0.2, end_s=0.6, every=3)
    summary = process_video(clip, tmp_path, blind, options, lambda _, total: totals.add(total))
    assert totals == {summary.frames} == {4}


# ---- bad input ----


def audio_only(path: Path) -> None:
    write_clip(path, frames=25, video=False, audio=True)


def folder(path: Path) -> None:
    path.mkdir()


def zero_by_zero(path: Path) -> None:
    # Raw pictures, whose size nothing but the header tells.
    clip = write_clip(path.with_suffix(".avi"), frames=3, codec="rawvideo")
    data = bytearray(clip.read_bytes())
    size = data.index(b"strf") + 12
    data[size : size + 8] = bytes(8)
    clip.unlink()
    path.write_bytes(data)


def beheaded(path: Path) -> None:
    data = write_clip(path, frames=20).read_bytes()
    path.write_bytes(data[: len(data) // 3])


BAD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": Path.touch,
    "text": lambda path: path.write_text("not a video\n" * 100),
    "playlist": lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "truncated before its index": beheaded,
    "audio only": audio_only,
    "0x0": zero_by_zero,
    "folder": folder,
    "unreadable": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_video_has_an_error_and_stops_no_other(kind: str, tmp_path: Path, blind: Estimator) -> None:
    bad = tmp_path / "bad one.mp4"
    BAD[kind](bad)
    good = [write_clip(tmp_path / f"{name}.mp4", frames=3) for name in "ab"]
    videos = [str(path) for path in (good[0], bad, good[1])]
    first, failed, last = process_videos(videos, tmp_path / "out", blind, TEXT_ONLY)
    assert failed.error is not None and "bad one.mp4" in failed.error and "\n" not in failed.error
    assert "unexpected" not in failed.error
    assert failed.files == []
    assert (first.error, first.frames, last.error, last.frames) == (None, 3, None, 3)
    assert files(tmp_path / "out") == {"a.csv", "a.json", "b.csv", "b.json"}


def test_of_a_damaged_video_what_was_decoded_is_kept(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "cut.mp4", frames=40, container_options={"movflags": "+faststart"})
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    (summary,) = process_videos([str(clip)], tmp_path / "out", blind)
    assert summary.error is None
    assert summary.damage is not None and "cut short" in summary.damage
    assert 0 < summary.frames < 40
    assert len(read_csv(tmp_path / "out" / "cut.csv")) == summary.frames
    assert len(read_json(tmp_path / "out" / "cut.json")["frames"]) == summary.frames
    assert len(decoded(tmp_path / "out" / "cut.mp4")) == summary.frames


def test_a_clock_that_jumps_makes_no_file_long(tmp_path: Path, blind: Estimator) -> None:
    times = [Fraction(n + (25_000_000 if n >= 10 else 0), 25) for n in range(20)]
    clip = write_clip(tmp_path / "jump.mkv", times_s=times)
    summary = process_video(clip, tmp_path / "out", blind)
    assert summary.frames == 20 and summary.damage is not None and "hours" in summary.damage
    written = [float(frame.time or 0) for frame in decoded(tmp_path / "out" / "jump.mp4")]
    assert written == pytest.approx([n / 25 for n in range(20)], abs=1e-3)
    read = [float(row["time_s"]) for row in read_csv(tmp_path / "out" / "jump.csv")]
    assert read == pytest.approx(written, abs=1e-3)


@pytest.mark.parametrize("codec_ticks", [90_000, 10**9])
def test_hours_between_two_frames_are_kept(codec_ticks: int, tmp_path: Path, blind: Estimator) -> None:
    """Whatever the source's time base: MP4 has 31 bits for the ticks between two frames."""
    times = [Fraction(n, 25) + (n >= 5) * 14_000 for n in range(10)]
    info = SourceInfo("a", 64, 48, Fraction(25), time_base=Fraction(1, codec_ticks))
    path = tmp_path / "a.mp4"
    with SINKS["overlay"](tmp_path, "a", Run(info, blind.model, blind.keypoint_set)) as sink:
        for index, time_s in enumerate(times):
            sink.write(Frame(picture(index, 64, 48), index, float(time_s)), Poses.empty(blind.keypoint_set))
    assert [float(f.time or 0) for f in decoded(path)] == pytest.approx([*map(float, times)], abs=1e-3)


def test_a_part_without_frames_is_an_error(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    with pytest.raises(InputError, match=r"clip\.mp4: no frame"):
        process_video(clip, tmp_path / "out", blind, VideoOptions(start_s=99))
    assert files(tmp_path) == {"clip.mp4"}


def test_what_nobody_expected_stops_no_other_video(tmp_path: Path, estimator: Estimator) -> None:
    videos = [str(write_clip(tmp_path / f"{name}.mp4", frames=6)) for name in "ab"]
    failed, good = process_videos(videos, tmp_path / "out", Blind(estimator, fails_at=3))
    assert failed.error is not None
    assert "a.mp4" in failed.error and "RuntimeError: no memory left on the device" in failed.error
    assert (good.error, good.frames) == (None, 6)
    assert files(tmp_path / "out") == {"b.mp4", "b.csv", "b.json"}


@pytest.mark.parametrize("fails", [False, True])
def test_of_two_videos_with_one_name_the_second_is_refused(
    fails: bool, tmp_path: Path, blind: Estimator
) -> None:
    """Whether the first fails or not: what clip.csv is of depends on the inputs' names alone."""
    (tmp_path / "other").mkdir()
    one = write_clip(tmp_path / "clip.mp4", frames=3)
    if fails:
        one.write_text("no video")
    two = write_clip(tmp_path / "other" / "clip.mkv", frames=5)
    options = replace(TEXT_ONLY, overwrite=True)
    first, second = process_videos([str(one), str(two)], tmp_path / "out", blind, options)
    assert (first.error is not None) == fails
    assert second.error is not None and str(two) in second.error and str(one) in second.error
    if fails:
        assert files(tmp_path / "out") == set()
    else:
        assert len(read_csv(tmp_path / "out" / "clip.csv")) == 3


# ---- bad output ----


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_written_over(tmp_path: Path, blind: Estimator, overwrite: bool) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    images = write_images(tmp_path / "set", "a.png", "b.png")
    before = clip.read_bytes()
    options = VideoOptions(overwrite=overwrite)
    with pytest.raises(OutputError, match=r"clip\.mp4 is an input"):
        process_video(clip, tmp_path, blind, options)
    with pytest.raises(OutputError, match=r"a\.png is an input"):
        process_images([images], images, blind, options)
    assert clip.read_bytes() == before
    assert files(tmp_path) == {"clip.mp4", "set/a.png", "set/b.png"}


def test_boxes_are_an_input_that_is_never_written_over(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    boxes = tmp_path / "clip.csv"
    boxes.write_text("mine")
    blind.options = replace(blind.options, detector=f"boxes:{boxes}")
    with pytest.raises(OutputError, match=r"clip\.csv is an input"):
        process_video(clip, tmp_path, blind, VideoOptions(save=("csv",), overwrite=True))
    assert boxes.read_text() == "mine"


def test_of_two_runs_at_once_the_first_to_end_keeps_its_file(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    result = tmp_path / "out" / "clip.csv"

    def other(summary: Summary, frame_count: int | None) -> None:
        result.write_text("of the other")

    with pytest.raises(OutputError, match=r"clip\.csv already exists"):
        process_video(clip, tmp_path / "out", blind, VideoOptions(save=("csv",)), other)
    assert result.read_text() == "of the other"
    assert not list(result.parent.glob("*.part"))


def test_results_are_replaced_only_if_told_so(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    out = tmp_path / "out"
    out.mkdir()
    (out / "clip.csv").write_text("precious")
    with pytest.raises(OutputError, match=r"clip\.csv already exists; pass --overwrite"):
        process_video(clip, out, blind)
    assert files(out) == {"clip.csv"} and (out / "clip.csv").read_text() == "precious"
    process_video(clip, out, blind, VideoOptions(overwrite=True))
    assert files(out) == {"clip.mp4", "clip.csv", "clip.json"}
    assert len(read_csv(out / "clip.csv")) == 3


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_folder_should_be(tmp_path: Path, blind: Estimator, below: str) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputError, match=r"cannot write .*out.*; .*-o"):
        process_video(clip, tmp_path / "out" / below, blind)
    with pytest.raises(OutputError, match=r"cannot write .*out.*; .*-o"):
        process_images([write_images(tmp_path / "set", "a.png")], tmp_path / "out" / below, blind)
    assert files(tmp_path) == {"clip.mp4", "out", "set/a.png"}


@pytest.mark.parametrize("save", ["overlay", "csv", "json"])
def test_a_full_disk_leaves_nothing_half_written(save: str, tmp_path: Path, estimator: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=30)
    noise = write_images(tmp_path / "set", *(f"{i}.png" for i in range(12)))
    # Whichever is asked for fails, and the others with it.
    options = VideoOptions(save=(save, "csv", "json"))
    with files_no_larger_than(1500):
        (failed,) = process_videos([str(clip)], tmp_path / "out", estimator, options)
        with pytest.raises(OutputError, match=r"cannot write .*; make room"):
            process_images([noise], tmp_path / "out", estimator, VideoOptions(save=("csv", "json")))
    assert failed.error is not None and "cannot write" in failed.error and "make room" in failed.error
    assert files(tmp_path / "out") == set()


def test_an_unknown_kind_is_named(tmp_path: Path, blind: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    options = VideoOptions(save=("csv", "xlsx"))
    with pytest.raises(OptionsError, match=r"xlsx.*overlay, csv, "):
        process_videos([str(clip)], tmp_path / "out", blind, options)
    with pytest.raises(OptionsError, match="xlsx"):
        process_images([write_images(tmp_path / "set", "a.png")], tmp_path / "out", blind, options)
    assert not (tmp_path / "out").exists()


# ---- images ----


def test_images_keep_their_places_and_share_one_table(tmp_path: Path, estimator: Estimator) -> None:
    names = ["img10.png", "img2.jpg", "sub/deep/img1.png"]
    images = write_images(tmp_path / "set", *names)
    Image.fromarray(picture(0, 21, 33)[..., :1].repeat(3, 2)).convert("L").save(images / "grey.png")
    totals: set[int | None] = set()
    out = tmp_path / "out"
    summary = process_images([images], out, estimator, None, lambda _, total: totals.add(total))
    order = ["grey.png", "img2.jpg", "img10.png", "sub/deep/img1.png"]
    assert files(out) == {*order, "keypoints.csv", "keypoints.json"}
    document, rows = read_json(out / "keypoints.json"), read_csv(out / "keypoints.csv")
    assert [frame["name"] for frame in document["frames"]] == [row["name"] for row in rows] == order
    assert totals == {4} and summary.frames == 4
    sizes = [(frame["width"], frame["height"]) for frame in document["frames"]]
    assert sizes == [(21, 33), (40, 30), (40, 30), (40, 30)]
    for path, name in find_images([images]):
        assert read_image(out / name).shape == read_image(path).shape
        found = people(estimator(read_image(path)))
        (frame,) = (frame for frame in document["frames"] if frame["name"] == name)
        assert [p["keypoints"] for p in frame["people"]] == [p["keypoints"] for p in found]


def test_bad_images_are_left_out_and_named(tmp_path: Path, blind: Estimator) -> None:
    images = write_images(tmp_path / "set", "0.png", "3.png")
    (images / "1.png").write_bytes(b"")
    (images / "2.jpg").write_text("text")
    summary = process_images([images], tmp_path / "out", blind)
    assert summary.frames == 2
    assert summary.damage is not None and "1.png" in summary.damage and "2.jpg" in summary.damage
    assert [row["frame"] for row in read_csv(tmp_path / "out" / "keypoints.csv")] == ["0", "3"]


def test_if_no_image_can_be_read_nothing_is_written(tmp_path: Path, blind: Estimator) -> None:
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(InputError, match=r"bad\.png"):
        process_images([tmp_path / "bad.png"], tmp_path / "out", blind)
    assert files(tmp_path) == {"bad.png"}


@pytest.mark.parametrize("given", ["gone", "gone*.png", "empty"])
def test_no_image_is_an_error_that_names_the_input(given: str, tmp_path: Path, blind: Estimator) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as raised:
        process_images([str(tmp_path / given)], tmp_path / "out", blind)
    assert given in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_results_inside_the_input_folder_are_no_input_of_the_next_run(
    tmp_path: Path, blind: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_images(tmp_path, "a.png", "sub/b.png"))
    for _ in range(2):
        assert process_images(["."], "sub/out", blind, VideoOptions(overwrite=True)).frames == 2
    assert files(tmp_path / "sub" / "out") == {"a.png", "sub/b.png", "keypoints.csv", "keypoints.json"}
    # Named as an input, they are one.
    assert process_images(["sub/out"], "again", blind).frames == 2


# ---- names ----


def test_patterns_are_files_and_all_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.mp4", "[b].mp4", "deep/c.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    url = "http://localhost/[x]*.mp4"
    long = "x" * 300 + "*"
    assert find_videos(["?.mp4", "a.mp4"]) == ["a.mp4", "b.mp4"]
    assert find_videos(["[b].mp4"]) == ["[b].mp4"], "a file before a pattern"
    assert find_videos(["**/c.mp4"]) == ["deep/c.mp4"]
    assert find_videos([f"{tmp_path}/*.mp4"]) == [f"{tmp_path}/{n}.mp4" for n in ("[b]", "a", "b")]
    assert find_videos(["-", url, "no*.mp4", long, ""]) == ["-", url, "no*.mp4", long, ""]


@pytest.mark.parametrize(
    ("video", "stem"),
    [
        ("-", "stdin"),
        ("a/b.c.mp4", "b.c"),
        ("http://h/x/clip.mp4?k=1#t", "clip"),
        ("rtsp://10.0.0.7:554", "10.0.0.7"),
        ("https://h/", "h"),
        ("C[1].mov", "C[1]"),
    ],
)
def test_results_are_called_after_the_video(video: str, stem: str) -> None:
    assert output_stem(video) == stem


@pytest.mark.parametrize("url", ["http://me:secret@[bad/a.mp4?secret", "http:///a.mp4?secret"])
def test_a_broken_url_is_an_error_without_its_password(url: str, tmp_path: Path, blind: Estimator) -> None:
    (summary,) = process_videos([url], tmp_path, blind)
    assert summary.error is not None and "not a URL" in summary.error
    assert "secret" not in summary.error + summary.name


# ---- memory ----

LONG = """
import resource, sys
from pathlib import Path

from hgpose.estimate import load_estimator
from hgpose.options import EstimatorOptions
from hgpose.process import process_video
from hgpose.types import Poses

estimator = load_estimator(EstimatorOptions(sys.argv[1], "whole-frame", device="cpu", half=False))
estimator.poses = lambda frames, people: [Poses.empty(estimator.keypoint_set) for _ in frames]
after = {}

def report(summary, total):
    for frames in (1000, 10000):
        if summary.frames >= frames and frames not in after:
            after[frames] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

process_video(sys.argv[2], Path(sys.argv[2]).parent / "out", estimator, report=report)
# The peak of the whole run, its end included.
print(after[1000], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_long_clip(path: Path, frames: int, size_wh: tuple[int, int]) -> Path:
    """Written like this as encoding is most of the test."""
    image: NDArray[np.uint8] = picture(3, *size_wh)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, size_wh)
    for _ in range(frames):
        writer.write(image)
    writer.release()
    return path


def test_memory_does_not_grow_with_length(tmp_path: Path, estimator: Estimator) -> None:
    clip = write_long_clip(tmp_path / "long.avi", 10_000, (32, 32))
    weights = next(Path(tmp_path.parent).glob("weights*/tiny.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(weights), str(clip)], capture_output=True, text=True, check=True
    )
    after_1000, at_the_end = map(int, done.stdout.split())
    assert len(read_csv(tmp_path / "out" / "long.csv")) == 10_000
    assert at_the_end <= 1.05 * after_1000


# ---- interrupted and resumed ----


class Interrupt(Exception):
    pass


@pytest.fixture
def following(estimator: Estimator) -> Estimator:
    """With 25 frames/s and people who may be away for 5 frames, 30 overlap and a chunk has 60."""
    estimator = Estimator(
        estimator.detector, estimator.crops, replace(estimator.options, track=True, lost_s=0.2)
    )
    return estimator


RESUMABLE = VideoOptions(save=("overlay", "csv", "json"), chunk_s=1.0)


def interrupt(clip: Path, out: Path, estimator: Estimator, options: VideoOptions, after: int) -> None:
    def report(summary: Any, count: int | None) -> None:
        if summary.frames >= after:
            raise Interrupt

    with pytest.raises(Interrupt):
        process_video(clip, out, estimator, options, report)


@pytest.mark.parametrize("save", [("overlay", "csv", "json"), ("csv", "trc")], ids=["drawn", "undrawn"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_is_as_one_that_was_not_interrupted(
    save: tuple[str, ...], every: int, tmp_path: Path, following: Estimator
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=320, audio=True)
    options = replace(RESUMABLE, save=save, every=every, start_s=0.2)
    whole = process_video(clip, tmp_path / "whole", following, options)
    out = tmp_path / "out"
    for after in (70, 130):
        interrupt(clip, out, following, replace(options, resume=after > 70), after)
    resumed = process_video(clip, out, following, replace(options, resume=True))
    assert 0 < resumed.detections < whole.detections, "whole chunks are not computed again"
    assert resumed.frames == whole.frames
    assert files(out) == files(tmp_path / "whole")
    for name in files(out):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_without_resume_it_begins_anew(tmp_path: Path, following: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=150)
    interrupt(clip, tmp_path / "out", following, RESUMABLE, 70)
    assert files(tmp_path / "out")
    summary = process_video(clip, tmp_path / "out", following, RESUMABLE)
    assert summary.detections >= 150
    assert files(tmp_path / "out") == {"clip.mp4", "clip.csv", "clip.json"}


def test_what_changed_is_not_resumed(tmp_path: Path, following: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=150)
    interrupt(clip, tmp_path / "out", following, RESUMABLE, 70)
    other = replace(RESUMABLE, resume=True, detect_every=3)
    with pytest.raises(InputError, match=f"detect_every was {RESUMABLE.detect_every}, is 3"):
        process_video(clip, tmp_path / "out", following, other)
    write_clip(clip, frames=151)
    with pytest.raises(InputError, match=r"clip\.mp4.*another input"):
        process_video(clip, tmp_path / "out", following, replace(RESUMABLE, resume=True))
    # What is written may change: keypoints do not.
    interrupt(clip, tmp_path / "out", following, RESUMABLE, 70)
    other = replace(RESUMABLE, resume=True, save=("csv",))
    assert process_video(clip, tmp_path / "out", following, other).frames == 151
    assert files(tmp_path / "out") == {"clip.csv"}


def test_after_a_late_failure_what_resume_needs_is_kept_and_said(
    tmp_path: Path, following: Estimator
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=150)
    whole, out = tmp_path / "whole", tmp_path / "out"
    # The disk is full when the last rows are written.
    options = replace(RESUMABLE, save=("csv-long",))
    process_video(clip, whole, following, options)
    with files_no_larger_than((whole / "clip_long.csv").stat().st_size - 100):
        (failed,) = process_videos([str(clip)], out, following, options)
    (folder,) = out.iterdir()
    assert failed.error is not None and "make room" in failed.error
    assert f"is kept in {folder}: --resume" in failed.error
    assert files(folder) == {"origin.json", "chunk-000000.npz", "chunk-000001.npz", "chunk-000002.npz"}
    process_video(clip, out, following, replace(options, resume=True))
    assert files(out) == {"clip_long.csv"}
    assert (out / "clip_long.csv").read_bytes() == (whole / "clip_long.csv").read_bytes()


def test_after_a_failure_what_nobody_can_resume_is_not_kept(
    tmp_path: Path, blind: Estimator, following: Estimator
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=250)
    # Not one chunk fits on the disk, but what it would be of does.
    with files_no_larger_than(3000):
        (failed,) = process_videos([str(clip)], tmp_path / "out", blind, replace(RESUMABLE, save=("csv",)))
    assert failed.error is not None and "chunk-000000.npz" in failed.error and "--resume" not in failed.error
    assert files(tmp_path / "out") == set()
    # Heatmaps are not kept, so such a run cannot go on.
    drawn = Estimator(following.detector, following.crops, replace(following.options, heatmaps=True))
    interrupt(clip, tmp_path / "out", drawn, RESUMABLE, 100)
    assert files(tmp_path / "out") == set()


def test_with_nothing_to_resume_files_are_safe(tmp_path: Path, following: Estimator) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    process_video(clip, tmp_path / "out", following, RESUMABLE)
    with pytest.raises(OutputError, match="already exists"):
        process_video(clip, tmp_path / "out", following, replace(RESUMABLE, resume=True))
    (again,) = process_videos([str(clip)], tmp_path / "out", following, replace(RESUMABLE, resume=True))
    assert again.error is not None and "already exists" in again.error


def interrupted_second_of_three(folder: Path, estimator: Estimator) -> list[str]:
    """Three clips and results in ``out`` of which the first is whole, and of the second a chunk is kept."""
    clips = [str(write_clip(folder / f"{name}.mp4", frames=150)) for name in "abc"]

    def report(summary: Summary, frame_count: int | None) -> None:
        if summary.name == "b.mp4" and summary.frames >= 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        process_videos(clips, folder / "out", estimator, RESUMABLE, report)
    assert any("finished are left" in note for note in raised.value.__notes__)
    return clips


def test_of_several_videos_the_finished_are_left(tmp_path: Path, following: Estimator) -> None:
    clips, out = interrupted_second_of_three(tmp_path, following), tmp_path / "out"
    first = (out / "a.csv").stat().st_mtime_ns
    resumed = process_videos(clips, out, following, replace(RESUMABLE, resume=True))
    assert [(s.error, s.kept, s.frames) for s in resumed] == [
        (None, True, 0), (None, False, 150), (None, False, 150),
    ]  # fmt: skip
    assert set(resumed[0].files) == {str(out / f"a.{suffix}") for suffix in ("mp4", "csv", "json")}
    assert (out / "a.csv").stat().st_mtime_ns == first
    assert files(out) == {f"{name}.{suffix}" for name in "abc" for suffix in ("mp4", "csv", "json")}


def test_of_several_videos_another_is_not_taken_for_a_finished_one(
    tmp_path: Path, following: Estimator
) -> None:
    clips, out = interrupted_second_of_three(tmp_path, following), tmp_path / "out"
    whole = (out / "a.csv").read_bytes()
    resume = replace(RESUMABLE, resume=True)
    other = process_videos(clips[:2], out, following, replace(resume, every=2))
    assert ["every was 1, is 2" in str(s.error) for s in other] == [True, True]
    (out / "a.csv").unlink()
    # What is gone is made again.
    (tmp_path / "c.mp4").unlink()
    again = process_videos(clips, out, following, resume)
    assert [s.frames for s in again] == [150, 150, 0] and again[2].error is not None
    assert (out / "a.csv").read_bytes() == whole
    write_clip(tmp_path / "a.mp4", frames=151)
    (another,) = process_videos(clips[:1], out, following, resume)
    assert another.error is not None and "already exists" in another.error


def test_streams_and_heatmaps_are_not_resumed(tmp_path: Path, following: Estimator) -> None:
    resume = VideoOptions(resume=True)
    with pytest.raises(InputError, match="stream"):
        process_video("-", tmp_path, following, resume)
    drawn = Estimator(following.detector, following.crops, replace(following.options, heatmaps=True))
    with pytest.raises(OptionsError, match="heatmaps"):
        process_video("clip.mp4", tmp_path, drawn, resume)
