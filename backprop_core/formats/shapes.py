"""Bytes → rows as the file has them: a JSON array, JSON lines, CSV with a header, Parquet, `.txt` (a row a line).

CSV and `.txt` go by their name, everything else by its bytes.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from backprop_core.errors import InputValidationFailed

HINT = "rows come as a JSON array of objects, JSON lines, CSV, Parquet or .txt, in UTF-8"
LARGEST_CELL = 2**31 - 1  # bytes; csv itself refuses cells over 128 KiB


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


def parse(data: bytes, path: str, name: str) -> Iterator[Item]:
    """Rows of whatever shape the file at `path` has; errors call it `name`.

    Raises InputValidationFailed, with the line, if it has none of the shapes.
    """
    if data.startswith(b"PAR1"):
        return parquet(data, name)
    data = data.removeprefix(b"\xef\xbb\xbf")
    suffix = Path(re.sub(r"\.(gz|zst)$", "", path.lower())).suffix
    if suffix == ".csv":
        return comma_separated(decoded(data, name))
    if suffix == ".txt":
        return lines_of_text(decoded(data, name))
    first = data[:4096].lstrip()[:1]
    if first == b"[":
        return array(decoded(data, name), name)
    if first in b"{" or suffix in (".jsonl", ".ndjson"):
        return json_lines(data)
    raise InputValidationFailed(f"{name}, line 1: not JSON", hint=HINT)


def decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputValidationFailed(f"{name}, line {line}: not UTF-8", hint="save the file as UTF-8") from error


def json_lines(data: bytes) -> Iterator[Item]:
    """An object a line; empty lines do not count."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield Item(f"line {number}", json_value(line))


def json_value(line: bytes) -> Value:
    try:
        return object_or_malformed(json.loads(line.decode()))
    except UnicodeDecodeError:
        return Malformed("not_utf8", "not UTF-8")
    except json.JSONDecodeError as error:
        return Malformed("not_json", f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets by the thousand
        return Malformed("not_json", f"not JSON: {error}")


def array(text: str, name: str) -> Iterator[Item]:
    """The elements of one JSON array."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        what = f"{name}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}"
        raise InputValidationFailed(what, hint=HINT) from error
    except (ValueError, RecursionError) as error:
        raise InputValidationFailed(f"{name}, line 1: not JSON: {error}", hint=HINT) from error
    return (Item(f"row {number}", object_or_malformed(value)) for number, value in enumerate(values, 1))


def object_or_malformed(value: Any) -> Value:
    return value if isinstance(value, dict) else Malformed("not_an_object", f"a {type(value).__name__}, not an object")


def comma_separated(text: str) -> Iterator[Item]:
    """A row a record; the header names the fields."""
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for record in reader:
        torn = None in record or None in record.values()  # more cells than the header has, or fewer
        malformed = Malformed("torn", f"not {len(reader.fieldnames or ())} cells, as the header has")
        yield Item(f"line {reader.line_num}", malformed if torn else record)


def lines_of_text(text: str) -> Iterator[Item]:
    """A row a line; empty lines do not count."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Item(f"line {number}", {"text": line.removesuffix("\r")})


def parquet(data: bytes, name: str) -> Iterator[Item]:
    """The rows of a Parquet file."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        values = pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputValidationFailed(f"{name} is damaged Parquet: {error}", hint="make or copy it again") from error
    return (Item(f"row {number}", value) for number, value in enumerate(values, 1))
