"""Where frames come from. One file a kind; all follow :class:`Source` and pass one contract suite."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from hgpose.types import Frame, SourceInfo


class Source(Protocol):
    """Frames, one after the other. A context manager: opening may fail, leaving it releases all.

    Iterating yields frames in display order, each once, memory bounded. A source that turns out to
    be damaged on the way yields all that could be decoded, then ends and says so in ``damage``.
    """

    @property
    def info(self) -> SourceInfo:
        """Known once the source is entered."""
        ...

    @property
    def damage(self) -> str | None:
        """After iterating: why frames may be missing, or ``None``."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...
