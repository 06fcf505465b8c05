"""Parses a file into rows: JSON array, JSON lines, CSV with a header, Parquet, Arrow, text, ZIP archives of such files.

Files are read as streams: memory does not grow with the file.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast
from zipfile import ZipFile, ZipInfo

from backprop_core.data import arrow_reader, csv_reader, zip_archive
from backprop_core.data.decompression import CHUNK, Budget, Damaged, Unpacked, seekable, unpacked
from backprop_core.data.file_format import HEAD, reading
from backprop_core.data.json_reader import HINT, json_array, json_lines, too_long
from backprop_core.data.parsed_items import Item, Malformed, Place, Value, at_line
from backprop_core.data.text_lines import LONGEST, refuse_unmarked, text_lines, without_zeros
from backprop_core.data.verified_file import verified
from backprop_core.errors import InputValidationFailed
from backprop_core.schema.refs import Reading

__all__ = ["Item", "Malformed", "Place", "Value", "parse", "rows_of"]


def rows_of(path: Path, digest: str, known: Reading | None, name: str) -> Iterator[Item]:
    """The rows of a file whose sha256 is `digest`, as it is read and hashed in one pass. `name` is its name in errors.

    Only when the last row was taken are all known to be those of the digest. A file without a `known` reading is
    detected by its own name. Raises InputNotFound, and InputValidationFailed with the line if it is damaged, in another
    encoding, or has changed.
    """
    with verified(path, digest, name) as packed:
        budget = Budget(os.fstat(packed.fileno()).st_size, name)
        last = None
        try:
            stream = unpacked(packed, budget)
            for item in parse(stream, known or reading(head(stream), path.name), name, budget):
                last = item.place
                yield item
        except Damaged as error:
            where = f"{name}, after {last}" if last else name
            raise InputValidationFailed(f"{where}: {error}", hint="create or copy the file again") from error


def head(stream: io.BufferedReader) -> bytes:
    """The first bytes of a stream, which stay to be read."""
    return stream.peek(HEAD)[:HEAD]


def parse(stream: io.BufferedReader, reading: Reading, name: str, budget: Budget) -> Iterator[Item]:
    """Parse the rows of a decompressed stream. `name` is its name in errors; `budget` is for archives.

    Raises InputValidationFailed, with the line, if the file is damaged or in another encoding.
    """
    match reading.shape:
        case "json-lines":
            return json_lines(stream, reading.encoding, name)
        case "json-array":
            return json_array(stream, reading.encoding, name)
        case "csv":
            return comma_separated(stream, reading, name)
        case "text":
            return lines_of_text(stream, reading.encoding, name)
        case "arrow-stream":
            return arrow_reader.arrow_stream(stream, name)
        case "parquet" | "arrow" | "zip":
            return random_access(stream, reading, name, budget)
    refuse_unmarked(stream, reading.encoding, name)
    raise InputValidationFailed(f"{name}, line 1: not JSON", hint=HINT)


def random_access(stream: io.BufferedReader, reading: Reading, name: str, budget: Budget) -> Iterator[Item]:
    """The rows of a file that is not read from its start to its end: of a private copy, as the file may change."""
    with seekable(stream) as file:
        yield from inside(file, reading, name, budget)


def inside(file: BinaryIO, reading: Reading, name: str, budget: Budget) -> Iterator[Item]:
    """The rows of such a file, of which only the parts that are needed are read."""
    match reading.shape:
        case "parquet":
            yield from arrow_reader.parquet(file, name)
        case "arrow":
            yield from arrow_reader.arrow(file, name)
        case _:
            with zip_archive.opened(file, name) as archive:
                for member in zip_archive.members(archive, name):
                    yield from member_rows(archive, member, reading.encoding, f"{name}/{member.filename}", budget)


def member_rows(archive: ZipFile, member: ZipInfo, encoding: str, name: str, budget: Budget) -> Iterator[Item]:
    """The rows of a file in an archive, which may itself be compressed."""
    with zip_archive.undamaged(name):
        packed = cast(io.BufferedIOBase, archive.open(member))
    stream: io.BufferedReader = io.BufferedReader(Unpacked(packed, "ZIP", zip_archive.DAMAGED, budget), CHUNK)
    plain = unpacked(stream, budget)
    how = reading(head(plain), member.filename, said=encoding)
    for item in parse(plain, how, name, budget):
        yield item.inside(member.filename)


def comma_separated(stream: io.BufferedReader, reading: Reading, name: str) -> Iterator[Item]:
    """One row per record; the header names the fields. Raises InputValidationFailed for broken quoting."""
    lines = without_zeros(text_lines(stream, reading.encoding, name), name)
    for line, row in csv_reader.rows((text for _, text in lines), reading.separator, name):
        yield at_line(line, record(row))


def record(row: dict[str, str] | int) -> Value:
    """A record's fields; Malformed if it has another number of cells than the header, or repeats the header."""
    if isinstance(row, int):
        return Malformed("torn", f"{row} cells, but the header has another number")
    if all(value.removeprefix("\ufeff") == field for field, value in row.items()):
        return Malformed("second_header", "the header again, as in concatenated files")
    return row


def lines_of_text(stream: io.BufferedReader, encoding: str, name: str) -> Iterator[Item]:
    """One row per line; empty lines are skipped. Without any line feed at first, carriage returns end lines."""
    start = head(stream).decode(encoding, errors="ignore")
    ends = "\r" if "\r" in start and "\n" not in start else "\n"
    for number, line in without_zeros(text_lines(stream, encoding, name, ends=ends), name):
        if len(line) > LONGEST:
            yield at_line(number, too_long())
        elif line.strip():
            yield at_line(number, {"text": line.removesuffix(ends).removesuffix("\r")})
