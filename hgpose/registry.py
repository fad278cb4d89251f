"""Published weights that can be fetched: where they are, what they are, under which terms.

Nothing is fetched unless :func:`fetch` is called. What is fetched is verified, converted
(:mod:`hgpose.checkpoints`) and kept in :func:`hgpose.weights.cache_folder`, where its name finds it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from hgpose.checkpoints import convert
from hgpose.errors import OutputError, WeightsError
from hgpose.weights import cache_folder, read_card

_TIMEOUT_S = 30
_CHUNK = 1 << 16
#: Of the connection; any other ``OSError`` is of the disk.
_NETWORK_ERRORS = (TimeoutError, ConnectionError, ssl.SSLError)

#: Called with the bytes that are here and those there are in all, if that is known.
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Published:
    """Weights as their authors publish them.

    Attributes:
        name: ours.
        url: of the authors' file.
        sha256: of that file, hex; its beginning where they say no more.
        layout: key of :data:`hgpose.checkpoints.LAYOUTS`.
        keypoint_set: name of the set.
        input_px: side of the network's input.
        licence: as far as they state one.
        score: as they report it, in the metric's own unit; ``None`` where they do not.
        metric: what the score is.
    """

    name: str
    url: str
    sha256: str
    layout: str
    keypoint_set: str
    input_px: int
    licence: str
    score: float | None
    metric: str

    @property
    def file(self) -> str:
        """Name of the authors' file."""
        return self.url.rpartition("/")[2]


def _anibali(stacks: int, sha256: str, score: float | None) -> Published:
    return Published(
        f"hg{stacks}-mpii16",
        "https://github.com/anibali/pytorch-stacked-hourglass/releases/download/v0.0.0/"
        f"bearpaw_hg{stacks}-{sha256}.pth",
        sha256,
        "bearpaw",
        "mpii16",
        256,
        "code GPL-3.0; trained on MPII, for research",
        score,
        "MPII validation PCKh@0.5, mean over joints, percent",
    )


def _mmpose(data: str, keypoints: str, side: int, sha256: str, date: int, score: float) -> Published:
    metric = {
        "coco": "COCO val2017 AP with detected boxes and flip test",
        "mpii": "MPII validation PCKh@0.5, mean over labels, with flip test",
    }[data]
    return Published(
        f"hourglass52-{keypoints}-{side}",
        "https://download.openmmlab.com/mmpose/top_down/hourglass/"
        f"hourglass52_{data}_{side}x{side}-{sha256}_{date}.pth",
        sha256,
        "mmpose",
        keypoints,
        side,
        "Apache-2.0" if data == "coco" else "Apache-2.0; trained on MPII, for research",
        score,
        metric,
    )


#: All that are known, by name.
PUBLISHED = {
    weights.name: weights
    for weights in (
        _anibali(1, "ce125879", None),
        _anibali(2, "15e342d9", 87.33),
        _anibali(8, "90e5d470", None),
        _mmpose("coco", "coco17", 256, "4ec713ba", 20200709, 0.726),
        _mmpose("coco", "coco17", 384, "be91ba2b", 20200812, 0.746),
        _mmpose("mpii", "mpii16", 256, "ae358435", 20200812, 0.889),
        _mmpose("mpii", "mpii16", 384, "04090bc3", 20200812, 0.894),
    )
}


def published(name: str) -> Published:
    """The published weights called ``name``.

    Raises:
        WeightsError: there are none; the message lists those there are.
    """
    try:
        return PUBLISHED[name]
    except KeyError:
        raise WeightsError(f"{name}: no such published weights; known are: {', '.join(PUBLISHED)}") from None


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Fetches published weights into the cache, if they are not there yet.

    An interrupted download is continued by the next call. Several processes may call at once: one
    fetches, the others wait.

    Args:
        name: a key of :data:`PUBLISHED`.
        progress: told how far the download is.

    Returns:
        The safetensors file, whose card is beside it.

    Raises:
        WeightsError: unknown name, offline, no answer, or the file is not the one that was published.
        OutputError: the cache cannot be written to.
    """
    wanted = published(name)
    folder = cache_folder()
    path = folder / f"{name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if not _is_whole(path):
                _fetch(wanted, path, progress)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}; make room or set HGPOSE_CACHE to another one"
        ) from error
    return path


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file and its card are there and agree."""
    try:
        return path.is_file() and _sha256(path) == read_card(path).sha256
    except WeightsError:
        return False


def _fetch(wanted: Published, path: Path, progress: Progress | None) -> None:
    if os.environ.get("HGPOSE_OFFLINE", "0") not in {"", "0"}:
        raise WeightsError(f"{wanted.name}: HGPOSE_OFFLINE is set; {_by_hand(wanted)}")
    pin = path.with_name(wanted.file + ".sha256")
    expected = wanted.sha256
    if pin.is_file():
        expected = pin.read_text(encoding="ascii", errors="replace").strip()
        if not re.fullmatch("[0-9a-f]{64}", expected):
            raise WeightsError(
                f"{pin}: holds no SHA-256, so the download cannot be compared with the earlier one; delete "
                "it to trust the beginning that the authors publish"
            )
    part = path.with_name(wanted.file + ".part")
    resumed = part.exists() and part.stat().st_size > 0
    _download(wanted, part, progress)
    digest = _sha256(part)
    if not digest.startswith(expected):
        part.unlink()
        if resumed:
            # What the earlier download left was of another file.
            return _fetch(wanted, path, progress)
        raise WeightsError(
            f"{wanted.url}: SHA-256 is {digest}, expected is {expected}...: not the file its authors "
            f"published, so it was deleted; {_by_hand(wanted)}"
        )
    details = {
        "licence": wanted.licence,
        "training": {"source": wanted.url, "sha256": digest},
        "scores": {} if wanted.score is None else {"published": {wanted.metric: wanted.score}},
    }
    # Whatever a killed process leaves half-written is in here, and goes with the next fetch.
    desk = path.with_name(f".{wanted.name}")
    shutil.rmtree(desk, ignore_errors=True)
    try:
        convert(part, desk / path.name, wanted.input_px, wanted.layout, details)
        (desk / pin.name).write_text(digest + "\n", encoding="ascii")
        # From now on the whole checksum is known: the next download must be the same file.
        for ready in (path.with_suffix(".json"), path, pin):
            (desk / ready.name).replace(ready)
    finally:
        shutil.rmtree(desk, ignore_errors=True)
    part.unlink()


def _by_hand(wanted: Published) -> str:
    """What to do without the server."""
    size = "" if wanted.input_px == 256 else f" --size {wanted.input_px}"
    return (
        f"get {wanted.file} (SHA-256 {wanted.sha256}...) elsewhere and run: hgpose weights convert "
        f"{wanted.file} -o {wanted.name}.safetensors{size}"
    )


def _download(wanted: Published, part: Path, progress: Progress | None) -> None:
    """Adds what is missing to ``part``."""
    start = part.stat().st_size if part.exists() else 0
    # As stored, not compressed on the way: or lengths and checksums would not be the file's.
    headers = {"User-Agent": "hgpose", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(wanted.url, headers=headers), timeout=_TIMEOUT_S
        ) as answer:
            if answer.status == http.client.PARTIAL_CONTENT:
                sent = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
                if sent is None or int(sent[1]) != start:
                    if start == 0:
                        raise WeightsError(
                            f"{wanted.url}: the server sends a part of the file that nobody asked for; "
                            f"{_by_hand(wanted)}"
                        )
                    part.unlink()
                    return _download(wanted, part, progress)
            else:
                start = 0
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if re.fullmatch("[0-9]+", length) else None
            here, cause = _receive(answer, part, start, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            # All of it is here already; the checksum will say whether it is right.
            return
        raise WeightsError(
            f"{wanted.url}: the server says {error.code} {error.reason}; {_by_hand(wanted)}"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ValueError, *_NETWORK_ERRORS) as error:
        # A ValueError is of an address that the server sends on to and that is none.
        reason = getattr(error, "reason", None) or error
        raise WeightsError(f"{wanted.url}: no answer ({reason}); {_by_hand(wanted)}") from error
    if cause is not None or (total is not None and here < total):
        raise WeightsError(
            f"{wanted.url}: the connection ended after {here} of {total or 'unknown'} bytes; fetch again to "
            "go on there"
        ) from cause


def _receive(
    answer: http.client.HTTPResponse, part: Path, start: int, total: int | None, progress: Progress | None
) -> tuple[int, Exception | None]:
    """Writes the answer behind the first ``start`` bytes of ``part``.

    Returns:
        The bytes there are then, and what broke the connection, if it ended by that.
    """
    here = start
    with part.open("ab" if start else "wb") as file:
        while True:
            try:
                # What has come so far, so that nothing of it is lost when the connection breaks.
                chunk = answer.read1(_CHUNK)
            except (http.client.HTTPException, *_NETWORK_ERRORS) as error:
                return here, error
            if not chunk:
                return here, None
            file.write(chunk)
            here += len(chunk)
            if progress is not None:
                progress(here, total)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
