"""Parses the bytes of a file into rows: JSON array, JSON lines, CSV with a header, Parquet, text (a row per line)."""

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

from backprop_core.data import csv_reader
from backprop_core.errors import InputValidationFailed
from backprop_core.schema.refs import Reading

HINT = "supported formats: a JSON array of objects, JSON lines, CSV, Parquet or .txt, in UTF-8"
SAVE = "save the file as UTF-8"
SAMPLE = 4096  # bytes
WIDE = 1 / 3  # minimum share of zero bytes in UTF-16 and UTF-32 text of most languages


class Malformed(Exception):
    """One row cannot be used: `reason` is the word to count by, the message is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


Value: TypeAlias = dict[str, Any] | Malformed


class Place(NamedTuple):
    """Where a row stands: in which file of a directory (None if the source is one file), and its line or row from 1."""

    file: str | None
    unit: Literal["line", "row"]
    number: int

    def __str__(self) -> str:
        """As people read it: "line 3", or "a.csv, row 3"."""
        where = f"{self.unit} {self.number}"
        return f"{self.file}, {where}" if self.file else where


class Item(NamedTuple):
    """One row as parsed, and its place."""

    place: Place
    value: Value


class NamedTwice(ValueError):
    """A JSON object has a duplicate key; json.loads alone would keep the last value."""


def parse(data: bytes, reading: Reading, name: str) -> Iterator[Item]:
    """Parse the rows of a file. `name` is its name in errors.

    Raises InputValidationFailed, with the line, if the file is damaged or in another encoding.
    """
    match reading.shape:
        case "parquet":
            return parquet(data, name)
        case "csv":
            return comma_separated(plain(data, reading.encoding, name), reading.separator, name)
        case "text":
            return lines_of_text(plain(data, reading.encoding, name))
        case "json-array":
            return array(decoded(data, reading.encoding, name), name)
        case "json-lines":
            refuse_unmarked(data, reading.encoding, name)
            return json_lines(data if reading.encoding == "utf-8" else decoded(data, reading.encoding, name).encode())
    refuse_unmarked(data, reading.encoding, name)
    raise InputValidationFailed(f"{name}, line 1: not JSON", hint=HINT)


def decoded(data: bytes, encoding: str, name: str) -> str:
    """Decode text. Raises InputValidationFailed with the first line that is not in this encoding."""
    refuse_unmarked(data, encoding, name)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="ignore")
        line = before.count("\n") + 1
        if encoding.startswith("utf-8"):
            begin = data.rfind(b"\n", 0, error.start) + 1
            what = no_utf8(data[begin : error.end])
        else:
            what = f"not {encoding.upper()}, although its byte order mark says so"
        raise InputValidationFailed(f"{name}, line {line}: {what}", hint=SAVE) from error


def plain(data: bytes, encoding: str, name: str) -> str:
    """Decode text. Also raises InputValidationFailed for a zero byte, with its line."""
    text = decoded(data, encoding, name)
    before, zero, _ = text.partition("\0")
    if zero:
        what = "a zero byte, as in UTF-16 without a byte order mark, or in a binary file"
        raise InputValidationFailed(f"{name}, line {before.count(chr(10)) + 1}: {what}", hint=SAVE)
    return text


def refuse_unmarked(data: bytes, encoding: str, name: str) -> None:
    """Raise InputValidationFailed for what is probably UTF-16 or UTF-32 without a byte order mark."""
    sample = data[:SAMPLE]
    if encoding == "utf-8" and sample.count(0) > WIDE * len(sample):
        what = "every other byte is zero, as in UTF-16 without a byte order mark"
        raise InputValidationFailed(f"{name}, line 1: {what}", hint=SAVE)


def no_utf8(line: bytes) -> str:
    """Describe why a line is not UTF-8: the first bad byte, and its meaning in Windows-1252."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start : error.start + 1]
        meant = byte.decode("cp1252", errors="ignore")
        western = f", {meant!r} in Windows-1252 (cp1252) and Latin-1" if meant else ""
        return f"not UTF-8: byte 0x{byte.hex()} at column {error.start + 1}{western}"
    return "not UTF-8"


def json_lines(data: bytes) -> Iterator[Item]:
    """One object per line; empty lines are skipped."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield Item(Place(None, "line", number), json_value(line))


def json_value(line: bytes) -> Value:
    try:
        return object_or_malformed(json.loads(line.decode(), object_pairs_hook=named_once))
    except UnicodeDecodeError:
        return Malformed("not_utf8", no_utf8(line))
    except NamedTwice as error:
        return Malformed("named_twice", str(error))
    except json.JSONDecodeError as error:
        return Malformed("not_json", f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # thousands of digits in a number, or of nested brackets
        return Malformed("not_json", f"not JSON: {error}")


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises NamedTwice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise NamedTwice(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return made


def array(text: str, name: str) -> Iterator[Item]:
    """The elements of one JSON array."""
    try:
        values = json.loads(text, object_pairs_hook=named_once)
    except NamedTwice as error:
        raise InputValidationFailed(f"{name}: an object has a {error}", hint="remove one of the two") from error
    except json.JSONDecodeError as error:
        what = f"{name}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}"
        raise InputValidationFailed(what, hint=HINT) from error
    except (ValueError, RecursionError) as error:
        raise InputValidationFailed(f"{name}, line 1: not JSON: {error}", hint=HINT) from error
    return (Item(Place(None, "row", number), object_or_malformed(value)) for number, value in enumerate(values, 1))


def object_or_malformed(value: Any) -> Value:
    return value if isinstance(value, dict) else Malformed("not_an_object", f"a {type(value).__name__}, not an object")


def comma_separated(text: str, separator: str | None, name: str) -> Iterator[Item]:
    """One row per record; the header names the fields. Raises InputValidationFailed for broken quoting."""
    for line, row in csv_reader.rows(text, separator, name):
        yield Item(Place(None, "line", line), record(row))


def record(row: dict[str, str] | int) -> Value:
    """A record's fields; Malformed if it has another number of cells than the header, or repeats the header."""
    if isinstance(row, int):
        return Malformed("torn", f"{row} cells, but the header has another number")
    if all(value.removeprefix("\ufeff") == field for field, value in row.items()):
        return Malformed("second_header", "the header again, as in concatenated files")
    return row


def lines_of_text(text: str) -> Iterator[Item]:
    """One row per line; empty lines are skipped. Without any line feed, carriage returns end lines."""
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), 1):
        if line.strip():
            yield Item(Place(None, "line", number), {"text": line.removesuffix("\r")})


def parquet(data: bytes, name: str) -> Iterator[Item]:
    """The rows of a Parquet file."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        values = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputValidationFailed(
            f"{name} is a damaged Parquet file: {error}", hint="create or copy it again"
        ) from error
    if len(set(table.column_names)) < table.num_columns:
        raise InputValidationFailed(f"{name} has two columns with the same name", hint="rename one of them")
    return (Item(Place(None, "row", number), value) for number, value in enumerate(values, 1))
