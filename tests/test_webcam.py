"""The live mode: bounded latency, whole files however it ends, previews that slow nobody."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from media import mjpeg_server

from hgpose.cli import main
from hgpose.detect import WholeFrame
from hgpose.errors import InputError, OptionsError, OutputError
from hgpose.estimate import Estimator, load_estimator
from hgpose.live import LiveStatus, Preview, serve, watch_camera
from hgpose.models import build_model
from hgpose.options import DEFAULT_STYLE, CameraOptions, EstimatorOptions
from hgpose.sources.camera import CameraSource
from hgpose.types import Detections, Frame, Poses
from hgpose.weights import Card, save_weights

INTERVAL_S = 0.02
#: Far more than the tiny network needs a frame, so that the camera is faster on any machine.
SLOW_S = 0.15
#: What a busy machine may add to any time measured.
SLACK_S = 0.35
HIDDEN = CameraOptions(window=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of one network wait for each other, which on a busy machine takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network, small and quick."""
    torch.manual_seed(0)
    architecture = {"kind": "stacked_hourglass", "stacks": 1, "width": 16, "outputs": 19}
    card = Card("tiny", "pose", architecture, 64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), keypoint_set="body19")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(build_model(architecture).state_dict(), card, path)
    return path


@pytest.fixture
def estimator(weights: Path) -> Estimator:
    options = EstimatorOptions(
        weights=str(weights), detector="whole-frame", device="cpu", min_person_score=0.0
    )
    return load_estimator(options)


class SlowDetector(WholeFrame):
    def __call__(self, frames: Sequence[Frame]) -> list[Detections]:
        time.sleep(SLOW_S)
        return super().__call__(frames)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        body: bytes = answer.read()
    return body


def recorded(folder: Path) -> tuple[int, int, int]:
    """Frames in the MP4, the CSV and the JSON of the one recording in ``folder``; nothing else is there."""
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 3, names
    stem = re.fullmatch(r"(camera_\d{8}_\d{6}_\d{3})\.csv", names[0])
    assert stem is not None, names
    assert names == [f"{stem[1]}{suffix}" for suffix in (".csv", ".json", ".mp4")]
    with av.open(str(folder / names[2])) as video:
        pictures = sum(1 for _ in video.decode(video=0))
    with (folder / names[0]).open(newline="") as table:
        rows = len({row["frame"] for row in csv.DictReader(table)})
    return pictures, rows, len(json.loads((folder / names[1]).read_text())["frames"])


# ---- the call ----


def test_latency_stays_bounded_when_inference_is_slow(estimator: Estimator) -> None:
    estimator.detector = SlowDetector()
    # Followed, a newcomer would be shown from the third frame on.
    estimator.options = replace(estimator.options, track=False)
    seen: list[LiveStatus] = []
    with mjpeg_server(150, INTERVAL_S) as url:
        summary = watch_camera(url, estimator, HIDDEN, seen.append)
    # A frame waits for the one before it, then takes its own time; a backlog would reach seconds.
    assert 0.9 * SLOW_S < max(s.latency_s for s in seen) < 2 * SLOW_S + SLACK_S
    assert summary.frames < 40
    # Every frame was processed or counted as dropped; opening a stream may cost its first.
    assert summary.damage is not None
    sent = int(re.findall(r"after (\d+) frames", summary.damage)[0])
    assert 148 <= sent <= 150
    assert seen[-1].dropped + summary.frames == sent
    assert seen[-1].fps < 1.1 / SLOW_S
    assert {s.people for s in seen if s.frames} == {1}
    assert summary.files == []


def test_cut_stream_leaves_whole_files_with_wall_clock_times(estimator: Estimator, tmp_path: Path) -> None:
    options = CameraOptions(record=tmp_path / "out", window=False)
    with mjpeg_server(50, INTERVAL_S) as url:
        started = time.monotonic()
        summary = watch_camera(url, estimator, options)
        took_s = time.monotonic() - started
    assert summary.damage is not None
    assert "stopped sending pictures" in summary.damage
    assert recorded(tmp_path / "out") == (summary.frames,) * 3
    assert sorted(summary.files) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    (document,) = (tmp_path / "out").glob("*.json")
    times_s = [frame["time_s"] for frame in json.loads(document.read_text())["frames"]]
    # The server sleeps this long between the frames, at least; opening may cost the first.
    assert 48 * INTERVAL_S - SLACK_S < times_s[-1] - times_s[0] < took_s
    with av.open(str(document.with_suffix(".mp4"))) as video:
        shown_s = [frame.time for frame in video.decode(video=0)]
    np.testing.assert_allclose(shown_s, np.subtract(times_s, times_s[0]), atol=1e-3)


def test_failing_report_ends_all(estimator: Estimator, tmp_path: Path) -> None:
    def report(status: LiveStatus) -> None:
        if status.frames:
            raise ZeroDivisionError

    with mjpeg_server(10_000, INTERVAL_S) as url, pytest.raises(ZeroDivisionError):
        watch_camera(url, estimator, CameraOptions(record=tmp_path, window=False), report)
    pictures, rows, entries = recorded(tmp_path)
    assert pictures == rows == entries > 0
    assert not {t.name for t in threading.enumerate() if t.name.startswith(("live", "preview"))}


def test_called_from_another_thread_leaves_signals_alone(estimator: Estimator) -> None:
    before = signal.getsignal(signal.SIGTERM)
    during: set[Any] = set()
    reasons: set[str | None] = set()

    def report(status: LiveStatus) -> None:
        during.add(signal.getsignal(signal.SIGTERM))
        reasons.add(status.no_window)

    with mjpeg_server(5, INTERVAL_S) as url:
        thread = threading.Thread(target=watch_camera, args=(url, estimator, CameraOptions(), report))
        thread.start()
        thread.join()
    assert during == {before}
    assert reasons == {"windows need the main thread"}


def test_no_camera_is_said_and_leaves_nothing(estimator: Estimator, tmp_path: Path) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(InputError, match=r"127\.0\.0\.1"):
            watch_camera(url, estimator, CameraOptions(record=tmp_path / "out", window=False))
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_unusable_recording_is_an_error(estimator: Estimator, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with mjpeg_server(10_000, INTERVAL_S) as url:
        with pytest.raises(OutputError, match="file"):
            watch_camera(url, estimator, CameraOptions(record=tmp_path / "file", window=False))
        with pytest.raises(OptionsError, match="nonsense"):
            watch_camera(url, estimator, CameraOptions(record=tmp_path, save=("nonsense",), window=False))


@pytest.mark.parametrize(
    ("display", "reason"), [("", "no display"), (":4242", "cannot be used")], ids=["none", "dead"]
)
def test_without_a_display_it_goes_on(
    estimator: Estimator, monkeypatch: pytest.MonkeyPatch, display: str, reason: str
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems always have a display")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    seen: list[LiveStatus] = []
    with mjpeg_server(5, INTERVAL_S) as url:
        summary = watch_camera(url, estimator, CameraOptions(), seen.append)
    assert summary.frames > 0
    assert reason in (seen[-1].no_window or "")


@pytest.mark.parametrize("end", ["q", "escape", "closed", "closed in Qt"])
def test_window_shows_frames_and_ends(
    estimator: Estimator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    shown: list[Any] = []
    threads: set[threading.Thread] = set()

    def imshow(title: str, picture: Any) -> None:
        shown.append(picture)
        threads.add(threading.current_thread())

    def wait_key(ms: int) -> int:
        return {"q": ord("q"), "escape": 27}.get(end, -1) if len(shown) > 5 else -1

    def property_of(title: str, which: int) -> float:
        if len(shown) > 5 and end == "closed in Qt":
            raise cv2.error
        return 0.0 if len(shown) > 5 and end == "closed" else 1.0

    monkeypatch.setattr("hgpose.live.window_problem", lambda: None)
    for name, fake in {"imshow": imshow, "waitKey": wait_key, "getWindowProperty": property_of}.items():
        monkeypatch.setattr(cv2, name, fake)
    for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    with mjpeg_server(10_000, INTERVAL_S, (320, 240)) as url:
        summary = watch_camera(url, estimator, CameraOptions(record=tmp_path, mirror=True))
    assert summary.damage is None
    assert recorded(tmp_path) == (summary.frames,) * 3
    assert threads == {threading.main_thread()}
    assert len(shown) == 6, "showing a picture would open the window again"
    # Mirrored, the red quarter is at the right; the window library's order is BGR.
    assert shown[0].shape == (240, 320, 3)
    assert np.median(shown[0][20:100, 180:300].reshape(-1, 3), axis=0)[2] > 200


# ---- the browser ----


class NoCamera(CameraSource):
    """Counts drops, gives no picture."""

    def __init__(self) -> None:
        super().__init__(0)
        self.start_s = time.monotonic()


@pytest.fixture
def preview(estimator: Estimator) -> Iterator[Preview]:
    with Preview(NoCamera(), DEFAULT_STYLE) as made:
        yield made


def frame(index: int, size_wh: tuple[int, int] = (64, 48)) -> Frame:
    """Noise, which a JPEG cannot make small, of a mean that tells the index."""
    width, height = size_wh
    noise = np.random.default_rng(index).integers(-20, 20, (height, width, 3)) + 40 + index % 100
    return Frame(noise.astype(np.uint8), index, 0.0)


def read_jpegs(stream: Any) -> Iterator[np.ndarray]:
    """The pictures of a multipart stream."""
    while True:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = stream.read(1)
            if not byte:
                return
            head += byte
        assert b"image/jpeg" in head
        length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
        data = np.frombuffer(stream.read(length), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert image is not None
        yield image


def test_browser_gets_page_stream_and_status(preview: Preview, estimator: Estimator) -> None:
    nobody = Poses.empty(estimator.keypoint_set)
    with serve(preview, "127.0.0.1", 0) as url:
        page = get(url).decode()
        assert "/stream.mjpg" in page
        assert "/status.json" in page
        assert json.loads(get(f"{url}status.json"))["frames"] == 0
        with urllib.request.urlopen(f"{url}stream.mjpg", timeout=5) as stream:
            assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
            assert stream.readline() == b"--frame\r\n"
            pictures = read_jpegs(stream)
            for index in (0, 50):
                preview.write(frame(index), nobody)
                shown = next(pictures)
                assert shown.shape == (48, 64, 3)
                assert abs(float(shown.mean()) - (39.5 + index)) < 3
            preview.end()
            assert next(pictures, None) is None, "the stream ends with the camera"
        status = json.loads(get(f"{url}status.json"))
        assert {"frames", "fps", "latency_s", "people", "dropped"} <= status.keys()
        assert status["frames"] == 2
        with pytest.raises(urllib.error.HTTPError, match="404") as missing:
            get(f"{url}etc/passwd")
        missing.value.close()


def test_stalled_browser_slows_nobody_and_gets_the_newest(preview: Preview, estimator: Estimator) -> None:
    nobody = Poses.empty(estimator.keypoint_set)
    frames = [frame(index, (640, 480)) for index in range(60)]
    with serve(preview, "127.0.0.1", 0) as url, closing(socket.socket()) as slow:
        # Smaller than a picture, so that the server's writing stops at once.
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2])))
        slow.sendall(b"GET /stream.mjpg HTTP/1.0\r\nHost: localhost\r\n\r\n")
        for one in frames:
            started = time.monotonic()
            preview.write(one, nobody)
            assert time.monotonic() - started < SLACK_S
            time.sleep(0.01)
        # Another browser is served meanwhile, and the slow one, awake again, is not shown the backlog.
        assert json.loads(get(f"{url}status.json"))["frames"] == len(frames)
        slow.settimeout(5)
        with slow.makefile("rb") as stream:
            while stream.readline() != b"--frame\r\n":
                pass
            pictures = read_jpegs(stream)
            got: list[float] = []
            while not got or abs(got[-1] - (39.5 + 59)) >= 0.5:
                got.append(float(next(pictures).mean()))
    assert len(got) <= 6, got


def test_no_browser_outlives_the_server(preview: Preview, estimator: Estimator) -> None:
    before = threading.active_count()
    with serve(preview, "127.0.0.1", 0) as url, ExitStack() as browsers:
        port = int(url.rstrip("/").rpartition(":")[2])
        for request in (b"", b"GET /stream.mjpg?1 HTTP/1.0\r\nHost: localhost\r\n\r\n"):
            browser = browsers.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
            browser.sendall(request)
        assert browser.recv(17).startswith(b"HTTP/1.0 200")
        # More than the connection takes, so that the server is amid sending it.
        preview.write(frame(0, (3840, 2160)), Poses.empty(estimator.keypoint_set))
        started = time.monotonic()
    assert threading.active_count() == before
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("host", ["attacker.example", "["])
def test_web_sites_cannot_borrow_the_address(host: str, preview: Preview) -> None:
    with serve(preview, "127.0.0.1", 0) as url:
        request = urllib.request.Request(url, headers={"Host": host})
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(request, timeout=5)
        refused.value.close()


def test_port_in_use_is_said(preview: Preview) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(OutputError, match=rf"127\.0\.0\.1:{port}.*--serve"),
            serve(preview, "127.0.0.1", port),
        ):
            pass


# ---- the command ----


def command(url: str, weights: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "hgpose", "webcam", "--camera", url, "--detector", "whole-frame",
        "--device", "cpu", "--weights", str(weights), *more,
    ]  # fmt: skip


@pytest.fixture
def headless() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    return {**kept, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_with_whole_files(
    number: signal.Signals, weights: Path, headless: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with mjpeg_server(100_000, INTERVAL_S) as url:
        arguments = command(url, weights, "--record", str(out), "--serve", "0")
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, env=headless, text=True) as process:
            assert process.stderr is not None
            said = ""
            while "preview at" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            browser = re.findall(r"preview at (\S+)", said)[0]
            deadline = time.monotonic() + 20
            while json.loads(get(f"{browser}status.json"))["frames"] < 10:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
            said += process.communicate(timeout=20)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "no window: there is no display" in said
    pictures, rows, entries = recorded(out)
    assert pictures == rows == entries >= 10


def test_cut_stream_is_exit_1_and_nothing_to_see_is_said(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hgpose.live.window_problem", lambda: "there is no display")
    monkeypatch.setenv("COLUMNS", "200")
    with mjpeg_server(150, INTERVAL_S) as url:
        monkeypatch.setattr(sys, "argv", command(url, weights)[2:])
        with pytest.raises(SystemExit) as ended:
            main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert re.search(r"camera ended: .* stopped sending pictures after \d+ frames", said)
    assert "no window: there is no display" in said
    assert "nothing is shown or recorded; add --serve" in said
    assert re.search(r"\d frames/s  latency \d+ ms  people \d  dropped \d", said)
