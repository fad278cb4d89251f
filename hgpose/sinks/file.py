"""What sinks of one file have in common: how they are entered and left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from hgpose.sinks.record import Run
from hgpose.types import Frame, Poses


class FileSink(ABC):
    """A sink whose beginning and end are one context, :meth:`_opened`.

    Args:
        path: the finished file.
        run: what is known of the run.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self._run = run

    @abstractmethod
    def _opened(self) -> AbstractContextManager[None]:
        """Begins the file on entering and completes it on leaving; removes it on an error."""

    @abstractmethod
    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds one frame with its people, of whom there may be none.

        Raises:
            OutputError: it cannot be written, for one because the disk is full.
        """

    def __enter__(self) -> Self:
        """Begins the file.

        Raises:
            OutputError: it cannot be written, stands there already, or is one of the inputs.
        """
        self._run.refuse_input(self.path)
        self._context = self._opened()
        self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)
