"""The command line as a stranger meets it: help, wrong usage, bad input, odd names, pipes and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from media import file_server, picture, write_clip
from PIL import Image
from typer.testing import CliRunner, Result

import hgpose.estimate
from hgpose.cli import app
from hgpose.models import build_model
from hgpose.weights import Card, save_weights

#: Whoever waits longer waits for what will not come.
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network, small and quick."""
    torch.manual_seed(0)
    architecture = {"kind": "stacked_hourglass", "stacks": 1, "width": 16, "outputs": 19}
    card = Card("tiny", "pose", architecture, 64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), keypoint_set="body19")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(build_model(architecture).state_dict(), card, path)
    return path


Hgpose = Callable[..., Result]


@pytest.fixture
def hgpose_command(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hgpose]:
    """Runs a command on the tiny network in an empty folder, results in ``out``."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *arguments: str, out: str = "out") -> Result:
        options = ["-o", out, "--weights", str(weights), "--detector", "whole-frame", "--device", "cpu"]
        result = CliRunner().invoke(app, [command, *options, "--no-half", *arguments], env={"COLUMNS": "80"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    yield run


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def line_with(text: str, result: Result) -> str:
    """The one line of what was said that holds ``text``."""
    (line,) = (line for line in result.stderr.splitlines() if text in line)
    return line


# ---- help and wrong usage ----


@pytest.mark.parametrize("arguments", [["--help"], ["video", "--help"], ["images", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, hgpose.cli\n"
        f"sys.argv = ['hgpose', *{arguments!r}]\n"
        "try: hgpose.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'cv2', 'numpy', 'av', 'PIL', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize(("name", "hint"), [("video", "hgpose[openvino]"), ("batch", "hgpose[ray]")])
def test_help_names_the_extras(name: str, hint: str) -> None:
    assert hint in " ".join(CliRunner().invoke(app, [name, "--help"], terminal_width=200).stdout.split())


WRONG = [
    (["--save", "csv,xlsx"], "xlsx: unknown; known: overlay, csv, "),
    (["--save", ""], "known: overlay"),
    (["--start", "-1"], "--start"),
    (["--start", "5", "--end", "5"], "--end"),
    (["--end", "nan"], "--end"),
    (["--every", "0"], "--every"),
    (["--every", "two"], "--every"),
    (["--detect-every", "0"], "--detect-every"),
    (["--person", "tallest"], "--person"),
    (["--max-people", "0"], "--max-people"),
    (["--detector", "psychic"], "--detector"),
    (["--detector", "boxes:"], "--detector"),
    (["--batch", "0"], "--batch"),
    (["--batch", "100000000"], "--batch"),
    (["--threshold", "2"], "--threshold"),
    (["--threshold", "nan"], "--threshold"),
    (["--line-width", "0"], "--line-width"),
    (["--line-width", "40000"], "--line-width"),
    (["--start", "inf"], "--start"),
    (["--lost", "inf"], "--lost"),
    (["-o", ""], "must be a folder"),
    (["-o", "-"], "must be a folder"),
    (["--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_wrong_usage_is_exit_2_before_a_network_is_loaded(
    options: list[str], said: str, hgpose_command: Hgpose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hgpose.estimate, "load_estimator", None)
    result = hgpose_command("video", "clip.mp4", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert files(Path()) == set()


@pytest.mark.parametrize("arguments", [["video"], ["video", "a.mp4"], ["images", "-o", "out"], ["play"]])
def test_what_is_missing_is_exit_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("task", "option", "value"),
    [
        ("pose", "--stacks", "0"),
        ("pose", "--width", "12"),
        ("person", "--width", "-8"),
        ("person", "--input", "7"),
        ("pose", "--seed", "-1"),
        ("person", "--epochs", "inf"),
    ],
)
def test_training_out_of_range_is_exit_2(task: str, option: str, value: str, tmp_path: Path) -> None:
    length = [] if option == "--epochs" else ["--epochs", "1"]
    arguments = ["train", task, "a.json", "--val", "b.json", "--out", str(tmp_path / "run"), *length]
    result = CliRunner().invoke(app, [*arguments, option, value])
    assert result.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_unknown_device_is_exit_2(hgpose_command: Hgpose) -> None:
    result = hgpose_command("video", "clip.mp4", "--device", "abacus")
    assert result.exit_code == 2
    assert "abacus" in line_with("error:", result)


# ---- what a run says ----


def test_a_run_says_what_it_uses_and_what_it_made(hgpose_command: Hgpose) -> None:
    write_clip(Path("clip.mp4"), frames=4)
    result = hgpose_command("video", "clip.mp4", "--save", " csv, json")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "cpu" in (start := line_with("device", result)) and "tiny" in start and "whole-frame" in start
    assert line_with("wrote out/clip.csv", result) and line_with("wrote out/clip.json", result)
    assert line_with("clip.mp4 │", result).split("│")[2].strip() == "4"
    assert line_with("keypoints:", result).endswith("18 head_top")
    assert files(Path("out")) == {"clip.csv", "clip.json"}


def test_one_bad_input_of_many_is_exit_1_at_the_end(hgpose_command: Hgpose) -> None:
    write_clip(Path("a.mp4"), frames=3)
    write_clip(Path("z.mp4"), frames=3)
    Path("text.mp4").write_text("text")
    cut = write_clip(Path("cut.mp4"), frames=40, container_options={"movflags": "+faststart"})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    result = hgpose_command("video", "a.mp4", "gone.mp4", "no*.mp4", "text.mp4", "cut.mp4", "z.mp4")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [name in line for name, line in zip(("gone", "no*", "text"), errors, strict=True)] == [True] * 3
    assert "cut.mp4" in line_with("damaged: ", result)
    states = {
        cells[1].strip(): cells[7].strip()
        for line in result.stderr.splitlines()
        if len(cells := line.split("│")) == 9
    }
    assert states == {
        "a.mp4": "ok", "gone.mp4": "failed", "no*.mp4": "failed",
        "text.mp4": "failed", "cut.mp4": "damaged", "z.mp4": "ok",
    }  # fmt: skip
    assert files(Path("out")) == {f"{n}.{kind}" for n in ("a", "cut", "z") for kind in ("mp4", "csv", "json")}


def test_damage_alone_is_exit_1(hgpose_command: Hgpose) -> None:
    Path("set").mkdir()
    Image.fromarray(picture(0, 40, 30)).save("set/good.png")
    Path("set/bad.png").write_text("text")
    result = hgpose_command("images", "set")
    assert result.exit_code == 1
    assert "bad.png" in line_with("damaged: ", result)
    assert files(Path("out")) == {"good.png", "keypoints.csv", "keypoints.json"}


@pytest.mark.parametrize(("broken", "line"), [(3, "damaged: "), (30, "unreadable: set/bad{}.png")])
def test_all_unreadable_images_are_named(broken: int, line: str, hgpose_command: Hgpose) -> None:
    Path("set").mkdir()
    Image.fromarray(picture(0, 40, 30)).save("set/good.png")
    for index in range(broken):
        Path(f"set/bad{index}.png").write_text("no picture")
    result = hgpose_command("images", "set")
    assert result.exit_code == 1
    for index in range(broken):
        assert f"set/bad{index}.png: cannot be read" in line_with(line.format(index), result)
    assert f"{broken} of {broken + 1} images could not be read" in line_with("damaged: ", result)
    # The table stays in sight below a long list.
    assert (result.stderr.index("bad1.png") < result.stderr.index("most people")) == (broken == 30)
    assert files(Path("out")) == {"good.png", "keypoints.csv", "keypoints.json"}


@pytest.mark.parametrize("given", ["gone", "no*.png", "empty"])
def test_no_images_is_one_line_and_exit_1(given: str, hgpose_command: Hgpose) -> None:
    Path("empty").mkdir()
    result = hgpose_command("images", given)
    assert result.exit_code == 1
    assert given in line_with("error: ", result)


def test_results_of_an_earlier_run_stay_unless_told_otherwise(hgpose_command: Hgpose) -> None:
    write_clip(Path("clip.mp4"), frames=2)
    assert hgpose_command("video", "clip.mp4").exit_code == 0
    again = hgpose_command("video", "clip.mp4")
    assert again.exit_code == 1
    assert "--overwrite" in line_with("error: ", again)
    assert hgpose_command("video", "clip.mp4", "--overwrite").exit_code == 0


def test_a_file_in_place_of_the_folder_is_one_line_and_exit_1(hgpose_command: Hgpose) -> None:
    write_clip(Path("clip.mp4"), frames=2)
    Path("out").write_text("precious")
    result = hgpose_command("video", "clip.mp4")
    assert result.exit_code == 1
    assert "out/clip" in line_with("error: ", result)
    assert files(Path()) == {"clip.mp4", "out"}


def test_unknown_weights_are_exit_1_and_list_the_known(
    hgpose_command: Hgpose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path
) -> None:
    monkeypatch.setattr("hgpose.weights.weights_folder", lambda: weights.parent)
    result = hgpose_command("video", "clip.mp4", "--weights", "gigantic")
    assert result.exit_code == 1
    assert "gigantic" in (line := line_with("error: ", result)) and "tiny" in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gone.csv", None),
        ("empty.csv", ""),
        ("columns.csv", "a,b\n1,2\n"),
        ("words.csv", "frame,x1,y1,x2,y2\n0,one,2,3,4\n"),
        ("inside-out.csv", "frame,x1,y1,x2,y2\n0,9,9,1,1\n"),
        ("text.json", "text"),
        ("list.json", "[1]"),
    ],
)
def test_bad_boxes_are_one_line_and_exit_1(name: str, content: str | None, hgpose_command: Hgpose) -> None:
    if content is not None:
        Path(name).write_text(content)
    write_clip(Path("clip.mp4"), frames=2)
    result = hgpose_command("video", "clip.mp4", "--detector", f"boxes:{name}")
    assert result.exit_code == 1
    assert name in line_with("error: ", result)
    assert not Path("out").exists()


def test_every_given_box_gets_a_pose(hgpose_command: Hgpose) -> None:
    write_clip(Path("clip.mp4"), frames=3)
    Path("my boxes.csv").write_text("frame,x1,y1,x2,y2\n0,1,1,20,40\n2,1,1,20,40\n2,30,5,50,40\n")
    assert hgpose_command("video", "clip.mp4", "--detector", "boxes:my boxes.csv").exit_code == 0
    frames = json.loads(Path("out/clip.json").read_text())["frames"]
    # Between, a person who is followed may be bridged.
    assert [len(frames[index]["people"]) for index in (0, 2)] == [1, 2]


@pytest.mark.parametrize("images", [False, True], ids=["frames", "images"])
@pytest.mark.parametrize("some", [False, True])
def test_boxes_of_what_is_not_there_are_said(images: bool, some: bool, hgpose_command: Hgpose) -> None:
    Path("set").mkdir()
    Image.fromarray(picture(0, 40, 30)).save("set/0.png")
    Path("set/1.png").write_text("no picture")
    write_clip(Path("clip.mp4"), frames=3)
    # What was there but could not be read is no fault of the boxes.
    there = ["0.png", "1.png"] if images else ["0", "2"]
    lost = [f"set/{n}.png" if images else str(n) for n in range(7, 10)]
    keys = [*there, *lost] if some else lost
    Path("mine.csv").write_text(
        f"{'name' if images else 'frame'},x1,y1,x2,y2\n" + "".join(f"{key},1,1,20,30\n" for key in keys)
    )
    given = ("images", "set") if images else ("video", "clip.mp4")
    result = hgpose_command(*given, "--detector", "boxes:mine.csv")
    if some:
        assert result.exit_code == (1 if images else 0), "one image is damaged"
        line = line_with("warning: ", result)
        assert "mine.csv: the boxes of 3 of 5 " in line and lost[0] in line
    else:
        assert result.exit_code == 1
        assert "mine.csv: not one of its boxes" in line_with("error: ", result)
        assert lost[0] in line_with("error: ", result)
        assert files(Path()) == {"set/0.png", "set/1.png", "clip.mp4", "mine.csv"}


# ---- names, pipes, URLs ----


@pytest.mark.parametrize(
    "name", ["-x.mp4", "--help.mp4", "new\nline.mp4", "\x1b[31mred.mp4", "caf\udce9 片.mp4"]
)
def test_odd_names_after_two_dashes(name: str, hgpose_command: Hgpose) -> None:
    write_clip(Path("clip.mp4"), frames=2).rename(name)
    result = hgpose_command("video", "--save", "csv", "--", name, f"no {name}")
    assert result.exit_code == 1, "one of the two is missing"
    assert files(Path("out")) == {f"{Path(name).stem}.csv"}
    # On one line each, and without what would change the terminal.
    assert line_with("wrote out/", result).endswith(".csv")
    assert line_with("error: no ", result)
    assert "\x1b" not in result.stderr


def command(weights: Path, *arguments: str) -> list[str]:
    options = ["--weights", str(weights), "--detector", "whole-frame", "--device", "cpu", "--no-half"]
    return [sys.executable, "-m", "hgpose", "video", *options, *arguments]


def test_a_video_on_standard_input(weights: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.ts", frames=5)
    done = subprocess.run(
        command(weights, "-", "-o", str(tmp_path / "out")),
        input=clip.read_bytes(), capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    assert files(tmp_path / "out") == {"stdin.mp4", "stdin.csv", "stdin.json"}
    assert json.loads((tmp_path / "out" / "stdin.json").read_text())["source"]["frames"] == 5


def test_nothing_on_standard_input_is_exit_1(weights: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(weights, "-", "-o", str(tmp_path / "out")),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: stdin: " in done.stderr and "Traceback" not in done.stderr


def test_a_video_from_a_url(hgpose_command: Hgpose, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", frames=3)
    with file_server(tmp_path) as url:
        result = hgpose_command("video", f"{url}/clip.mp4", f"{url}/gone.mp4")
    assert result.exit_code == 1
    assert "gone.mp4" in line_with("error: ", result)
    assert files(tmp_path / "out") == {"clip.mp4", "clip.csv", "clip.json"}


# ---- standard output that takes nothing ----


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["weights", "list"]], ids=" ".join)
@pytest.mark.parametrize("closed", [False, True], ids=["full", "closed pipe"])
def test_what_cannot_be_printed_is_one_line_and_exit_1(arguments: list[str], closed: bool) -> None:
    if closed:
        reader, out = os.pipe()
        os.close(reader)
    else:
        out = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-m", "hgpose", *arguments],
        stdout=out, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    os.close(out)
    assert done.returncode == 1
    if closed:
        assert done.stderr == ""
    else:
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: cannot write to standard output: No space left")


# ---- Ctrl-C, and SIGTERM ----


@pytest.mark.skipif(os.name == "nt", reason="has no signals")
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_end_it_does_at_once_and_leaves_nothing_half_written(
    number: signal.Signals, exit_code: int, weights: Path, tmp_path: Path
) -> None:
    first = write_clip(tmp_path / "first.mp4", frames=2)
    long = write_clip(tmp_path / "long.mp4", frames=3000)
    out = tmp_path / "out"
    with subprocess.Popen(
        command(weights, str(first), str(long), "-o", str(out)), stderr=subprocess.PIPE, text=False
    ) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + PATIENCE_S
        while len(files(out)) < 6:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        interrupted = time.monotonic()
        process.send_signal(number)
        code = process.wait(PATIENCE_S)
        ended_s = time.monotonic() - interrupted
        said = process.stderr.read().decode()
    assert code == exit_code, said
    assert ended_s < 10
    assert "Traceback" not in said
    # What was done before is whole; of the rest there is nothing, not even under a temporary name.
    kept = {"first.mp4", "first.csv", "first.json"}
    assert {name for name in files(out) if "/" not in name} == kept
    # For --resume.
    assert {Path(name).name for name in files(out) - kept} == {"origin.json", "finished"}
    assert json.loads((out / "first.json").read_text())["source"]["frames"] == 2


@pytest.mark.skipif(os.name == "nt", reason="has no signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_a_stream_it_keeps_what_came(
    number: signal.Signals, weights: Path, tmp_path: Path
) -> None:
    stream = write_clip(tmp_path / "stream.mkv", frames=90).read_bytes()
    out = tmp_path / "out"
    # A stream that stalls: the reader is stuck when the signal comes.
    with subprocess.Popen(
        command(weights, "-", "-o", str(out)), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(stream[: len(stream) * 3 // 4])
        process.stdin.flush()
        deadline = time.monotonic() + PATIENCE_S
        while len(files(out)) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        # Until what was sent is done with.
        time.sleep(1)
        process.send_signal(number)
        code = process.wait(PATIENCE_S)
        said = process.stderr.read().decode()
    assert code == 0, said
    assert files(out) == {"stdin.mp4", "stdin.csv", "stdin.json"}
    frames = json.loads((out / "stdin.json").read_text())["source"]["frames"]
    assert 30 < frames < 90 and len((out / "stdin.csv").read_text().splitlines()) >= frames


@pytest.mark.skipif(os.name == "nt", reason="has no signals")
@pytest.mark.parametrize("sent", [0, 200])
def test_told_to_end_a_stream_before_it_begins(sent: int, weights: Path, tmp_path: Path) -> None:
    stream = write_clip(tmp_path / "stream.mkv", frames=30).read_bytes()
    with subprocess.Popen(
        command(weights, "-", "-o", str(tmp_path / "out")), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(stream[:sent])
        process.stdin.flush()
        # It says so before it waits for the stream.
        begun = process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 1
        said = process.stderr.read().decode()
    assert b"device" in begun and "error: stdin: stopped before its first frame" in said
    assert "Traceback" not in said and not files(tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_says_what_it_keeps(number: signal.Signals, weights: Path, tmp_path: Path) -> None:
    # A chunk is a minute.
    clip = write_clip(tmp_path / "slow.mp4", frames=1000, rate=Fraction(1))
    out = tmp_path / "out"
    arguments = command(weights, str(clip), "-o", str(out), "--save", "csv")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + PATIENCE_S
        while not any(out.glob(".hgpose-*/chunk-*.npz")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        said = process.stderr.read().decode()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
    (folder,) = out.iterdir()
    assert f"slow.mp4 is kept in {folder}: --resume goes on from there" in said
    assert {Path(name).suffix for name in files(folder)} == {".json", ".npz"}


def test_the_command_is_installed() -> None:
    beside_python = Path(sys.executable).with_name("hgpose")
    assert beside_python.exists() or shutil.which("hgpose")
