"""Whole folders: the same files by however many workers, again after a crash, whatever is in the way.

Run as a program, ``python tests/test_batch.py BAR ...`` does the heavy checks, see :func:`main`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import duckdb
import filelock
import fsspec
import pyarrow.dataset
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from media import picture, write_clip
from PIL import Image

from hgpose.batch import BatchProgress, BatchSummary, process_batch
from hgpose.demo import CLIP
from hgpose.errors import OptionsError, OutputError, WeightsError
from hgpose.estimate import load_estimator
from hgpose.inputs import find_items
from hgpose.models import build_model
from hgpose.options import BatchOptions, EstimatorOptions, Style, VideoOptions
from hgpose.places import Place, file_system
from hgpose.process import process_video
from hgpose.weights import Card, save_weights
from hgpose.workers import local_devices

#: With 25 frames/s people may be away for 5 frames: 30 overlap, a chunk has 60.
HOW = EstimatorOptions(detector="whole-frame", min_person_score=0, device="cpu", half=False, lost_s=0.2)
WHAT = VideoOptions(save=("overlay", "csv", "json", "parquet"), chunk_s=1.0)
HIDDEN = ".hgpose"


def tiny_weights(folder: Path) -> Path:
    """An untrained network that takes anything for a person."""
    torch.manual_seed(0)
    architecture = {"kind": "stacked_hourglass", "stacks": 1, "width": 16, "outputs": 19}
    card = Card("tiny", "pose", architecture, 64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), keypoint_set="body19")
    path = folder / "tiny.safetensors"
    save_weights(build_model(architecture).state_dict(), card, path)
    return path


@pytest.fixture(scope="module")
def how(tmp_path_factory: pytest.TempPathFactory) -> EstimatorOptions:
    return replace(HOW, weights=str(tiny_weights(tmp_path_factory.mktemp("weights"))))


def write_images(folder: Path, count: int, size_wh: tuple[int, int] = (40, 30)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(picture(i, *size_wh)).save(folder / f"img{i}.png")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long video, a short one, images in two chunks and in one."""
    folder = tmp_path_factory.mktemp("tree")
    write_clip(folder / "long.mp4", frames=150, audio=True)
    write_images(folder / "photos", 70)
    write_images(folder / "photos" / "caf\u00e9 [1] 片", 2)
    (folder / "deep" / "er").mkdir(parents=True)
    write_clip(folder / "deep" / "er" / "short clip.mov", frames=9)
    (folder / "notes.md").write_text("no input")
    (folder / ".hidden.mp4").write_text("no input either")
    return folder


NAMES = {
    "long.mp4", "long.csv", "long.json", "deep/er/short clip.mp4", "deep/er/short clip.csv",
    "deep/er/short clip.json", "photos/keypoints.csv", "photos/keypoints.json",
    "photos/café [1] 片/keypoints.csv", "photos/café [1] 片/keypoints.json",
    "photos/café [1] 片/img0.png", "photos/café [1] 片/img1.png",
    *(f"photos/img{i}.png" for i in range(70)), "failures.json",
    "keypoints.parquet/source=long.mp4/part-0.parquet", "keypoints.parquet/source=photos/part-0.parquet",
    "keypoints.parquet/source=deep%2Fer%2Fshort clip.mov/part-0.parquet",
    "keypoints.parquet/source=photos%2Fcafé %5B1%5D 片/part-0.parquet",
}  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """All results, by name."""
    return {
        name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not (name := path.relative_to(folder).as_posix()).startswith(HIDDEN)
    }


def keypoints(found: dict[str, bytes]) -> dict[str, bytes]:
    """All but the pictures, whose encoders may do as they like."""
    return {name: data for name, data in found.items() if not name.endswith((".mp4", ".png"))}


def failures(out: Path) -> dict[str, str]:
    return {f["input"]: f["reason"] for f in json.loads((out / "failures.json").read_text())}


@pytest.fixture(scope="module")
def done(tree: Path, how: EstimatorOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one worker."""
    out = tmp_path_factory.mktemp("done")
    summary = process_batch([str(tree)], out, how, WHAT, BatchOptions(1))
    assert summary.failures == [] and summary.kept == 0
    assert {s.name for s in summary.summaries} == {
        str(tree / name) for name in ("long.mp4", "photos", "photos/café [1] 片", "deep/er/short clip.mov")
    }
    assert sum(s.frames for s in summary.summaries) == 150 + 9 + 70 + 2
    return out


# ---- the same by whomever ----


@pytest.mark.parametrize("piped", [False, True])
def test_a_plain_script_can_call_it(how: EstimatorOptions, tmp_path: Path, piped: bool) -> None:
    write_images(tmp_path / "in", 2)
    script = (
        "import hgpose\nprint('run')\n"
        f"how = hgpose.EstimatorOptions(weights={how.weights!r}, detector='whole-frame', device='cpu')\n"
        f"print(hgpose.process_batch({str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}, how).failures)\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-" if piped else str(tmp_path / "script.py")],
        input=script if piped else None, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("run\n[]\n", 0), done.stderr
    assert (tmp_path / "out" / "keypoints.csv").exists()


def test_results_lie_as_the_inputs(done: Path) -> None:
    assert set(files(done)) == NAMES
    assert [p.name for p in (done / HIDDEN).iterdir() if p.name not in {"lock", "manifest", "work"}] == []
    assert [p for p in (done / HIDDEN / "work").rglob("*") if p.is_file()] == []


def test_two_workers_write_the_same_bytes(
    tree: Path, how: EstimatorOptions, done: Path, tmp_path: Path
) -> None:
    tasks: list[int] = []

    def report(progress: BatchProgress) -> None:
        tasks.append(progress.tasks)

    process_batch([str(tree)], tmp_path, how, WHAT, BatchOptions(2), report)
    assert files(tmp_path) == files(done)
    assert tasks[-1] == 1 + 1 + 3 + 4, "the images are two tasks and one more, the long video three"


def test_a_batch_agrees_with_single_commands(
    tree: Path, how: EstimatorOptions, done: Path, tmp_path: Path
) -> None:
    process_video(tree / "long.mp4", tmp_path, load_estimator(how), replace(WHAT, save=("csv", "json")))
    for name in ("long.csv", "long.json"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes()


def test_the_data_set_is_one_to_other_programs(done: Path) -> None:
    sources = ["deep/er/short clip.mov", "long.mp4", "photos", "photos/café [1] 片"]
    table = pyarrow.dataset.dataset(done / "keypoints.parquet", partitioning="hive").to_table()
    rows = table.group_by("source").aggregate([("frame", "count")]).sort_by("source").to_pylist()
    assert [row["source"] for row in rows] == sources
    assert [row["frame_count"] for row in rows] == [9, 150, 70, 2]
    pattern = str(done / "keypoints.parquet" / "**" / "*.parquet")
    found = duckdb.sql(
        f"select source, count(name), count(*) from read_parquet('{pattern}') group by 1 order by 1"
    ).fetchall()
    assert found == [
        (s, 0 if s.endswith(("mov", "mp4")) else n, n) for s, n in zip(sources, [9, 150, 70, 2], strict=True)
    ]


def test_images_beside_a_folder_called_images(tmp_path: Path, how: EstimatorOptions) -> None:
    write_images(tmp_path / "in", 1)
    write_images(tmp_path / "in" / "images", 2)
    what = replace(WHAT, save=("parquet",))
    summary = process_batch([str(tmp_path / "in")], tmp_path / "out", how, what, BatchOptions(1))
    assert summary.failures == []
    found = pyarrow.dataset.dataset(tmp_path / "out" / "keypoints.parquet", partitioning="hive").to_table()
    assert sorted(found["source"].to_pylist()) == [".", "images", "images"]


def test_an_untracked_batch_is_the_same_too(tree: Path, how: EstimatorOptions, tmp_path: Path) -> None:
    untracked = replace(how, track=False, batch=7)
    what = replace(WHAT, save=("csv",))
    process_batch([str(tree / "long.mp4")], tmp_path / "batch", untracked, what, BatchOptions(2))
    process_video(tree / "long.mp4", tmp_path / "video", load_estimator(untracked), what)
    assert (tmp_path / "batch" / "long.csv").read_bytes() == (tmp_path / "video" / "long.csv").read_bytes()


def test_ray_writes_the_same_bytes(tree: Path, how: EstimatorOptions, done: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # A process of its own, which takes the cluster with it when it ends.
    run_apart(tree, tmp_path / "out", how, WHAT, BatchOptions(2, "ray"))
    assert files(tmp_path / "out") == files(done)


# ---- again ----


def stamps(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in files(out) if name != "failures.json"}


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """A copy of the results that may be changed."""
    return shutil.copytree(done, tmp_path / "again")


def rerun(
    tree: Path, out: Path, how: EstimatorOptions, what: VideoOptions = WHAT
) -> tuple[BatchSummary, list[str]]:
    notes: list[str] = []

    def report(progress: BatchProgress) -> None:
        notes.extend(progress.notes)
        progress.notes.clear()

    return process_batch([str(tree)], out, how, what, BatchOptions(1), report), notes


def test_what_is_whole_is_kept(tree: Path, again: Path, how: EstimatorOptions) -> None:
    before = stamps(again)
    summary, notes = rerun(tree, again, how)
    assert (summary.kept, summary.summaries, summary.failures) == (4, [], [])
    assert notes == ["4 of 4 inputs are done already"]
    assert stamps(again) == before


def test_what_is_gone_is_done_again(tree: Path, again: Path, how: EstimatorOptions, done: Path) -> None:
    (again / "photos" / "img3.png").unlink()
    before = stamps(again)
    summary, notes = rerun(tree, again, how)
    assert [s.name for s in summary.summaries] == [str(tree / "photos")] and summary.kept == 3
    assert notes[1] == f"{tree / 'photos'}: done again, as photos/img3.png is gone"
    assert files(again) == files(done)
    assert stamps(again)["long.csv"] == before["long.csv"]


def test_where_nobody_is_seen_all_is_whole(tmp_path: Path, how: EstimatorOptions) -> None:
    write_images(tmp_path / "in", 2)
    nobody, what = replace(how, min_person_score=1), replace(WHAT, save=("trc", "csv"))
    for kept in (0, 1):
        summary = process_batch([str(tmp_path / "in")], tmp_path / "out", nobody, what, BatchOptions(1))
        assert summary.kept == kept


def test_an_input_that_changed_is_done_again(
    tree: Path, again: Path, how: EstimatorOptions, tmp_path: Path
) -> None:
    # By another path it is the same.
    changed = shutil.copytree(tree, tmp_path / "tree")
    summary, _ = rerun(changed, again, how)
    assert summary.kept == 4
    shutil.rmtree(again)
    rerun(changed, again, how)
    write_clip(changed / "deep" / "er" / "short clip.mov", frames=7)
    # Another image in a folder: the folder is done again.
    write_images(changed / "photos" / "café [1] 片", 3)
    summary, notes = rerun(changed, again, how)
    assert [s.frames for s in summary.summaries] == [7, 3] and summary.kept == 2
    assert notes == ["2 of 4 inputs are done already", "2 inputs: done again, as another input"]


def test_other_options_and_weights_are_noticed(
    tree: Path, again: Path, how: EstimatorOptions, tmp_path: Path
) -> None:
    def said(how: EstimatorOptions, what: VideoOptions = WHAT) -> str:
        summary, notes = rerun(tree / "deep", again, how, what)
        assert len(summary.summaries) == 1 and summary.failures == []
        return notes[-1]

    process_batch([str(tree / "deep")], again, how, replace(WHAT, save=("csv",)), BatchOptions(1))
    other = replace(how, weights=str(tmp_path / "other.safetensors"))
    torch.manual_seed(1)
    card = Card("other", "pose", {"kind": "stacked_hourglass", "stacks": 1, "width": 16, "outputs": 19}, 64,
                (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), keypoint_set="body19")  # fmt: skip
    save_weights(build_model(card.architecture).state_dict(), card, Path(other.weights))
    before = files(again)
    assert "another weights" in said(other, replace(WHAT, save=("csv",)))
    assert files(again)["er/short clip.csv"] != before["er/short clip.csv"]
    said_last = said(replace(other, lost_s=0.3), replace(WHAT, save=("csv",), style=Style(black=True)))
    # What changes keypoints is said first; what changes files alone would be, too.
    assert "lost_s was 0.2, is 0.3" in said_last
    assert "black was True, is False" in said(replace(other, lost_s=0.3), replace(WHAT, save=("csv",)))


@pytest.mark.parametrize("damage", [b"", b'{"state": "done", ', b"[]", b'{"state": "done", "files": 3}'])
def test_a_damaged_record_is_of_what_is_done_again(
    damage: bytes, tree: Path, again: Path, how: EstimatorOptions, done: Path
) -> None:
    records = again / HIDDEN / "manifest"
    damaged = next(path for path in records.iterdir() if "er/short clip.mov" in path.read_text())
    damaged.write_bytes(damage)
    summary, _ = rerun(tree, again, how)
    assert (summary.kept, len(summary.summaries), summary.failures) == (3, 1, [])
    assert files(again) == files(done)


@pytest.mark.parametrize("style", [Style(), Style(black=True)])
def test_interrupted_and_drawn_otherwise_all_is_drawn_so(
    style: Style, tmp_path: Path, how: EstimatorOptions
) -> None:
    class Interrupted(Exception):
        pass

    def report(progress: BatchProgress) -> None:
        if progress.tasks_done:
            raise Interrupted

    write_images(tmp_path / "in", 66)
    first = replace(WHAT, save=("csv",) if style == Style() else ("csv", "overlay"))
    what = replace(WHAT, save=("csv", "overlay"), style=style)
    with pytest.raises(Interrupted):
        process_batch([str(tmp_path / "in")], tmp_path / "out", how, first, BatchOptions(1), report)
    for out in ("out", "anew"):
        summary = process_batch([str(tmp_path / "in")], tmp_path / out, how, what, BatchOptions(1))
        assert summary.failures == [] and len(summary.summaries) == 1
    assert files(tmp_path / "out") == files(tmp_path / "anew")


def test_another_folder_does_not_replace_results(tmp_path: Path, how: EstimatorOptions) -> None:
    write_images(tmp_path / "monday" / "photos", 1)
    write_images(tmp_path / "tuesday" / "photos", 2)
    what, out = replace(WHAT, save=("csv",)), tmp_path / "out"
    process_batch([str(tmp_path / "monday")], out, how, what, BatchOptions(1))
    before = files(out)
    summary = process_batch([str(tmp_path / "tuesday")], out, how, what, BatchOptions(1))
    assert "would replace those of" in summary.failures[0][1]
    assert files(out)["photos/keypoints.csv"] == before["photos/keypoints.csv"]
    what = replace(what, overwrite=True)
    summary = process_batch([str(tmp_path / "tuesday")], out, how, what, BatchOptions(1))
    assert summary.failures == [] and summary.summaries[0].frames == 2


# ---- what goes wrong ----


def test_one_bad_file_stops_no_other(tmp_path: Path, how: EstimatorOptions) -> None:
    folder = tmp_path / "in"
    write_images(folder, 3)
    (folder / "img1.png").write_text("no image")
    write_images(folder / "bad", 66)
    for path in (folder / "bad").iterdir():
        path.write_text("no image")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    write_clip(folder / "good.mp4", frames=5)
    whole = write_clip(folder / "cut.mkv", frames=40).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    inputs = [str(folder), str(tmp_path / "gone"), str(tmp_path / "no*.mp4")]
    out = tmp_path / "out"
    summary = process_batch(inputs, out, how, WHAT, BatchOptions(2))
    expected = {"gone": "no such", "no*.mp4": "no video or image", "in/bad": "66 of 66", "in/empty.mp4": "",
                "in/text.mp4": "", "in/img1.png": "not an image", "in/cut.mkv": "cut short"}  # fmt: skip
    found = failures(out)
    assert {str(Path(name).relative_to(tmp_path)) for name in found} == set(expected)
    assert dict(summary.failures) == found
    for name, reason in expected.items():
        assert reason in found[str(tmp_path / name)]
    there = files(out)
    assert "in/good.csv" in there and "in/cut.csv" in there and b"img2.png" in there["in/keypoints.csv"]
    assert "in/img1.png" not in there and not any(name.startswith("in/bad") for name in there)
    # Again: what is damaged is done, and told again; what failed is tried again.
    summary = process_batch(inputs, out, how, WHAT, BatchOptions(1))
    assert failures(out) == found and summary.kept == 3
    write_clip(folder / "text.mp4", frames=5)
    process_batch(inputs, out, how, WHAT, BatchOptions(1))
    assert set(found) - set(failures(out)) == {str(folder / "text.mp4")}


def test_foreign_files_are_not_replaced(tree: Path, tmp_path: Path, how: EstimatorOptions) -> None:
    theirs = tmp_path / "er" / "short clip.csv"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    for _ in range(2):
        summary = process_batch([str(tree / "deep")], tmp_path, how, WHAT, BatchOptions(1))
        assert "already exists" in summary.failures[0][1] and theirs.read_text() == "mine"
    what = replace(WHAT, overwrite=True)
    summary = process_batch([str(tree / "deep")], tmp_path, how, what, BatchOptions(1))
    assert summary.failures == [] and theirs.read_text() != "mine"


def test_inputs_are_not_written_over(tmp_path: Path, how: EstimatorOptions) -> None:
    write_images(tmp_path, 2)
    write_clip(tmp_path / "clip.mp4", frames=3)
    before = files(tmp_path)
    summary = process_batch([str(tmp_path)], tmp_path, how, WHAT, BatchOptions(1))
    assert len(summary.failures) == 2 and all("is an input" in reason for _, reason in summary.failures)
    assert {name: data for name, data in files(tmp_path).items() if name != "failures.json"} == before


def test_videos_of_one_stem_have_results_of_their_own(tmp_path: Path, how: EstimatorOptions) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_images(folder, 1)
    write_clip(folder / "a.mp4", frames=3)
    what = replace(WHAT, save=("csv", "parquet"))
    assert process_batch([str(folder)], out, how, what, BatchOptions(1)).failures == []
    before = files(out)
    for name in ("a.mov", "keypoints.mkv"):
        write_clip(folder / name, frames=4)
    summary, notes = rerun(folder, out, how, what)
    assert summary.failures == [] and summary.kept == 1 and len(summary.summaries) == 3
    assert "3 videos share a stem" in notes[0] and notes[0].endswith("a.mov, a.mp4, ...")
    after = files(out)
    assert set(after) - set(before) == {
        "a.mov.csv", "a.mp4.csv", "keypoints.mkv.csv", "keypoints.parquet/source=a.mov/part-0.parquet",
        "keypoints.parquet/source=keypoints.mkv/part-0.parquet",
    }  # fmt: skip
    assert after.items() >= before.items() and after["a.mp4.csv"] == before["a.csv"] != after["a.mov.csv"]
    # Whatever is given first.
    videos = [str(folder / name) for name in ("a.mp4", "a.mov")]
    assert found_in(videos) == found_in(videos[::-1]) == ({"a.mov": ["a.mov"], "a.mp4": ["a.mp4"]}, [])
    summary, _ = rerun(folder, out, how, what)
    assert summary.kept == 4 and summary.failures == []


def test_results_that_would_have_one_name_are_refused(tmp_path: Path, how: EstimatorOptions) -> None:
    for name in ("1/a.mp4", "2/a.mp4"):
        (tmp_path / name).parent.mkdir()
        write_clip(tmp_path / name, frames=3)
    given = [str(tmp_path / "1" / "a.mp4"), str(tmp_path / "2" / "a.mp4")]
    what = replace(WHAT, save=("csv",))
    for inputs, kept in ((given, 0), (given[::-1], 1)):
        summary = process_batch(inputs, tmp_path / "out", how, what, BatchOptions(1))
        ((refused, why),) = summary.failures
        assert refused == given[1] and f"would replace those of {given[0]}" in why
        assert summary.kept == kept


def test_a_second_batch_keeps_out(tree: Path, tmp_path: Path, how: EstimatorOptions) -> None:
    (tmp_path / HIDDEN).mkdir()
    with filelock.FileLock(tmp_path / HIDDEN / "lock"), pytest.raises(OutputError, match="another batch"):
        process_batch([str(tree)], tmp_path, how, WHAT, BatchOptions(1))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"detector": "boxes:b.csv"}, OptionsError),
        ({"heatmaps": True}, OptionsError),
        ({"weights": "nobody-has-these"}, WeightsError),
        ({"device": "cuda:77"}, OptionsError),
    ],
)
def test_what_no_input_can_be_done_with_is_said_once(
    options: dict[str, Any], error: type[Exception], tree: Path, tmp_path: Path, how: EstimatorOptions
) -> None:
    with pytest.raises(error):
        process_batch([str(tree)], tmp_path / "out", replace(how, **options), WHAT, BatchOptions(1))


@pytest.mark.parametrize(
    ("device", "gpus", "workers", "devices"),
    [
        ("auto", 3, None, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 2, 3, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", 2, None, ["cuda:1"]),
        ("cpu", 2, 3, ["cpu"] * 3),
        ("auto", 0, None, ["auto"] * len(os.sched_getaffinity(0))),
    ],
)
def test_every_gpu_is_used_or_every_core(
    device: str, gpus: int, workers: int | None, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert local_devices(EstimatorOptions(device=device), workers) == devices


def test_streams_are_refused(tmp_path: Path, how: EstimatorOptions) -> None:
    for stream in ("-", "rtsp://camera/1"):
        with pytest.raises(OptionsError, match="stream"):
            process_batch([stream], tmp_path, how, WHAT)


def test_a_worker_that_dies_is_replaced(
    tree: Path, tmp_path: Path, how: EstimatorOptions, done: Path
) -> None:
    killed: list[int] = []

    def report(progress: BatchProgress) -> None:
        if progress.tasks_done == 1 and not killed:
            for process in multiprocessing.active_children():
                killed.append(process.pid or 0)
                os.kill(process.pid or 0, signal.SIGKILL)

    summary = process_batch([str(tree)], tmp_path, how, WHAT, BatchOptions(2), report)
    assert killed and summary.failures == []
    assert files(tmp_path) == files(done)


# ---- killed ----


def begin_apart(
    inputs: Path | str, out: Path | str, how: EstimatorOptions, what: VideoOptions, who: BatchOptions
) -> subprocess.Popen[str]:
    """A batch in a process of its own, which prints its summary."""
    given = pickle.dumps((str(inputs), str(out), how, what, who)).hex()
    return subprocess.Popen(
        [sys.executable, __file__, "run", given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_apart(
    inputs: Path | str, out: Path | str, how: EstimatorOptions, what: VideoOptions, who: BatchOptions
) -> float:
    """The same to its end: how many seconds it took to do the work, start-up left out."""
    process = begin_apart(inputs, out, how, what, who)
    printed, errors = process.communicate(timeout=3600)
    assert process.returncode == 0, errors
    return float(printed)


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def finished(out: Path) -> set[str]:
    """Files of inputs that the manifest calls done."""
    records = [json.loads(path.read_text()) for path in (out / HIDDEN / "manifest").glob("*.json")]
    return {name for record in records if record["state"] == "done" for name in record["files"]}


def kill_and_rerun(
    tree: Path, out: Path, how: EstimatorOptions, expected: dict[str, bytes], kills: int, longest_s: float
) -> None:
    """Kills a batch so often at random moments, checks what there is to see, and goes on."""
    rng = random.Random(kills)
    before: dict[str, int] = {}
    chunks: dict[Path, int] = {}
    hits = 0
    while hits < kills:
        process = begin_apart(tree, out, how, WHAT, BatchOptions(2))
        workers: list[int] = []
        end = time.monotonic() + rng.uniform(0, longest_s)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
            workers = children(process.pid) or workers
        hit = process.poll() is None
        process.kill()
        process.communicate()
        # They must not work on for nobody.
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        there = files(out) if out.exists() else {}
        half = [name for name, data in there.items() if data != expected.get(name)]
        assert half == [], "whole under its name, or not there"
        now = stamps(out) if there else {}
        assert all(now[name] == stamp for name, stamp in before.items()), "what was whole is not redone"
        before = {name: now[name] for name in finished(out) if name in now}
        left = {path: path.stat().st_mtime_ns for path in (out / HIDDEN / "work").rglob("chunk-*.npz")}
        assert all(stamp == left[path] for path, stamp in chunks.items() if path in left)
        chunks = left
        hits += hit
        if not hit:
            # It was done before: once more from the beginning.
            assert there == expected
            shutil.rmtree(out)
            before, chunks = {}, {}
    run_apart(tree, out, how, WHAT, BatchOptions(2))
    now = stamps(out)
    assert all(now[name] == stamp for name, stamp in before.items())
    assert files(out) == expected
    assert not any((out / HIDDEN / "work").rglob("*"))


def test_killed_at_any_moment_it_goes_on(
    tree: Path, how: EstimatorOptions, done: Path, tmp_path: Path
) -> None:
    kill_and_rerun(tree, tmp_path / "out", how, files(done), kills=2, longest_s=8)


# ---- behind URIs ----


@contextmanager
def s3_bucket() -> Iterator[str]:
    """A store that speaks S3, on loopback: the URI of an empty bucket."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    before = dict(os.environ)
    os.environ.update(settings | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    try:
        file_system("s3://people")[0].mkdir("people")
        yield "s3://people"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


def upload(folder: Path, uri: str) -> None:
    system, path = file_system(uri)
    for file in folder.rglob("*"):
        if file.is_file():
            system.put_file(str(file), f"{path}/{file.relative_to(folder).as_posix()}")


def download(uri: str) -> dict[str, bytes]:
    place = Place.of(uri)
    return {name: place.read(name) or b"" for name in place.files() if not name.startswith(HIDDEN)}


def test_a_store_behind_a_uri(tree: Path, how: EstimatorOptions, done: Path, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    with s3_bucket() as bucket:
        upload(tree, f"{bucket}/in")
        # The images are done, and the first chunk of the long video is.
        what = replace(WHAT, save=("csv", "json", "parquet"))
        summary = process_batch([f"{bucket}/in"], f"{bucket}/out", how, what, BatchOptions(2))
        assert summary.failures == []
        found = download(f"{bucket}/out")
        assert keypoints(found) == keypoints(files(done))
        # A scheme may be written in capitals, and a file reached twice is one.
        inputs = [f"{bucket}/in".replace("s3:", "S3:")]
        summary = process_batch(inputs, f"S3{bucket[2:]}/out", how, what, BatchOptions(1))
        assert summary.kept == 4 and summary.summaries == []
        assert found_in([*inputs, f"{bucket}/in"]) == found_in([f"{bucket}/in", *inputs])
        # To a folder, from a pattern, and back.
        process_batch([f"{bucket}/in/ph*/*.png"], tmp_path, how, WHAT, BatchOptions(1))
        assert set(files(tmp_path)) > {"photos/img0.png", "photos/keypoints.json"}
        summary = process_batch([f"{bucket}/gone", f"{bucket}/in/none*"], tmp_path, how, WHAT)
        assert len(summary.failures) == 2
        system, _ = file_system(bucket)
        table = pyarrow.dataset.dataset(
            "people/out/keypoints.parquet", filesystem=system, partitioning="hive"
        ).to_table()
        assert table.num_rows == 150 + 9 + 70 + 2


def test_file_uris_are_paths(tmp_path: Path, how: EstimatorOptions) -> None:
    write_images(tmp_path / "in put", 2)
    (tmp_path / "list.txt").write_text(f"file://{tmp_path}/in put/img0.png\n")
    what = replace(WHAT, save=("csv",))
    for given in (f"file://{tmp_path}/in put", f"file://{tmp_path}/list.txt"):
        out = tmp_path / str(len(given))
        summary = process_batch([given], f"file://{out}", how, what, BatchOptions(1))
        assert summary.failures == [] and (out / HIDDEN / "lock").exists()
        assert (out / "keypoints.csv").exists()


def test_schemes_are_of_any_case(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    items, _ = find_items([f"FILE://{tmp_path}/in", f"local://{tmp_path}/in"], "out")
    assert [item.locations for item in items] == [[str(tmp_path / "in" / f"img{i}.png") for i in range(2)]]


@pytest.mark.parametrize("scheme", ["nowhere", "memory", "MEMORY", "dir", "github", "reference"])
def test_schemes_that_hold_nothing_are_wrong_usage(
    scheme: str, tree: Path, tmp_path: Path, how: EstimatorOptions
) -> None:
    with pytest.raises(OptionsError, match=f"(?i){scheme}://"):
        process_batch([f"{scheme}://bucket/in"], tmp_path, how, WHAT)
    with pytest.raises(OptionsError, match=f"(?i){scheme}://"):
        process_batch([str(tree)], f"{scheme}://bucket/out", how, WHAT)


class _Cut(LocalFileSystem):
    """A store that shows a file while it is written, and whose line is cut at the tenth byte of some."""

    protocol = "cut"

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        data = Path(lpath).read_bytes()
        Path(rpath).write_bytes(data[:10])
        if b"cut here" in data:
            raise ConnectionError("the line is cut")
        Path(rpath).write_bytes(data)

    def pipe_file(self, path: str, value: bytes, *args: Any, **kwargs: Any) -> None:
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(value)
            self.put_file(file.name, path)


def test_a_file_whose_upload_is_cut_is_never_seen(tmp_path: Path) -> None:
    fsspec.register_implementation("cut", _Cut, clobber=True)
    place = Place.of(f"cut://{tmp_path}/out")
    made = tmp_path / "made.csv"
    for text in ("whole and long enough", "another that is whole"):
        made.write_text(text)
        place.move_in(made, "a/b.csv")
        place.write("a/c.json", text.encode())
        assert place.read("a/b.csv") == place.read("a/c.json") == text.encode()
    made.write_text("this will be cut here")
    for name in ("a/b.csv", "a/new.csv"):
        with pytest.raises(OutputError, match=f"cannot write .*{name}.*the line is cut"):
            place.move_in(made, name)
        with pytest.raises(OutputError, match="the line is cut"):
            place.write(name, made.read_bytes())
    assert sorted(place.files()) == ["a/b.csv", "a/c.json"]
    assert place.read("a/b.csv") == b"another that is whole"


# ---- what inputs stand for ----


def found_in(inputs: Sequence[str], out: str = "out") -> tuple[dict[str, list[str]], list[str]]:
    """Names of results, with those of their files; and inputs that failed."""
    items, failed = find_items(inputs, out)
    return {item.name: [name for _, name in item.files] for item in items}, [name for name, _ in failed]


def test_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("a/x.mp4", "a/1.png", "b/x.mp4", "b/c/img10.jpg", "b/c/img2.JPG", "b/.no/x.mp4", "b/c/t.txt",
             "[x].mp4", "odd name\n.mov", "other", "out/x.mp4", "b/deep.x/y.mkv")  # fmt: skip
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    one_b = {"x": ["x.mp4"], "c/keypoints": ["img2.JPG", "img10.jpg"], "deep.x/y": ["y.mkv"]}
    assert found_in(["b"]) == (one_b, [])
    assert found_in(["b/"]) == (one_b, [])
    both = {f"b/{name}": value for name, value in one_b.items()}
    assert found_in(["a", "b"]) == ({"a/x": ["x.mp4"], "a/keypoints": ["1.png"]} | both, [])
    assert found_in(["*/x.mp4"]) == ({"a/x": ["x.mp4"], "b/x": ["x.mp4"], "out/x": ["x.mp4"]}, [])
    assert found_in(["b/*"]) == (one_b, [])
    assert found_in(["[x].mp4", "other"]) == ({"[x]": ["[x].mp4"], "other": ["other"]}, [])
    everything = found_in(["."])
    assert {"a/x", "b/x", "[x]", "odd name\n", "b/c/keypoints"} <= set(everything[0])
    assert "out/x" not in everything[0], "results are no input"
    assert found_in(["out"]) == ({"x": ["x.mp4"]}, []), "unless they are named"
    assert found_in(["gone", "b/c/*.mp4", "a/x.mp4", "a/x.mp4"]) == ({"x": ["x.mp4"]}, ["gone", "b/c/*.mp4"])
    assert found_in([""]) == ({}, [""])
    long = "n" * 300
    assert found_in([long, f"{long}.txt", f"b/{long}/*"]) == ({}, [long, f"{long}.txt", f"b/{long}/*"])
    for name in ("c/img2.JPG", "c/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    # Two folders of one name: their images are one set, but two of one name are not.
    assert found_in(["b/c", "c"]) == (
        {"c/keypoints": ["img2.JPG", "img10.jpg"], "c/x": ["x.mp4"]},
        ["c/img2.JPG"],
    )
    (tmp_path / "list.txt").write_text(
        "a/x.mp4\n\n  b/c  \r\ngone.mp4\nodd name\\n.mov\n", encoding="utf-8-sig"
    )
    assert found_in(["list.txt"]) == (
        {"a/x": ["x.mp4"], "b/c/keypoints": ["img2.JPG", "img10.jpg"]},
        ["gone.mp4", "odd name\\n.mov"],
    )
    (tmp_path / "one.txt").write_text("b/c/img10.jpg")
    assert found_in(["one.txt"]) == ({"keypoints": ["img10.jpg"]}, [])
    links = tmp_path / "links"
    links.mkdir()
    for name, target in (("gone.mp4", "x"), ("round.png", "round.png"), ("b", ".."), ("a.mp4", "../a/x.mp4")):
        (links / name).symlink_to(target)
    assert found_in(["links"]) == ({"a": ["a.mp4"]}, ["links/gone.mp4", "links/round.png"])
    (tmp_path / "empty.txt").write_text("\n")
    assert found_in(["empty.txt"]) == ({}, ["empty.txt"])


def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path, how: EstimatorOptions) -> None:
    write_images(tmp_path / "in" / "locked", 1)
    write_images(tmp_path / "in" / "open", 1)
    (tmp_path / "in" / "locked").chmod(0)
    try:
        if os.access(tmp_path / "in" / "locked", os.R_OK):
            pytest.skip("this user may read everything")
        items, failed = find_items([str(tmp_path / "in")], str(tmp_path / "out"))
    finally:
        (tmp_path / "in" / "locked").chmod(0o755)
    assert [item.name for item in items] == ["open/keypoints"] and len(failed) == 1


# ---- the heavy checks ----


def bar_tree(folder: Path, images: int, videos: int, frames: int) -> None:
    """Small images and short videos, cut from the demo's clip."""
    clip = CLIP
    with av.open(str(clip)) as container:
        pictures = [f.to_image(width=320, height=180) for f in container.decode(video=0)]
    rng = random.Random(0)
    for i in range(images):
        path = folder / f"set{i % 3}" / f"img{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        x, y = rng.randrange(60), rng.randrange(30)
        pictures[i % len(pictures)].crop((x, y, x + 256, y + 144)).save(path, quality=92)
    for i in range(videos):
        with av.open(str(folder / f"clip{i}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = 320, 180
            first = rng.randrange(len(pictures) - frames)
            for image in pictures[first : first + frames]:
                out.mux(stream.encode(av.VideoFrame.from_image(image)))
            out.mux(stream.encode(None))


def bar_identical(folder: Path, images: int, videos: int, ways: Sequence[str]) -> None:
    """One worker, two and Ray write the same bytes, and how long each takes."""
    bar_tree(folder / "in", images, videos, 25)
    what = replace(WHAT, save=("csv", "json"))
    found, seconds = {}, {}
    for way in ways:
        who = BatchOptions(2, "ray") if way == "ray" else BatchOptions(int(way))
        # Of the processes that Ray begins nobody is told.
        before_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        seconds[way] = run_apart(folder / "in", folder / way, EstimatorOptions(device="cpu"), what, who)
        found[way] = keypoints(files(folder / way))
        used_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_s
        print(f"{way}: {seconds[way]:.1f} s, {used_s:.1f} s of processors", flush=True)
    same = all(found[way] == found[ways[0]] for way in ways)
    print(
        f"byte-identical: {same}; times: "
        + ", ".join(f"{w} {seconds[ways[0]] / s:.2f}x" for w, s in seconds.items())
    )


def bar_kill(folder: Path, kills: int) -> None:
    """Killed so often, it ends as if it had not been."""
    weights = tiny_weights(folder)
    write_images(folder / "in" / "photos", 300, (160, 120))
    write_clip(folder / "in" / "long.mp4", frames=400, size_wh=(320, 240))
    how = replace(HOW, weights=str(weights))
    took_s = run_apart(folder / "in", folder / "whole", how, WHAT, BatchOptions(2))
    kill_and_rerun(folder / "in", folder / "out", how, files(folder / "whole"), kills, took_s + 8)
    print(f"killed {kills} times at work: whole, identical, nothing done twice")


def bar_cluster(folder: Path, images: int) -> None:
    """Two nodes of a Ray cluster, of which one is killed at work."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    weights = tiny_weights(folder)
    write_images(folder / "in", images, (320, 240))
    write_clip(folder / "in" / "long.mp4", frames=400, size_wh=(320, 240))
    how = replace(HOW, weights=str(weights))
    run_apart(folder / "in", folder / "one", how, WHAT, BatchOptions(1))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    seen: dict[str, int] = {}

    def report(progress: BatchProgress) -> None:
        if not ray.is_initialized():
            return
        alive = [n for n in ray.nodes() if n["Alive"]]
        free = ray._private.state.available_resources_per_node().get(node.node_id, {})
        at_work = free.get("CPU", 0) < 1
        if progress.tasks_done >= 2 and at_work and "killed at" not in seen:
            seen["killed at"], seen["nodes before"] = progress.tasks_done, len(alive)
            cluster.remove_node(node, allow_graceful=False)
        seen["tasks"], seen["nodes after"] = progress.tasks, len(alive)

    summary = process_batch(
        [str(folder / "in")], folder / "out", how, WHAT, BatchOptions(2, "ray", cluster.address), report
    )
    print(seen, summary.failures, "identical:", files(folder / "out") == files(folder / "one"))
    ray.shutdown()
    cluster.shutdown()


def main() -> None:
    """``identical``, ``kill`` and ``cluster``; ``--help`` says with what."""
    if sys.argv[1:2] == ["run"]:
        inputs, out, how, what, who = pickle.loads(bytes.fromhex(sys.argv[2]))
        began: list[float] = []

        def report(progress: BatchProgress) -> None:
            # The networks are loaded and all is set up when the first task is done.
            if progress.tasks_done and not began:
                began.append(time.perf_counter())

        summary = process_batch([inputs], out, how, what, who, report)
        print(time.perf_counter() - began[0] if began else 0.0)
        sys.exit(bool(summary.failures))
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bar", choices=["identical", "kill", "cluster"])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ways", default="1,2,ray")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.bar == "identical":
            bar_identical(folder, given.images, given.videos, given.ways.split(","))
        elif given.bar == "kill":
            bar_kill(folder, given.kills)
        else:
            bar_cluster(folder, given.images)


if __name__ == "__main__":
    main()
