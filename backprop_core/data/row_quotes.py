"""Finds the text of rows in any bytes, and blanks it there: in records, reports, logs and answers that quote a row.

A row is searched for by pieces of its lines, of WIDTH characters and STEP apart, that no other row has. So a quote is
found that is cut at its begin, at its end or both, if WIDTH + STEP characters are left; of a shorter line, if it is
whole. From a piece on, all of the line that stands there is part of the quote. Text is found as it stands, and as JSON
or HTML write it, also within another JSON text.
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
WIDTH, STEP = 24, 8  # characters
CHUNK = 1 << 24  # bytes
ONE_WORD = re.compile(r"[A-Za-z_.-]+")  # may be a name of ours
LEAST, LEAST_MIXED = 12, 8  # characters; of digits and letters
MASK = b"[forgotten]"
Bytes: TypeAlias = bytes | memoryview


class Hit(NamedTuple):
    """A quote: from where to where, and the piece that it was found by."""

    start: int
    end: int
    piece: str


class Spelling(NamedTuple):
    """A piece of a line in one way of writing it, with the whole line in that way, and where the piece begins in it."""

    piece: str
    written: bytes
    whole: bytes
    start: int


class Quotes:
    """Lines of text to look for; `shared` are pieces of them that others have too."""

    def __init__(self, lines: Iterable[str], shared: Iterable[str] = ()) -> None:
        self._lines, self._shared = frozenset(lines), frozenset(shared)
        self._spelled: dict[bytes, list[Spelling]] = {}
        for line in sorted(self._lines):
            for one in spellings(line):
                if one.piece not in self._shared:
                    self._spelled.setdefault(one.written[:ANCHOR], []).append(one)
        self._anchors = np.frombuffer(b"".join(sorted(self._spelled)), "<u8")

    def __bool__(self) -> bool:
        return bool(self._spelled)

    def without(self, pieces: Iterable[str]) -> "Quotes":
        """The same, but some pieces count for nothing."""
        return Quotes(self._lines, self._shared.union(pieces))

    def hits(self, data: Bytes) -> list[Hit]:
        """All quotes in `data`, in their order."""
        return sorted({hit for begin in range(0, len(data), CHUNK) for hit in self._within(memoryview(data), begin)})

    def _within(self, data: memoryview, begin: int) -> Iterator[Hit]:
        """The quotes with a piece that begins in one chunk."""
        for offset in anchored(data[begin : begin + CHUNK + ANCHOR - 1], self._anchors):
            place = begin + offset
            for one in self._spelled[bytes(data[place : place + ANCHOR])]:
                if data[place : place + len(one.written)] == one.written:
                    yield whole_quote(data, place, one)

    def blanked(self, data: bytes) -> bytes:
        """The same bytes, as many, without quotes."""
        made = bytearray(data)
        for start, end in merged(self.hits(data)):
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


def merged(hits: Iterable[Hit]) -> Iterator[tuple[int, int]]:
    """The stretches that quotes cover, which may overlap; the quotes are in order."""
    begin = end = 0
    for hit in hits:
        if hit.start > end:
            yield begin, end
            begin = hit.start
        end = max(end, hit.end)
    yield begin, end


def whole_quote(data: memoryview, place: int, found: Spelling) -> Hit:
    """All of a line that stands around a piece of it."""
    before, after = found.whole[: found.start], found.whole[found.start :]
    left = common(bytes(data[max(0, place - len(before)) : place])[::-1], before[::-1])
    return Hit(place - left, place + common(bytes(data[place : place + len(after)]), after), found.piece)


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
    """The pieces of a line, each in all ways of writing it."""
    last = max(0, len(line) - WIDTH)
    for begin in sorted({*range(0, last, STEP), last}):
        piece = line[begin : begin + WIDTH]
        ways = zip(written(piece), written(line), written(line[:begin]), strict=True)
        for one in dict.fromkeys(tuple(map(as_bytes, way)) for way in ways):
            yield Spelling(piece, one[0], one[1], len(one[2]))


def as_bytes(text: str) -> bytes:
    return text.encode(errors="replace")


def written(text: str) -> list[str]:
    """A text as it stands, in JSON, in JSON within JSON, and in HTML."""
    once = [text, as_json(text, ascii=False), as_json(text, ascii=True)]
    twice = [as_json(one, ascii=ascii) for one in once[1:] for ascii in (False, True)]
    return [*once, *twice, html.escape(text), html.escape(text, quote=False)]


def as_json(text: str, *, ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii)[1:-1]
