"""Files that appear under their final name only when they are whole."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TextIO

from hgpose.errors import OutputError

#: Begins the name of whatever this machine has not finished yet. Not of others': on some shared disks a
#: lock is seen by the processes of one machine only.
_UNFINISHED = f".hgpose-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns an ``OSError`` of the block into an :class:`OutputError` that names ``path``.

    Keep the block to the writing itself, so that the failure of an input is not blamed on an output.

    Raises:
        OutputError: the disk is full, the folder is not writable, and the like.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}; make room or choose another place with -o"
        ) from error


def make_folder_of(final: Path) -> None:
    """Makes the folder that a result shall lie in.

    Raises:
        OutputError: a file is in the way.
        OSError: it cannot be made.
    """
    there = next((path for path in final.parents if path.exists()), None)
    if there is not None and not there.is_dir():
        raise OutputError(f"cannot write {final}: {there} is a file, not a folder; choose another -o")
    final.parent.mkdir(parents=True, exist_ok=True)


def _check_free(final: Path, overwrite: bool) -> None:
    if final.is_dir():
        raise OutputError(f"cannot write {final}: a folder of that name is in the way; choose another -o")
    if final.exists() and not overwrite:
        raise OutputError(f"{final} already exists; pass --overwrite to replace it or choose another -o")


@contextmanager
def unfinished(final: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """What ``make`` puts under a new name beside ``final``; it is known to be in use while the block runs.

    What runs that were killed have left beside it is removed, once for each folder and process.
    """
    _sweep(final.parent)
    part = final.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}.part")
    make(part)
    with _locked(part):
        yield part


@contextmanager
def _locked(part: Path) -> Iterator[bool]:
    """Locks a file or folder until the block, or the process, ends; says whether nobody else had it."""
    if sys.platform == "win32":
        # What is open cannot be renamed there, so nothing is known to be left.
        yield False
        return
    import fcntl

    try:
        opened = os.open(part, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        is_mine = False
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = True
        yield is_mine
    finally:
        os.close(opened)


@cache
def _sweep(folder: Path) -> None:
    for part in folder.glob(f"{_UNFINISHED}*.part"):
        with _locked(part) as is_left:
            if is_left and part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            elif is_left:
                # In a folder for all it may be another user's.
                with suppress(OSError):
                    part.unlink()


@contextmanager
def atomic_path(final: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside ``final`` to write to; renamed to it at the end, removed on any error.

    Parent folders are made. The temporary name is new each time, so what a killed run left behind
    is never read or written again; the next run removes it.

    Args:
        final: where the finished file shall stand.
        overwrite: whether it may replace a file that is already there.

    Raises:
        OutputError: something is in the way, or the folder cannot be written to.
    """
    with output_errors(final):
        _check_free(final, overwrite)
        make_folder_of(final)

    def make(part: Path) -> None:
        # Fails now rather than after the work, if the folder is not writable.
        with output_errors(final):
            part.touch(exist_ok=False)

    with unfinished(final, make) as part:
        try:
            yield part
            with output_errors(final):
                # Another run may have finished it meanwhile.
                _check_free(final, overwrite)
                part.replace(final)
        except BaseException:
            # Where even that is refused it is no news.
            with suppress(OSError):
                part.unlink()
            raise


@contextmanager
def atomic_text(final: Path, overwrite: bool = False) -> Iterator[TextIO]:
    """A UTF-8 text file to write to that becomes ``final`` at the end, as :func:`atomic_path`.

    Parts of file names that are not valid UTF-8 are written as the bytes they are.

    Raises:
        OutputError: as :func:`atomic_path`, or the disk is full at the end.
    """
    with atomic_path(final, overwrite) as part:
        with output_errors(final):
            file = part.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        try:
            yield file
        except BaseException:
            # What a full disk did not take is removed anyway.
            with suppress(OSError):
                file.close()
            raise
        with output_errors(final):
            file.close()
