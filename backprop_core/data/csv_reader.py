"""CSV, read strictly: a quotation mark that is not closed where its cell ends would swallow the records after it."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from backprop_core.errors import InputValidationFailed

LARGEST_CELL = 2**31 - 1  # bytes; csv itself refuses cells over 128 KiB
SEPARATORS = ",;\t|"
QUOTING = "quote a cell that has a separator, a line break or a quotation mark in it, and double each mark inside"


class Record(NamedTuple):
    """The cells of one record, and the lines that it begins and ends on."""

    line: int
    last: int
    cells: list[str]


def separator_of(text: str) -> str | None:
    """What separates the cells of a table that begins so: the one that gives most records as many cells as the header.

    A comma if the header has one cell, None if several would do.
    """
    shares = {separator: share for separator in SEPARATORS if (share := even_share(text, separator)) is not None}
    best = [separator for separator, share in shares.items() if share == max(shares.values())]
    return None if len(best) > 1 else best[0] if best else ","


def even_share(text: str, separator: str) -> float | None:
    """The share of records that have as many cells as the header; None if that has one cell."""
    csv.field_size_limit(LARGEST_CELL)
    with suppress(csv.Error):  # the text may end within a record
        header, *records = [*filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator))] or [[]]
        if len(header) > 1:
            return sum(len(record) == len(header) for record in records) / (len(records) or 1)
    return None


def rows(text: str, separator: str | None, name: str) -> Iterator[tuple[int, dict[str, str] | int]]:
    """The records by the fields that the header names, each with its line; of a torn one the number of its cells.

    Raises InputValidationFailed, with the line, for torn quoting and for a header that names a field twice.
    """
    if separator is None:
        raise InputValidationFailed(
            f"{name}, line 1: its cells could be separated in several ways", hint="separate them with commas"
        )
    found = filter(lambda record: record.cells, records(text, separator, name))
    if (first := next(found, None)) is None:
        return
    header = first.cells
    if twice := [field for field, count in Counter(header).items() if field and count > 1]:
        hint = "rename one of them, or take it out"
        raise InputValidationFailed(f"{name}, line {first.line}: two columns are called {twice[0]!r}", hint=hint)
    for record in found:
        torn = len(record.cells) != len(header)
        if torn and record.last > record.line:
            raise torn_quoting(name, record.line, record.last)
        yield record.line, len(record.cells) if torn else dict(zip(header, record.cells, strict=True))


def records(text: str, separator: str, name: str) -> Iterator[Record]:
    """The records of a table, empty lines as records without cells. Raises InputValidationFailed for torn quoting."""
    csv.field_size_limit(LARGEST_CELL)
    whole, taken = whole_record(separator), list[str]()

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            taken.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    while True:
        begin = reader.line_num + 1
        taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise torn_quoting(name, begin, reader.line_num) from error
        if cells is None:
            return
        if len(taken) > 1 and not whole.fullmatch("".join(taken)):
            raise torn_quoting(name, begin, reader.line_num)
        yield Record(begin, reader.line_num, cells)


def whole_record(separator: str) -> re.Pattern[str]:
    """A record whose quotation marks enclose whole cells. `csv` takes them as text in a cell that begins without."""
    cell = rf'(?:"[^"]*+(?:""[^"]*+)*+"|[^"{re.escape(separator)}\r\n]*+)'
    return re.compile(rf"{cell}(?:{re.escape(separator)}{cell})*+[\r\n]*")


def torn_quoting(name: str, line: int, last: int) -> InputValidationFailed:
    """The error for a record that begins on `line`, and was read up to `last` before the tear showed."""
    so_far = f", and the record runs on to line {last}" if last > line else ""
    what = f"torn quoting: a quotation mark is not closed where its cell ends{so_far}"
    return InputValidationFailed(f"{name}, line {line}: {what}", hint=QUOTING)
