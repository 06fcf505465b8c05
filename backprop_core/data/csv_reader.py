"""Reads CSV and TSV strictly: detects the separator, and rejects broken quoting, which would swallow later records."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from backprop_core.data.text_lines import LONGEST
from backprop_core.errors import InputValidationFailed

LARGEST_CELL = 2**31 - 1  # bytes; the csv module's default limit is 128 KiB
SEPARATORS = ",;\t|"
QUOTING = "quote cells that contain a separator, a line break or a quotation mark, and double each mark inside"


class Record(NamedTuple):
    """The cells of one record, with its first and last line number."""

    line: int
    last: int
    cells: list[str]


def separator_of(text: str) -> str | None:
    """The separator of a table, from its first part: the one with which most records have as many cells as the header.

    A comma if the header has one cell; None if several separators fit equally.
    """
    shares = {separator: share for separator in SEPARATORS if (share := even_share(text, separator)) is not None}
    best = [separator for separator, share in shares.items() if share == max(shares.values())]
    return None if len(best) > 1 else best[0] if best else ","


def even_share(text: str, separator: str) -> float | None:
    """The share of records with as many cells as the header; None if the header has one cell."""
    csv.field_size_limit(LARGEST_CELL)
    with suppress(csv.Error):  # the text may end within a record
        header, *records = [*filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator))] or [[]]
        if len(header) > 1:
            return sum(len(record) == len(header) for record in records) / (len(records) or 1)
    return None


def rows(lines: Iterable[str], separator: str | None, name: str) -> Iterator[tuple[int, dict[str, str] | int]]:
    """Line number and fields of each record; the number of cells instead, if it differs from the header's.

    Raises InputValidationFailed, with the line, for broken quoting, an ambiguous separator, or a duplicate column name.
    """
    if separator is None:
        raise InputValidationFailed(f"{name}, line 1: ambiguous separator", hint="separate the cells with commas")
    found = filter(lambda record: record.cells, records(lines, separator, name))
    if (first := next(found, None)) is None:
        return
    header = first.cells
    if twice := [field for field, count in Counter(header).items() if field and count > 1]:
        hint = "rename or remove one of them"
        raise InputValidationFailed(f"{name}, line {first.line}: two columns are named {twice[0]!r}", hint=hint)
    for record in found:
        torn = len(record.cells) != len(header)
        if torn and record.last > record.line:
            raise torn_quoting(name, record.line, record.last)
        yield record.line, len(record.cells) if torn else dict(zip(header, record.cells, strict=True))


def records(lines: Iterable[str], separator: str, name: str) -> Iterator[Record]:
    """The records of a table; an empty line has no cells.

    Raises InputValidationFailed for broken quoting, which may only show as a record of more than LONGEST characters.
    """
    csv.field_size_limit(LARGEST_CELL)
    whole, taken = whole_record(separator), list[str]()

    def kept() -> Iterator[str]:
        size = 0
        for line in lines:
            size = size + len(line) if taken else len(line)
            taken.append(line)
            if size > LONGEST:
                raise too_large(name, begin)
            yield line

    reader = csv.reader(kept(), delimiter=separator, strict=True)
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
    """Pattern of a record whose quotes enclose whole cells; the csv module also accepts them within a cell."""
    cell = rf'(?:"[^"]*+(?:""[^"]*+)*+"|[^"{re.escape(separator)}\r\n]*+)'
    return re.compile(rf"{cell}(?:{re.escape(separator)}{cell})*+[\r\n]*")


def too_large(name: str, line: int) -> InputValidationFailed:
    what = f"a record of more than {LONGEST >> 20} MiB, as where a quotation mark is not closed"
    return InputValidationFailed(f"{name}, line {line}: {what}", hint=QUOTING)


def torn_quoting(name: str, line: int, last: int) -> InputValidationFailed:
    """The error for a record that starts on `line` and was read up to `last`."""
    so_far = f", so the record extends to line {last}" if last > line else ""
    what = f"broken quoting: a quotation mark is not closed at the end of its cell{so_far}"
    return InputValidationFailed(f"{name}, line {line}: {what}", hint=QUOTING)
