"""Finds the text of rows in any bytes, and blanks it there: in records, reports, logs and answers that quote a row.

A row is searched for by its lines of text that tell it: long enough, and in no other row. A quote may be cut at its
end, so the first 120 characters suffice; all that follows of the line is found with them. Text is found as it stands,
and as JSON or HTML write it, also within another JSON text.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_search import strings

ANCHOR = 8  # bytes that are looked for first
SUFFICES = 120  # characters
CHUNK = 1 << 24  # bytes
ONE_WORD = re.compile(r"[A-Za-z_.-]+")  # may be a name of ours
LEAST, LEAST_MIXED = 12, 8  # characters; of digits and letters
MASK = b"[forgotten]"
Bytes: TypeAlias = bytes | memoryview


class Hit(NamedTuple):
    """A quote: from where to where, and the line of text that it is of."""

    start: int
    end: int
    line: str


class Spelling(NamedTuple):
    """A line of text in one way of writing it; its first `least` bytes suffice."""

    whole: bytes
    least: int
    line: str


class Quotes:
    """Lines of text to look for."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = frozenset(lines)
        self._spelled: dict[bytes, list[Spelling]] = {}
        for line in sorted(self.lines):
            for one in spellings(line):
                self._spelled.setdefault(one.whole[:ANCHOR], []).append(one)
        self._anchors = np.frombuffer(b"".join(sorted(self._spelled)), "<u8")

    def __bool__(self) -> bool:
        return bool(self.lines)

    def without(self, lines: Iterable[str]) -> "Quotes":
        """The same without some of the lines."""
        return Quotes(self.lines - set(lines))

    def hits(self, data: Bytes) -> list[Hit]:
        """All quotes in `data`, in their order."""
        return sorted({hit for begin in range(0, len(data), CHUNK) for hit in self._within(memoryview(data), begin)})

    def _within(self, data: memoryview, begin: int) -> Iterator[Hit]:
        """The quotes that begin in one chunk."""
        for place in anchored(data[begin : begin + CHUNK + ANCHOR - 1], self._anchors):
            start = begin + place
            for one in self._spelled[bytes(data[start : start + ANCHOR])]:
                size = common(bytes(data[start : start + len(one.whole)]), one.whole)
                if size >= one.least:
                    yield Hit(start, start + size, one.line)

    def blanked(self, data: bytes) -> bytes:
        """The same bytes, as many, without quotes."""
        made = bytearray(data)
        for start, end, _ in self.hits(data):
            while end < len(made) and made[end] & 0xC0 == 0x80:  # the rest of a character that was cut
                end += 1
            made[start:end] = mask(end - start)
        return bytes(made)

    def in_file(self, path: Path) -> list[Hit]:
        """All quotes in a file."""
        return self.hits(path.read_bytes())

    def blank(self, path: Path) -> bool:
        """Blank a file where it lies, as another process may be writing it; whether it had quotes."""
        data = path.read_bytes()
        if (made := self.blanked(data)) == data:
            return False
        with path.open("r+b") as file:
            file.write(made)
        return True


def mask(size: int) -> bytes:
    return (MASK + b" " * size)[:size]


def anchored(data: memoryview, anchors: NDArray[np.uint64]) -> Iterator[int]:
    """Where one of the anchors stands."""
    for shift in range(ANCHOR):
        count = (len(data) - shift) // ANCHOR
        if count > 0:
            words = np.frombuffer(data, "<u8", count, shift)
            yield from (np.flatnonzero(np.isin(words, anchors)) * ANCHOR + shift).tolist()


def common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(place for place in range(size) if one[place] != other[place])


def lines_of(row: ChatRow) -> Iterator[str]:
    """The lines of a row's texts that can tell it."""
    return (line for text in strings(row) for part in text.splitlines() if tells(line := part.strip()))


def tells(line: str) -> bool:
    """Whether a line of text is long enough to tell a row, and no name that our own files may have."""
    if len(line) >= LEAST:
        return not ONE_WORD.fullmatch(line)
    return len(line) >= LEAST_MIXED and any(map(str.isdigit, line)) and any(map(str.isalpha, line))


def spellings(line: str) -> Iterator[Spelling]:
    """The ways to write a line of text."""
    for whole, part in zip(written(line), written(line[:SUFFICES]), strict=True):
        yield Spelling(whole.encode(errors="replace"), len(part.encode(errors="replace")), line)


def written(text: str) -> list[str]:
    """A text as it stands, in JSON, in JSON within JSON, and in HTML."""
    once = [text, as_json(text, ascii=False), as_json(text, ascii=True)]
    twice = [as_json(one, ascii=ascii) for one in once[1:] for ascii in (False, True)]
    return [*once, *twice, html.escape(text), html.escape(text, quote=False)]


def as_json(text: str, *, ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii)[1:-1]
