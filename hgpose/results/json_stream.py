"""JSON text read value by value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO


class JsonStream:
    """Values of JSON text one after the other, so that a long list is never in memory as a whole."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self.text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            while self._at < len(self.text):
                if not self.text[self._at].isspace():
                    return self.text[self._at]
                self._at += 1
            if not self._read_more():
                return ""

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self._at)
            except json.JSONDecodeError:
                if not self._read_more():
                    raise
                continue
            # A number that ends here may go on.
            if end < len(self.text) or not self._read_more():
                self._at = end
                return value

    def values(self) -> Iterator[Any]:
        """All values to the end."""
        while self.peek():
            yield self.value()

    def last_elements(self, in_object: bool = False) -> Iterator[Any]:
        """The elements of the list that comes next, with which the text ends, or the object it is in."""
        self._take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self._take(",")
        self._take("]")
        if in_object:
            while self.peek() == ",":
                self._take(",")
                self.value()
                self._take(":")
                self.value()
            self._take("}")
        if self.peek():
            raise json.JSONDecodeError("end expected", self.text, self._at)

    def members_before(self, last: str) -> dict[str, Any]:
        """The members of the object that comes next up to that called ``last``, whose value is next then."""
        members: dict[str, Any] = {}
        self._take("{")
        while self.peek() != "}":
            name = self.value()
            self._take(":")
            if name == last:
                break
            members[name] = self.value()
            if self.peek() != "}":
                self._take(",")
        return members

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise json.JSONDecodeError(f"{character!r} expected", self.text, self._at)
        self._at += 1

    def _read_more(self) -> bool:
        # Twice what is there already, so that a long value is not decoded over and over.
        more = self._file.read(max(1 << 16, len(self.text) - self._at))
        self.text = self.text[self._at :] + more
        self._at = 0
        return bool(more)
