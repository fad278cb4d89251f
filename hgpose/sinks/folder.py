"""What sinks of a folder of files have in common."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hgpose.atomic import make_folder_of, output_errors, unfinished
from hgpose.errors import OutputError
from hgpose.sinks.file import FileSink
from hgpose.sinks.record import Run


@contextmanager
def atomic_folder(final: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``final`` to fill; renamed to it at the end, removed on any error.

    Args:
        final: where the finished folder shall stand.
        overwrite: whether it may replace, with all that is in it, a folder that is already there.

    Raises:
        OutputError: something is in the way, or the parent cannot be written to.
    """
    with output_errors(final):
        if final.is_file():
            raise OutputError(f"cannot write {final}: a file of that name is in the way; choose another -o")
        if final.exists() and not overwrite:
            raise OutputError(f"{final} already exists; pass --overwrite to replace it or choose another -o")
        make_folder_of(final)

    def make(part: Path) -> None:
        with output_errors(final):
            part.mkdir()

    with unfinished(final, make) as part:
        old = part.with_suffix(".old")
        try:
            yield part
            with output_errors(final):
                # No call replaces a folder that is not empty: for a moment there is none of that name.
                if final.exists():
                    final.replace(old)
                part.replace(final)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


class FolderSink(FileSink):
    """A sink of many files, whose folder appears when all are written.

    Args:
        path: the finished folder.
        stem: what the files of a video are called by.
        run: what is known of the run.
    """

    def __init__(self, path: Path, stem: str, run: Run) -> None:
        super().__init__(path, run)
        self._stem = stem

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with atomic_folder(self.path, self._run.overwrite) as self._folder:
            yield

    def _write_text(self, name: str, text: str) -> None:
        with output_errors(self.path / name):
            file = self._folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8", errors="surrogateescape", newline="") as opened:
                opened.write(text)

    def _image_file(self, image: PurePosixPath, ending: str) -> str:
        """The image's path with ``ending`` in place of its suffix, or after it where that is taken."""
        name = f"{image.with_suffix('')}{ending}"
        return f"{image}{ending}" if (self._folder / name).exists() else name
