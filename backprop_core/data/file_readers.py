"""Bytes → rows as the file has them: a JSON array, JSON lines, CSV with a header, Parquet, or text (a row a line)."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from backprop_core.data import csv_reader
from backprop_core.errors import InputValidationFailed
from backprop_core.schema.refs import Reading

HINT = "rows come as a JSON array of objects, JSON lines, CSV, Parquet or .txt, in UTF-8"
SAVE = "save the file as UTF-8"
SAMPLE = 4096  # bytes
WIDE = 1 / 3  # of such bytes are zero in UTF-16 and UTF-32 of most languages


class Malformed(Exception):
    """Why one row cannot be read: a reason to count by, and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


Value: TypeAlias = dict[str, Any] | Malformed


class Item(NamedTuple):
    """One row as the file has it, and where: "line 3" or "row 3"."""

    place: str
    value: Value


class NamedTwice(ValueError):
    """A JSON object has one key twice: json.loads by itself keeps the last value."""


def parse(data: bytes, reading: Reading, name: str) -> Iterator[Item]:
    """Rows of a file that is read so; errors call it `name`.

    Raises InputValidationFailed, with the line, if the file is damaged, or is in another encoding.
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
    """The text in its encoding. Raises InputValidationFailed with the first line that is not in it."""
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
            what = f"no {encoding.upper()}, as its byte order mark says"
        raise InputValidationFailed(f"{name}, line {line}: {what}", hint=SAVE) from error


def plain(data: bytes, encoding: str, name: str) -> str:
    """The same without a zero. Raises InputValidationFailed with the first line that has one: no text has."""
    text = decoded(data, encoding, name)
    before, zero, _ = text.partition("\0")
    if zero:
        what = "a zero byte, as in UTF-16 without a byte order mark, or in a file that is no text"
        raise InputValidationFailed(f"{name}, line {before.count(chr(10)) + 1}: {what}", hint=SAVE)
    return text


def refuse_unmarked(data: bytes, encoding: str, name: str) -> None:
    """Raise InputValidationFailed for what is probably UTF-16 or UTF-32, but does not say so."""
    sample = data[:SAMPLE]
    if encoding == "utf-8" and sample.count(0) > WIDE * len(sample):
        what = "every other byte is zero, as in UTF-16 without a byte order mark"
        raise InputValidationFailed(f"{name}, line 1: {what}", hint=SAVE)


def no_utf8(line: bytes) -> str:
    """What is wrong with a line that is not UTF-8: its first such byte, and what that is on Windows."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start : error.start + 1]
        meant = byte.decode("cp1252", errors="ignore")
        western = f", {meant!r} in Windows-1252 (cp1252) and Latin-1" if meant else ""
        return f"not UTF-8: byte 0x{byte.hex()} at column {error.start + 1}{western}"
    return "not UTF-8"


def json_lines(data: bytes) -> Iterator[Item]:
    """An object a line; empty lines do not count."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield Item(f"line {number}", json_value(line))


def json_value(line: bytes) -> Value:
    try:
        return object_or_malformed(json.loads(line.decode(), object_pairs_hook=named_once))
    except UnicodeDecodeError:
        return Malformed("not_utf8", no_utf8(line))
    except NamedTwice as error:
        return Malformed("named_twice", str(error))
    except json.JSONDecodeError as error:
        return Malformed("not_json", f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets by the thousand
        return Malformed("not_json", f"not JSON: {error}")


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises NamedTwice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise NamedTwice(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return made


def array(text: str, name: str) -> Iterator[Item]:
    """The elements of one JSON array."""
    try:
        values = json.loads(text, object_pairs_hook=named_once)
    except NamedTwice as error:
        raise InputValidationFailed(f"{name}: in one object {error}", hint="leave one of the two out") from error
    except json.JSONDecodeError as error:
        what = f"{name}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}"
        raise InputValidationFailed(what, hint=HINT) from error
    except (ValueError, RecursionError) as error:
        raise InputValidationFailed(f"{name}, line 1: not JSON: {error}", hint=HINT) from error
    return (Item(f"row {number}", object_or_malformed(value)) for number, value in enumerate(values, 1))


def object_or_malformed(value: Any) -> Value:
    return value if isinstance(value, dict) else Malformed("not_an_object", f"a {type(value).__name__}, not an object")


def comma_separated(text: str, separator: str | None, name: str) -> Iterator[Item]:
    """A row a record; the header names the fields. Raises InputValidationFailed, with the line, for torn quoting."""
    for line, row in csv_reader.rows(text, separator, name):
        yield Item(f"line {line}", record(row))


def record(row: dict[str, str] | int) -> Value:
    """A record by the fields of the header, or the number of cells of a torn one."""
    if isinstance(row, int):
        return Malformed("torn", f"{row} cells, and not as many as the header has")
    if all(value.removeprefix("\ufeff") == field for field, value in row.items()):
        return Malformed("second_header", "the header is there again, as in files that were put together")
    return row


def lines_of_text(text: str) -> Iterator[Item]:
    """A row a line; empty lines do not count. A file without a line feed may end its lines with carriage returns."""
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), 1):
        if line.strip():
            yield Item(f"line {number}", {"text": line.removesuffix("\r")})


def parquet(data: bytes, name: str) -> Iterator[Item]:
    """The rows of a Parquet file."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        values = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputValidationFailed(f"{name} is damaged Parquet: {error}", hint="make or copy it again") from error
    if len(set(table.column_names)) < table.num_columns:
        raise InputValidationFailed(f"{name} has two columns of one name", hint="rename one of them")
    return (Item(f"row {number}", value) for number, value in enumerate(values, 1))
