"""Saved keypoints into other files, and back onto their pictures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import write_png
from media import write_clip
from test_formats import EACH, IMAGES, KINDS, VIDEO, make_poses, write
from test_schema import special
from typer.testing import CliRunner

from hgpose.cli import app
from hgpose.convert import convert
from hgpose.errors import InputError, OptionsError, OutputError
from hgpose.results import open_results
from hgpose.sinks import SINKS, Run
from hgpose.sinks.record import people
from hgpose.sources.images import ImageSource, find_images
from hgpose.sources.video import VideoSource
from hgpose.types import Frame, ModelInfo, Poses, SourceInfo


def contents(path: Path) -> Any:
    """What is in a file or folder; of an archive, which says when it was made, the arrays."""
    if path.is_dir():
        return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    if path.suffix == ".npz":
        with np.load(path) as data:
            return {name: array.tobytes() for name, array in data.items()}
    return path.read_bytes()


@pytest.mark.parametrize("info", [VIDEO, IMAGES], ids=["video", "images"])
@pytest.mark.parametrize("saved", ["json", "jsonl", "parquet"])
def test_converted_is_what_would_have_been_saved(tmp_path: Path, saved: str, info: SourceInfo) -> None:
    each = [*EACH, make_poses(3, 9, ids=[-1] * 3)]
    results = write(tmp_path / "saved", saved, each, info)
    made = convert(results, tmp_path / "converted", KINDS)
    for kind, path in zip(KINDS, made, strict=True):
        assert contents(path) == contents(write(tmp_path / "direct", kind, each, info)), kind


def test_json_keeps_what_only_it_has(tmp_path: Path) -> None:
    results = write(tmp_path / "saved", "json", [special(), make_poses(1)])
    for kind in ("jsonl", "json"):
        (results,) = convert(results, tmp_path / kind, [kind])
    assert results.read_bytes() == (tmp_path / "saved" / "k.json").read_bytes()
    assert b"keypoints_raw" in results.read_bytes() and b'"interpolated":[4]' in results.read_bytes()


def test_json_however_it_is_laid_out(tmp_path: Path) -> None:
    results = write(tmp_path, "json", [make_poses(50), *EACH])
    document = json.loads(results.read_text())
    for indent in (None, 4):
        (tmp_path / "other.json").write_text(json.dumps(document, indent=indent))
        (made,) = convert(tmp_path / "other.json", tmp_path / f"{indent}", ["jsonl"])
        assert made.read_bytes() == write(tmp_path, "jsonl", [make_poses(50), *EACH]).read_bytes()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", frames=8)


def poses_on(clip: Path, folder: Path, kind: str, every: int = 1) -> tuple[Path, list[Poses]]:
    """Results of a clip whose third frame shows nobody."""
    with (
        VideoSource(clip, every=every) as source,
        SINKS[kind](
            folder, "clip", Run(source.info, ModelInfo("tiny", "0" * 64), EACH[1].keypoint_set)
        ) as sink,
    ):
        each = []
        for i, frame in enumerate(source):
            each.append(make_poses(0 if i == 2 else 2, i, ids=[1, 2][: 0 if i == 2 else 2]))
            sink.write(frame, each[-1])
    return sink.path, each


@pytest.mark.parametrize("kind", ["csv", "csv-long", "npz", "coco", "alphapose", "mmpose", "openpose", "dlc"])
def test_a_source_tells_size_rate_and_times(tmp_path: Path, clip: Path, kind: str) -> None:
    results, each = poses_on(clip, tmp_path, kind)
    with pytest.raises(InputError, match="add --source"):
        convert(results, tmp_path / "out", ["json"])
    assert not (tmp_path / "out").exists()
    (made,) = convert(results, tmp_path / "out", ["json"], clip)
    with VideoSource(clip) as source, open_results(made) as read:
        assert read.info is not None
        assert (read.info.width, read.info.height, read.info.fps) == (
            source.info.width, source.info.height, source.info.fps
        )  # fmt: skip
        for frame, found, poses in zip(source, read.frames, each, strict=True):
            assert (found.index, len(found.poses)) == (frame.index, len(poses))
            assert found.time_s == pytest.approx(frame.time_s, abs=1e-6)
            for name in {"nose", "left_ankle"}:
                i, k = found.poses.keypoint_set.index(name), poses.keypoint_set.index(name)
                np.testing.assert_allclose(found.poses.keypoints[:, i], poses.keypoints[:, k], atol=0.006)


def test_shares_of_a_picture_become_px(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5, size_wh=(640, 480))
    (made,) = convert(write(tmp_path, "yolo", EACH), tmp_path / "out", ["json"], clip)
    with open_results(made) as read:
        for found, poses in zip(read.frames, EACH, strict=True):
            assert found.poses.ids.tolist() == poses.ids.tolist()
            np.testing.assert_allclose(found.poses.keypoints, poses.keypoints, atol=0.01)
            np.testing.assert_allclose(found.poses.boxes, poses.boxes, atol=0.01)


def test_nobody_is_lost_for_want_of_a_box(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=5, size_wh=(640, 480))
    (made,) = convert(write(tmp_path, "csv-long", EACH), tmp_path / "out", ["yolo"], clip)
    with open_results(made) as read:
        for found, poses in zip(read.frames, EACH, strict=True):
            assert found.poses.ids.tolist() == poses.ids.tolist()
            corners = found.poses.boxes.reshape(-1, 2, 2) * np.array([640, 480]) - 0.5
            np.testing.assert_allclose(corners[:, 0], poses.keypoints.min(axis=1), atol=0.01)
            np.testing.assert_allclose(corners[:, 1], poses.keypoints.max(axis=1), atol=0.01)


def images(folder: Path) -> Path:
    for i in range(4):
        write_png(folder / "sub" / f"{i}.png", np.full((40 + i, 60, 3), 50 * i, np.uint8))
    return folder


@pytest.mark.parametrize(
    "kind", ["csv", "csv-long", "npz", "coco", "alphapose", "mmpose", "openpose", "yolo", "dlc"]
)
def test_a_folder_of_images_tells_sizes(tmp_path: Path, kind: str) -> None:
    with SINKS[kind](tmp_path, "k", Run(IMAGES, ModelInfo("tiny", "0" * 64), EACH[1].keypoint_set)) as sink:
        for i in range(4):
            sink.write(Frame(np.zeros((480, 480, 3), np.uint8), i, 0.0, f"sub/{i}.png"), make_poses(i % 2))
    (made,) = convert(sink.path, tmp_path / "out", ["json"], images(tmp_path / "set"))
    frames = json.loads(made.read_text())["frames"]
    assert [(f["name"], f["width"], f["height"], len(f["people"])) for f in frames] == [
        (f"sub/{i}.png", 60, 40 + i, i % 2) for i in range(4)
    ]


@pytest.mark.parametrize("kind", ["openpose", "yolo"])
def test_images_are_known_without_their_suffix(tmp_path: Path, kind: str) -> None:
    # As one sorts them with it; the numbers are no frames, and two share a stem.
    names = ["a-b.png", "a.jpg", "a.png", "a_000000000002.png", "a_000000000010.png"]
    for i, name in enumerate(names):
        write_png(tmp_path / "set" / name, np.full((20 * i + 40, 60, 3), 9, np.uint8))
    with (
        ImageSource(find_images([tmp_path / "set"]), "set") as source,
        SINKS[kind](tmp_path, "k", Run(source.info, ModelInfo("tiny", ""), EACH[1].keypoint_set)) as sink,
    ):
        for i, frame in enumerate(source):
            sink.write(frame, make_people_on(frame, i % 2 + 1))
    (made,) = convert(sink.path, tmp_path / "out", ["json"], tmp_path / "set")
    frames = json.loads(made.read_text())["frames"]
    assert [(f["name"], len(f["people"])) for f in frames] == [
        (name, i % 2 + 1) for i, name in enumerate(names)
    ]


def make_people_on(frame: Frame, count: int) -> Poses:
    """People who lie within a picture."""
    poses = make_poses(count)
    share = np.float32(min(frame.image.shape[:2]) / 500)
    return replace(poses, keypoints=poses.keypoints * share, boxes=poses.boxes * share)


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("every", [1, 3])
def test_drawn_later_is_what_would_have_been_drawn(tmp_path: Path, clip: Path, every: int) -> None:
    overlay, _ = poses_on(clip, tmp_path / "direct", "overlay", every)
    results, _ = poses_on(clip, tmp_path / "saved", "json", every)
    done = CliRunner().invoke(app, ["draw", str(results), str(clip), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    drawn = pictures(tmp_path / "out" / "clip.mp4")
    np.testing.assert_array_equal(drawn, pictures(overlay))
    assert len(drawn) == -(-8 // every) and max(int(picture.max()) for picture in drawn) > 100
    bare = CliRunner().invoke(
        app,
        [
            "draw",
            str(results),
            str(clip),
            "-o",
            str(tmp_path / "black"),
            "--black",
            "--no-boxes",
            "--threshold",
            "1",
        ],
    )
    assert bare.exit_code == 0
    assert max(int(picture.max()) for picture in pictures(tmp_path / "black" / "clip.mp4")) < 8


def test_trc_of_images_counts_seconds(tmp_path: Path) -> None:
    results = write(tmp_path, "json", EACH, IMAGES)
    (made,) = convert(results, tmp_path / "out", ["trc"])
    rows = [line.split("\t")[:2] for line in sorted(made.glob("*.trc"))[0].read_text().splitlines()[6:]]
    assert len(rows) > 1 and [float(time_s) for _, time_s in rows] == [int(number) - 1 for number, _ in rows]


def test_drawn_onto_images(tmp_path: Path) -> None:
    source = images(tmp_path / "set")
    with SINKS["csv"](tmp_path, "k", Run(IMAGES, ModelInfo("tiny", ""), EACH[1].keypoint_set)) as sink:
        sink.write(Frame(np.zeros((1, 1, 3), np.uint8), 2, 0.0, "sub/2.png"), make_poses(1))
    assert convert(sink.path, tmp_path / "out", ["overlay"], source) == [tmp_path / "out"]
    assert [p.name for p in (tmp_path / "out").rglob("*.png")] == ["2.png"]


def test_neither_draws_nor_converts_with_torch(tmp_path: Path, clip: Path) -> None:
    results, _ = poses_on(clip, tmp_path, "json")
    code = (
        "import sys; from hgpose.convert import convert; import hgpose.cli\n"
        f"convert({str(results)!r}, {str(tmp_path / 'out')!r}, ['overlay', 'csv'], {str(clip)!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What goes wrong.


def test_results_of_another_video(tmp_path: Path, clip: Path) -> None:
    results = write(tmp_path, "json", [make_poses(1)] * 9)
    with pytest.raises(InputError, match=r"k\.json: frame number 8 is not in clip\.mp4"):
        convert(results, tmp_path / "out", ["overlay"], clip)
    assert not list((tmp_path / "out").iterdir())
    results = write(tmp_path, "json", [make_poses(1)], IMAGES)
    with pytest.raises(InputError, match=r"frame a/0\.jpg is not in"):
        convert(results, tmp_path / "out", ["overlay"], images(tmp_path / "set"))


def test_an_input_is_never_written_over(tmp_path: Path, clip: Path) -> None:
    results = write(tmp_path, "json", EACH)
    before = results.read_bytes()
    with pytest.raises(OutputError, match="is an input"):
        convert(results, tmp_path, ["json"], overwrite=True)
    assert results.read_bytes() == before
    results, _ = poses_on(clip, tmp_path, "json")
    with pytest.raises(OutputError, match="is an input"):
        convert(results, tmp_path, ["overlay"], clip, overwrite=True)


def test_what_is_asked_wrongly(tmp_path: Path) -> None:
    results = write(tmp_path, "json", EACH)
    with pytest.raises(OptionsError, match="bvh: unknown kind; known: overlay, csv"):
        convert(results, tmp_path / "out", ["bvh"])
    with pytest.raises(OptionsError, match="hgpose draw"):
        convert(results, tmp_path / "out", ["overlay"])
    wrong = CliRunner().invoke(app, ["convert", str(results), str(tmp_path / "out"), "--to", "bvh"])
    assert wrong.exit_code == 2
    write(tmp_path / "out", "csv", EACH)
    again = CliRunner().invoke(app, ["convert", str(results), str(tmp_path / "out"), "--to", "csv"])
    assert again.exit_code == 1 and "--overwrite" in again.output
    right = CliRunner().invoke(
        app, ["convert", str(results), str(tmp_path / "out"), "--to", "csv, trc", "--overwrite"]
    )
    assert right.exit_code == 0 and "k_trc" in right.output


HEADER = json.dumps({"schema": "hgpose/1", "keypoints": ["neck"]})
BROKEN: list[tuple[str, str | None, str]] = [
    ("none.json", None, "no such file"),
    ("r.json", "", "neither|cannot be read as JSON"),
    ("r.json", "[1", "malformed|cannot be read as JSON"),
    ("r.json", '[{"instances": []}]', "malformed"),
    ("r.json", HEADER[:-1] + ', "frames": [{"frame": 0', "cannot be read as JSON"),
    ("r.json", HEADER[:-1] + ', "frames": [{"frame": 0}]}', "malformed"),
    ("r.json", HEADER[:-1] + ', "frames": [], "more": 1} ', ""),
    ("r.json", HEADER[:-1] + ', "frames": [] ', "was cut short"),
    ("r.json", HEADER[:-1] + ', "frames": []} {', "end expected"),
    ("r.json", "[] []", "end expected"),
    ("r.json", '{"frames": [], "schema": "hgpose/1"}', "neither hgpose JSON"),
    ("r.jsonl", "", "cannot be read as JSON"),
    ("r.jsonl", HEADER + "\n{", "cannot be read as JSON"),
    ("r.csv", "frame,time_s,person,keypoint,x,y,score\n", ""),
    ("r.csv", "frame,time_s,person,keypoint,x,y\n", "neither hgpose's CSV"),
    ("r.csv", "frame,time_s,person,keypoint,x,y,score\n0,0,1,neck,1,2,3\n0,0,1,neck,1", "was cut short"),
    (
        "r.csv",
        "frame,time_s,person,keypoint,x,y,score\n0,0,1,neck,1,2,3\n0,0,1,nose,1,2,3\n1,0,1,neck,1,2,3\n",
        "frame 1 has not all keypoints",
    ),
    ("r.csv", "scorer,a,a\nbodyparts,neck,neck\ncoords,x,y\n", "not DeepLabCut's predictions"),
    (
        "r.csv",
        "scorer,a,a,a\nbodyparts,neck,neck,neck\ncoords,x,y,likelihood\n0,1,2\n",
        "line 4 is malformed",
    ),
    ("r.npz", "PK", "no whole archive"),
    ("r.trc", "PathFileType", "TRC cannot be read: it has no scores"),
    ("r/a_person01.trc", "", "TRC cannot be read"),
    ("r.mp4", "", "pictures, not keypoints"),
    ("r/part-0.parquet", "", r"a data set of many inputs; give the part of one, such as .*part-0\.parquet"),
    ("r.json", f'[{{"image_id": "\\ud800", "keypoints": {[1] * 51}, "score": 1}}]', "surrogates not allowed"),
    (
        "r.json",
        '[{"frame_id": 0, "file_name": "\\udc00\\ud800", "instances": []}]',
        "surrogates not allowed",
    ),
    ("r.parquet", "PAR1", "cannot be read|malformed"),
    ("r/x.txt", "", "no OpenPose results"),
    ("r/a_keypoints.json", "{}", "a_keypoints.json: malformed"),
    ("r/a_000000000001_keypoints.json", "{", "a_000000000001_keypoints.json: cannot be read as JSON"),
    (
        "r/a_000000000001_keypoints.json",
        '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}',
        r"have \[1\] keypoints",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_results(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    given = path.parent if path.parent != tmp_path else path
    if not message:
        with open_results(given) as results:
            assert list(results.frames) == []
        return
    with pytest.raises(InputError, match=message) as error, open_results(given) as results:
        list(results.frames)
    assert str(given) in str(error.value)


@pytest.mark.parametrize("kind", [k for k in SINKS if k not in ("overlay", "trc", "openpose", "yolo")])
@pytest.mark.parametrize("info", [VIDEO, IMAGES], ids=["video", "images"])
def test_what_was_cut_short_is_never_taken_as_whole(tmp_path: Path, kind: str, info: SourceInfo) -> None:
    path = write(tmp_path, kind, EACH, info)
    whole = path.read_bytes()
    # What can be read line by line may end at a line: nothing tells that more should follow.
    by_lines = kind in ("csv", "csv-long", "jsonl", "dlc")
    rng = np.random.default_rng(0)
    for length in {*rng.integers(0, len(whole) - 2, 40).tolist(), len(whole) - 2 - by_lines}:
        if by_lines and whole[:length].endswith(b"\n"):
            continue
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=re.escape(str(path))), open_results(path) as results:
            list(results.frames)


@pytest.mark.parametrize("kind", ["openpose", "yolo"])
def test_a_file_of_a_folder_that_was_cut_short(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, EACH)
    file = sorted(file for file in path.rglob("k_*") if file.stat().st_size > 100)[-1]
    whole = file.read_bytes()
    for length in range(len(whole) - 3, 1, -97):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=re.escape(str(file))), open_results(path) as results:
            list(results.frames)


WRONG: list[tuple[SourceInfo, tuple[str | int, ...], Any]] = [
    (VIDEO, ("source", "name"), 1.5),
    (VIDEO, ("source", "width"), -1),
    (VIDEO, ("source", "height"), None),
    (VIDEO, ("source", "fps_exact"), "0"),
    (VIDEO, ("model", "name"), None),
    (VIDEO, ("keypoints", 0), None),
    (VIDEO, ("frames", 0, "frame"), 1.5),
    (VIDEO, ("frames", 0, "frame"), 10**30),
    (VIDEO, ("frames", 0, "time_s"), None),
    (VIDEO, ("frames", 1, "people", 0, "id"), 10**30),
    (IMAGES, ("frames", 0, "width"), "x"),
    (IMAGES, ("frames", 0, "name"), None),
    (IMAGES, ("frames", 0, "name"), ""),
    (IMAGES, ("frames", 0, "name"), "/tmp/x.png"),
    (IMAGES, ("frames", 0, "name"), "../../x.png"),
    (IMAGES, ("frames", 0, "name"), "half a pair \ud800.png"),
    (VIDEO, ("source", "name"), "\udbff"),
    (VIDEO, ("model", "name"), "\ud800"),
    (VIDEO, ("keypoints", 0), "\ud800"),
]


@pytest.mark.parametrize(("info", "place", "value"), WRONG)
def test_what_cannot_be_is_malformed(
    info: SourceInfo, place: tuple[str | int, ...], value: Any, tmp_path: Path
) -> None:
    path = write(tmp_path, "json", EACH, info)
    document = json.loads(path.read_text())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=re.escape(str(path))):
        convert(path, tmp_path / "out", [kind for kind in SINKS if kind != "overlay"])
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_table_with_one_side_only(tmp_path: Path, clip: Path) -> None:
    table = tmp_path / "wrist.csv"
    head = "frame,time_s,person,score,x1,y1,x2,y2,left_wrist_x,left_wrist_y,left_wrist_score"
    table.write_text(f"{head}\n0,0,1,0.5,1,1,9,9,5,5,0.5\n")
    (made,) = convert(table, tmp_path / "out", ["yolo"], clip)
    assert "flip_idx: [0]" in (made / "data.yaml").read_text()


def test_another_keypoint_set(tmp_path: Path) -> None:
    results = write(tmp_path, "openpose", EACH)
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    (made,) = convert(results, tmp_path / "out", ["json"], clip)
    with open_results(made) as read:
        assert read.keypoint_set.names[8] == "pelvis" and len(read.keypoint_set) == 25
        # So that there is something to draw.
        assert ("left_knee", "left_ankle") in read.keypoint_set.skeleton
        found = [people(frame.poses) for frame in read.frames]
    with open_results(results) as read:
        assert [people(frame.poses) for frame in read.frames] == found
    assert replace(EACH[1]).ids.tolist() == [found[1][0]["id"]]
