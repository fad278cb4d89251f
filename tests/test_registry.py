"""Fetching from a real HTTP server that misbehaves in all the ways servers do."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from published import checkpoints_a
from typer.testing import CliRunner

from hgpose import registry
from hgpose.cli import app
from hgpose.errors import OutputError, WeightsError
from hgpose.registry import Published, fetch
from hgpose.weights import cache_folder, find_weights, load_weights


class Server:
    """Serves one file, as it is told to."""

    def __init__(self, content: bytes) -> None:
        self.content, self.digest = content, hashlib.sha256(content).hexdigest()
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        #: What it says of the part that it sends, if not the truth; empty: nothing.
        self.part: str | None = None
        #: Send in chunks, of which the last is cut.
        self.chunked = False
        #: Hang up by a reset.
        self.reset = False
        #: Send this many bytes, then hang up.
        self.cut: int | None = None
        #: What it says of the content's length, if not the truth; empty: nothing.
        self.length: str | None = None
        #: Where ``/sent`` is sent on to.
        self.location = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers["Range"]))
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/gone"):
            request.send_error(404)
            return
        if request.path.startswith("/moved"):
            request.send_response(302)
            request.send_header("Location", self.url + "/hg.pth")
            request.end_headers()
            return
        if request.path.startswith("/sent"):
            request.send_response(302)
            request.send_header("Location", self.location)
            request.end_headers()
            return
        if request.path.startswith("/loop"):
            request.send_response(302)
            request.send_header("Location", self.url + "/loop.pth")
            request.end_headers()
            return
        start = 0
        if self.ranges and (wanted := request.headers["Range"]):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.content):
                request.send_error(416)
                return
            request.send_response(206)
            part = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
            if said := part if self.part is None else self.part:
                request.send_header("Content-Range", said)
        else:
            request.send_response(200)
        if self.chunked:
            request.protocol_version = "HTTP/1.1"
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            request.wfile.write(b"1000\r\n" + self.content[start : start + 4096] + b"\r\n")
            request.wfile.write(b"1000\r\n" + self.content[start + 4096 : start + 5000])
            request.close_connection = True
            return
        length = str(len(self.content) - start) if self.length is None else self.length
        if length:
            request.send_header("Content-Length", length)
        request.end_headers()
        request.wfile.write(self.content[start : self.cut])
        if self.reset:
            # Closing at once, without the goodbye: the other side's next read fails.
            request.wfile.flush()
            time.sleep(0.2)
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()


@pytest.fixture(scope="module")
def content() -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoints_a(1)[0], buffer)
    return buffer.getvalue()


@pytest.fixture
def server(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(content)
    monkeypatch.setenv("HGPOSE_CACHE", str(tmp_path / "the cache"))
    monkeypatch.delenv("HGPOSE_OFFLINE", raising=False)
    offer(server, monkeypatch)
    yield server
    server.http.shutdown()
    server.http.server_close()


def offer(server: Server, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Published:
    fields = {"url": server.url + "/hg.pth", "sha256": server.digest[:8]} | changes
    weights = Published(
        "tiny", fields["url"], fields["sha256"], "fpd", "mpii16", 256, "free", 87.5, "PCKh@0.5"
    )
    monkeypatch.setattr(registry, "PUBLISHED", {"tiny": weights})
    return weights


def files() -> list[str]:
    """What is in the cache, but for empty lock files."""
    folder = cache_folder()
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.is_dir() else []


def check_fetched() -> None:
    path = find_weights("tiny")
    _, card = load_weights("tiny", "pose")
    assert path.parent == cache_folder()
    assert (card.name, card.licence, card.keypoint_set) == ("tiny", "free", "mpii16")
    assert card.scores == {"published": {"PCKh@0.5": 87.5}}
    assert card.training["source"].startswith("http://127.0.0.1")
    assert files() == ["hg.pth.sha256", "tiny.json", "tiny.safetensors"]


def test_fetched_once_and_found_by_name(server: Server) -> None:
    told: list[tuple[int, int | None]] = []
    path = fetch("tiny", lambda here, total: told.append((here, total)))
    check_fetched()
    assert told[-1] == (len(server.content), len(server.content))
    assert fetch("tiny") == path
    assert len(server.requests) == 1


def test_unknown_name(server: Server) -> None:
    with pytest.raises(WeightsError, match="huge: no such published weights; known are: tiny"):
        fetch("huge")
    assert not server.requests and not files()


def test_offline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGPOSE_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"HGPOSE_OFFLINE is set; get hg\.pth .*weights convert hg\.pth"):
        fetch("tiny")
    assert not server.requests and not files()
    monkeypatch.setenv("HGPOSE_OFFLINE", "0")
    fetch("tiny")
    monkeypatch.setenv("HGPOSE_OFFLINE", "1")
    # What is here already needs no network.
    fetch("tiny")


def test_wrong_hash(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, sha256="01234567")
    with pytest.raises(WeightsError, match=rf"SHA-256 is {server.digest}, expected is 01234567.*hg\.pth"):
        fetch("tiny")
    assert files() == []


def test_pinned_on_first_use(server: Server) -> None:
    fetch("tiny")
    pin = cache_folder() / "hg.pth.sha256"
    assert pin.read_text().strip() == server.digest
    find_weights("tiny").unlink()
    # Same beginning, another file.
    pin.write_text(server.digest[:8] + "0" * 56)
    with pytest.raises(WeightsError, match=r"expected is .*0000"):
        fetch("tiny")
    assert "tiny.safetensors" not in files()


@pytest.mark.parametrize("said", [b"", b"\n", b"0", b"\xff\xfe", b"A" * 64])
def test_a_pin_that_is_none_lets_nothing_pass(server: Server, said: bytes) -> None:
    fetch("tiny")
    pin = cache_folder() / "hg.pth.sha256"
    find_weights("tiny").unlink()
    pin.write_bytes(said)
    with pytest.raises(WeightsError, match=r"hg\.pth\.sha256: holds no SHA-256.*delete"):
        fetch("tiny")
    assert "tiny.safetensors" not in files()
    pin.unlink()
    fetch("tiny")
    check_fetched()


@pytest.mark.parametrize("length", ["many", "-5", "", "²"])
def test_a_length_that_is_none(server: Server, length: str) -> None:
    server.length = length
    fetch("tiny")
    check_fetched()


@pytest.mark.parametrize(
    "location",
    [
        "http://[broken",
        "http://127.0.0.1:port/hg.pth",
        "file:///etc/passwd",
        "http://:0:/",
    ],
)
def test_sent_on_to_no_address(server: Server, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    offer(server, monkeypatch, url=server.url + "/sent.pth")
    server.location = location
    with pytest.raises(WeightsError, match=r"sent\.pth: .*get sent\.pth .*weights convert sent\.pth"):
        fetch("tiny")
    assert "tiny.safetensors" not in files()
    with warnings.catch_warnings():
        # Python's library does not close what it was sent on from.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_list_goes_on_behind_a_bad_card(server: Server) -> None:
    fetch("tiny")
    (cache_folder() / "another.safetensors").touch()
    for content in ("{", "[]", '{"name": 3}', None):
        if content is not None:
            (cache_folder() / "another.json").write_text(content)
        result = CliRunner().invoke(app, ["weights", "list"])
        assert result.exit_code == 1
        assert "another.json" in result.stderr and "tiny" in result.stdout and "pose-body19" in result.stdout
    for name in ("another.json", "another.safetensors"):
        (cache_folder() / name).unlink()
    assert CliRunner().invoke(app, ["weights", "list"]).exit_code == 0


@pytest.mark.parametrize("command", ["fetch", "info", "path"])
def test_without_a_name_it_says_those_there_are(server: Server, command: str) -> None:
    result = CliRunner().invoke(app, ["weights", command])
    assert result.exit_code == 2 and not server.requests
    assert "NAME is missing" in result.stderr
    assert "pose-body19" in result.stderr and "to fetch: tiny" in result.stderr


def list_in(columns: int, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    shown = CliRunner().invoke(app, ["weights", "list"]).stdout
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_list_cuts_nothing(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGPOSE_CACHE", str(tmp_path))
    lines = list_in(columns, monkeypatch, terminal=True)
    assert max(map(len, lines)) <= columns
    said = "".join("".join(lines).split())
    assert "…" not in said
    if columns >= 80:
        assert all(any(line.strip().startswith(name) for line in lines) for name in registry.PUBLISHED)
    # The letters that are shown do not depend on the width.
    piped = list_in(columns, monkeypatch, terminal=False)
    assert sorted("".join("".join(piped).split())) == sorted(said)
    for name, weights in registry.PUBLISHED.items():
        (line,) = (line for line in piped if line.strip().startswith(name))
        assert line.rstrip().endswith(weights.licence)


def test_list_keeps_the_score_of_what_is_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("tiny")
    (line,) = (line for line in list_in(80, monkeypatch, terminal=False) if "tiny" in line)
    assert "fetched" in line and "87.5 PCKh@0.5" in line


def test_dead_link(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, url=server.url + "/gone.pth")
    with pytest.raises(WeightsError, match=r"404 .*get gone\.pth .*weights convert gone\.pth -o tiny"):
        fetch("tiny")
    assert files() == []


def test_no_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, url="http://127.0.0.1:1/hg.pth")
    with pytest.raises(WeightsError, match="no answer"):
        fetch("tiny")
    assert files() == []


def test_redirect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, url=server.url + "/moved/hg.pth")
    fetch("tiny")
    check_fetched()


def test_redirected_for_ever(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, monkeypatch, url=server.url + "/loop.pth")
    with pytest.raises(WeightsError, match="the server says 302"):
        fetch("tiny")
    assert files() == []


def test_cut_off_and_resumed(server: Server) -> None:
    server.cut = 5000
    with pytest.raises(WeightsError, match=f"ended after 5000 of {len(server.content)} bytes"):
        fetch("tiny")
    assert files() == ["hg.pth.part"]
    server.cut = None
    fetch("tiny")
    check_fetched()
    assert [r for _, r in server.requests] == [None, "bytes=5000-"]


def test_a_reset_keeps_what_came(server: Server) -> None:
    server.cut, server.reset = 5000, True
    with pytest.raises(WeightsError, match=r"ended after 5000 of \d+ bytes; fetch again to go on there"):
        fetch("tiny")
    assert (cache_folder() / "hg.pth.part").stat().st_size == 5000
    server.cut, server.reset = None, False
    fetch("tiny")
    check_fetched()
    assert server.requests[-1][1] == "bytes=5000-"


def test_a_cut_chunk_keeps_what_came(server: Server) -> None:
    server.chunked = True
    with pytest.raises(WeightsError, match=r"ended after 5000 of unknown bytes; fetch again to go on there"):
        fetch("tiny")
    server.chunked = False
    fetch("tiny")
    check_fetched()
    assert server.requests[-1][1] == "bytes=5000-"


@pytest.mark.parametrize("part", ["", "bytes 0-99/100", "pages 1-2"])
def test_a_wrong_part_is_dropped_and_all_fetched(server: Server, part: str) -> None:
    cache_folder().mkdir()
    (cache_folder() / "hg.pth.part").write_bytes(server.content[:5000])
    server.part = part
    fetch("tiny")
    check_fetched()
    assert [r for _, r in server.requests] == ["bytes=5000-", None]


def test_what_a_killed_process_left_is_removed(server: Server) -> None:
    left = cache_folder() / ".tiny"
    left.mkdir(parents=True)
    (left / ".hgpose-0.part").write_bytes(b"half")
    (left / "tiny.safetensors").write_bytes(b"other")
    fetch("tiny")
    check_fetched()


def test_server_that_cannot_resume(server: Server) -> None:
    server.cut = 5000
    with pytest.raises(WeightsError):
        fetch("tiny")
    server.cut, server.ranges = None, False
    fetch("tiny")
    check_fetched()


def test_rest_of_another_file(server: Server) -> None:
    cache_folder().mkdir()
    (cache_folder() / "hg.pth.part").write_bytes(b"something else")
    fetch("tiny")
    check_fetched()
    assert [r for _, r in server.requests] == ["bytes=14-", None]


def test_killed_between_download_and_conversion(server: Server) -> None:
    cache_folder().mkdir()
    (cache_folder() / "hg.pth.part").write_bytes(server.content)
    fetch("tiny")
    check_fetched()


def test_right_hash_of_no_checkpoint(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = b"<html>log in first</html>"
    offer(server, monkeypatch, sha256=hashlib.sha256(server.content).hexdigest())
    with pytest.raises(WeightsError, match="damaged, or no PyTorch file"):
        fetch("tiny")
    assert "tiny.safetensors" not in files()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_no_space(server: Server) -> None:
    cache_folder().mkdir()
    (cache_folder() / "hg.pth.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"the cache: No space left on device; make room or"):
        fetch("tiny")
    assert "tiny.safetensors" not in files()


def test_cache_is_no_folder(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HGPOSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="HGPOSE_CACHE"):
        fetch("tiny")


_PROCESS = """
import json, sys
from hgpose import registry
registry.PUBLISHED = {"tiny": registry.Published(**json.loads(sys.argv[1]))}
print(registry.fetch("tiny"))
"""


def test_two_processes_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = replace(offer(server, monkeypatch), url=server.url + "/hg.pth")
    command = [sys.executable, "-c", _PROCESS, json.dumps(asdict(weights))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == [str(cache_folder() / "tiny.safetensors")] * 2
    assert len(server.requests) == 1
    check_fetched()


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HGPOSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hgpose"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "hgpose"


def test_real_entries_are_sound() -> None:
    assert len(registry.PUBLISHED) == 7
    for name, weights in registry.PUBLISHED.items():
        assert weights.name == name and weights.url.startswith("https://")
        assert weights.sha256 in weights.file and len(weights.sha256) == 8
        assert weights.keypoint_set in {"mpii16", "coco17"} and weights.layout in {"bearpaw", "mmpose"}
        assert weights.input_px % 128 == 0


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_damaged_on_disk_is_fetched_again(server: Server, suffix: str) -> None:
    path = fetch("tiny")
    whole = path.read_bytes()
    path.with_suffix(suffix).write_bytes(b"junk")
    assert fetch("tiny").read_bytes() == whole
    load_weights("tiny", "pose")
