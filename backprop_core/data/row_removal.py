"""Removes rows from a file of rows, in its own format and compression; all other rows keep their bytes or values."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

from backprop_core.data import zip_archive
from backprop_core.data.decompression import DAMAGED, packing_of
from backprop_core.data.file_format import HEAD, reading, reading_of
from backprop_core.data.forgotten_rows import names
from backprop_core.data.loading import chat_rows
from backprop_core.data.parsed_items import Malformed
from backprop_core.errors import InputValidationFailed
from backprop_core.schema.refs import Reading, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import file_digest, write_atomic

ZIP = b"PK\x03\x04"
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: zstd(data),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


class Found(NamedTuple):
    """How a file is read, and for it or each member of an archive the numbers of the rows asked for, and of all."""

    reading: Reading
    asked: dict[str | None, list[int]]
    every: dict[str | None, list[int]]

    def __len__(self) -> int:
        return sum(map(len, self.asked.values()))


def rows_in(path: Path, spec: DatasetSpec, rows: Collection[str]) -> Found:
    """Where a file has `rows`. Raises what reading it raises."""
    how = reading_of(path, path.name, said=spec.encoding)
    source = SourceRef(digest=file_digest(path), path=str(path), reading=how)
    found = Found(how, {}, {})
    for place, row, *_ in chat_rows(source, spec):
        found.every.setdefault(place.file, []).append(place.number)
        if not isinstance(row, Malformed) and names(row) & set(rows):
            found.asked.setdefault(place.file, []).append(place.number)
    return found


def remove_rows(path: Path, spec: DatasetSpec, rows: Collection[str]) -> int:
    """Remove rows by identity, and the file if nothing else is in it; returns how many there were.

    Raises what reading it raises, and InputValidationFailed for a format that cannot be written.
    """
    found = rows_in(path, spec, rows)
    if not found:
        return 0
    if found.asked == found.every and not has_others(path, found):
        path.unlink()
        return len(found)
    write_atomic(path, packed_without(path.read_bytes(), found, path.name))
    return len(found)


def has_others(path: Path, found: Found) -> bool:
    """Whether it is an archive that has members without rows, too."""
    if found.reading.shape != "zip":
        return False
    with ZipFile(io.BytesIO(unpacked(path.read_bytes()))) as archive:
        return any(not member.is_dir() and member.filename not in found.every for member in archive.infolist())


def packed_without(data: bytes, found: Found, name: str) -> bytes:
    """The bytes of a file without the rows asked for, packed as it was."""
    packing, whole = packing_of(data), unpacked(data)
    if found.reading.shape == "zip":
        left = without_in_members(whole, found, name)
    else:
        left = without(whole, found.reading, found.asked[None], found.every[None], name)
    return PACK[packing.name](left) if packing else left


def unpacked(data: bytes) -> bytes:
    packing = packing_of(data)
    with packing.open(io.BytesIO(data)) if packing else io.BytesIO(data) as stream:
        return stream.read()


def contents(path: Path) -> Iterator[bytes]:
    """What text may stand in: the bytes of a file and, unpacked, those in it; of an archive, those of each member."""
    data = path.read_bytes()
    yield data
    with suppress(*DAMAGED, *zip_archive.DAMAGED):
        whole = unpacked(data)
        if whole.startswith(ZIP):
            with ZipFile(io.BytesIO(whole)) as archive:
                yield from (unpacked(archive.read(member)) for member in archive.infolist())
        elif whole != data:
            yield whole


def without_in_members(data: bytes, found: Found, name: str) -> bytes:
    """An archive without the rows asked for, and without the members that have no other row."""
    made = io.BytesIO()
    with ZipFile(io.BytesIO(data)) as old, ZipFile(made, "w") as new:
        for member in old.infolist():
            asked, every = found.asked.get(member.filename), found.every.get(member.filename)
            content = old.read(member)
            if asked and asked != every:
                how = reading(unpacked(content)[:HEAD], member.filename, said=found.reading.encoding)
                inner = Found(how, {None: asked}, {None: every or []})
                content = packed_without(content, inner, f"{name}/{member.filename}")
            if asked is None or asked != every:
                new.writestr(member, content)
    return made.getvalue()


def without(data: bytes, reading: Reading, gone: Sequence[int], every: Sequence[int], name: str) -> bytes:
    """The unpacked bytes of a file without some of its lines or rows, which are numbered from 1."""
    match reading.shape:
        case "json-lines" | "text":
            lines: dict[int, int | None] = {number: number for number in gone}
            return without_lines(data, reading.encoding, lines, ends="\n" if b"\n" in data else "\r")
        case "csv":  # a record may have several lines
            last = dict(zip(every, [number - 1 for number in every[1:]], strict=False))
            return without_lines(data, reading.encoding, {number: last.get(number) for number in gone}, ends="")
        case "json-array":
            values = json.loads(data.decode(reading.encoding))
            left = [value for number, value in enumerate(values, 1) if number not in set(gone)]
            return json.dumps(left, ensure_ascii=False, indent=1).encode(reading.encoding)
        case "parquet" | "arrow" | "arrow-stream":
            return without_table_rows(data, reading.shape, set(gone))
    raise InputValidationFailed(f"{name}: no row can be removed from a {reading.shape} file", hint="remove it yourself")


def without_lines(data: bytes, encoding: str, gone: dict[int, int | None], *, ends: str) -> bytes:
    """A text without some ranges of lines, each from a number to one; None: to the end. `ends` is as in `open`."""
    parts = io.StringIO(data.decode(encoding), newline=ends).readlines()
    numbers = set[int]()
    for first, last in gone.items():
        numbers |= set(range(first, (last or len(parts)) + 1))
    return "".join(part for number, part in enumerate(parts, 1) if number not in numbers).encode(encoding)


def without_table_rows(data: bytes, shape: str, gone: set[int]) -> bytes:
    """A Parquet or Arrow file without some of its rows."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.ipc  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    made = io.BytesIO()
    if shape == "parquet":
        table = kept(pyarrow.parquet.read_table(io.BytesIO(data)), gone)
        pyarrow.parquet.write_table(table, made, compression="zstd")
        return made.getvalue()
    opened = (pyarrow.ipc.open_file if shape == "arrow" else pyarrow.ipc.open_stream)(io.BytesIO(data))
    table = kept(opened.read_all(), gone)
    writer = pyarrow.ipc.new_file if shape == "arrow" else pyarrow.ipc.new_stream
    with writer(made, table.schema) as file:
        file.write_table(table)
    return made.getvalue()


def kept(table: Any, gone: set[int]) -> Any:
    """A table without some of its rows, numbered from 1. Their bytes are copied: a slice would hold the others too."""
    return table.take([number for number in range(table.num_rows) if number + 1 not in gone]).combine_chunks()


def zstd(data: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))
