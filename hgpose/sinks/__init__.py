"""Where results go. One file a kind; all follow :class:`Sink` and pass one contract suite."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from hgpose.types import Frame, Poses


class Sink(Protocol):
    """Takes every frame with its people, in order, and keeps nothing of it in memory.

    A context manager. Files are written under a temporary name beside their place; leaving the
    context without an error completes and renames them, leaving with an error removes them, so that
    what stands under a final name is always whole.
    """

    def __enter__(self) -> Self: ...

    def write(self, frame: Frame, poses: Poses) -> None:
        """Adds one frame; ``poses`` may be empty, the frame is recorded all the same."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
