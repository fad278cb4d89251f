"""Files that appear under their final name only when they are whole."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from hgpose.errors import OutputError


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


def _check_free(final: Path, overwrite: bool) -> None:
    if final.is_dir():
        raise OutputError(f"cannot write {final}: a folder of that name is in the way; choose another -o")
    if final.exists() and not overwrite:
        raise OutputError(f"{final} already exists; pass --overwrite to replace it or choose another -o")


@contextmanager
def atomic_path(final: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside ``final`` to write to; renamed to it at the end, removed on any error.

    Parent folders are made. The temporary name is new each time, so what a killed run left behind
    is never read or written again.

    Args:
        final: where the finished file shall stand.
        overwrite: whether it may replace a file that is already there.

    Raises:
        OutputError: something is in the way, or the folder cannot be written to.
    """
    with output_errors(final):
        _check_free(final, overwrite)
        final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".hgpose-{uuid.uuid4().hex}.part")
    try:
        with output_errors(final):
            # Fails now rather than after the work, if the folder is not writable.
            part.touch(exist_ok=False)
        yield part
        with output_errors(final):
            # Another run may have finished it meanwhile.
            _check_free(final, overwrite)
            part.replace(final)
    except BaseException:
        part.unlink(missing_ok=True)
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
