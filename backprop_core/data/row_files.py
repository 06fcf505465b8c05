"""Writes, indexes and reads the files of a RowsRef: rows.jsonl, and where present identities and passes.json."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_identity import identity
from backprop_core.data.row_index import ENTRY, SIZE, Positions, RowIndex, joined
from backprop_core.schema.refs import RowsRef
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

ROWS = "rows.jsonl"
PASSES = "passes.json"
REPEATS = "repeats"  # file of how often an epoch trains each row again, 1 byte each, if any row is trained again
CURRICULUM = "curriculum"  # file that says in which order an epoch trains the rows, if not shuffled
RANKS = "ranks"  # file of where each row comes in the curriculum, 8 bytes each, in row order, if the dataset has one
TIMES = "times"  # file of the rows' times, 8 bytes each, in row order, if the dataset is split by time
GROUPS = "groups"  # file of the rows' groups, 8 bytes each, in row order, if any row has one
IDENTITIES = "identities"  # file of the rows' identities, 32 bytes each, in row order
CHUNK = 2**20  # bytes
Passes = Sequence[Sequence[int]]
Order = Literal["length", "rows"]


def commit(
    rows: RowIndex,
    store: Store,
    record: dict[str, Any],
    *,
    passes: Passes = (),
    identified: bool = False,
    times: Positions | None = None,
    ranks: Positions | None = None,
    curriculum: Order | None = None,
) -> RowsRef:
    """Commit rows as an artifact; with several `passes`, also the positions of rows that only some of them have.

    With `identified`, also stores the identities for later readers; with `times` and `ranks`, those of the rows; with
    `curriculum`, in which order to train them.
    """
    with store.begin("rows") as directory:
        with (directory / ROWS).open("wb", buffering=CHUNK) as file:
            for line in rows.lines():
                file.write(line + b"\n")
        if identified:
            rows.entries["identity"].tofile(directory / IDENTITIES)
        if rows.entries["group"].any():
            rows.entries["group"].tofile(directory / GROUPS)
        if rows.entries["repeats"].any():
            rows.entries["repeats"].tofile(directory / REPEATS)
        for name, values in ((TIMES, times), (RANKS, ranks)):
            if values is not None:
                values.astype("<i8").tofile(directory / name)
        if curriculum:
            (directory / CURRICULUM).write_text(curriculum, encoding="utf-8")
        if len(passes) > 1:
            (directory / PASSES).write_text(canonical([*map(list, passes)]), encoding="utf-8")
        return store.commit(directory, RowsRef, record=record, rows=len(rows))


def index(ref: RowsRef, store: Store) -> RowIndex:
    """The rows of an artifact, in order; their identities are computed if they are not stored."""
    return indexed(store.local(ref) / ROWS)


def indexed(path: Path) -> RowIndex:
    """The rows of a file of JSON lines, in order; the file beside it names them, if there is one."""
    ends = np.fromiter(line_ends(path), "<u8")
    entries = np.zeros(len(ends), ENTRY)
    entries["offset"][1:] = ends[:-1] + 1
    entries["size"] = ends - entries["offset"]
    stored = path.with_name(IDENTITIES)
    known = np.fromfile(stored, np.uint8) if stored.is_file() else computed(path)
    entries["identity"] = known.reshape(-1, SIZE)
    groups = path.with_name(GROUPS)
    if groups.is_file():
        entries["group"] = np.fromfile(groups, "<u8")
    again = path.with_name(REPEATS)
    if again.is_file():
        entries["repeats"] = np.fromfile(again, np.uint8)
    return RowIndex((path,), entries)


def times(ref: RowsRef, store: Store) -> Positions:
    """(rows,): the times of a curated dataset that is split by time, in row order."""
    return np.fromfile(store.local(ref) / TIMES, "<i8").astype(np.int64)


def ranks(ref: RowsRef, store: Store) -> Positions:
    """(rows,): where the rows of a curated dataset come in its curriculum, in row order."""
    return np.fromfile(store.local(ref) / RANKS, "<i8").astype(np.int64)


def curriculum(directory: Path) -> Order | None:
    """In which order an epoch trains the rows: by length in tokens, or as they stand; None: shuffled."""
    file = directory / CURRICULUM
    order: Order | None = file.read_text(encoding="utf-8") if file.is_file() else None  # type: ignore[assignment]
    return order


def index_all(refs: Iterable[RowsRef], store: Store) -> RowIndex:
    """The rows of several artifacts, one after the other."""
    return joined([index(ref, store) for ref in refs])


def line_ends(path: Path) -> Iterator[int]:
    """The offset of every line feed."""
    start = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield from (np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + start).tolist()
            start += len(chunk)


def computed(path: Path) -> NDArray[np.uint8]:
    """The identities of the rows in a file."""
    made = bytearray()
    for row in lines(path):
        made += identity(row)
    return np.frombuffer(made, np.uint8)


def load(directory: Path) -> list[ChatRow]:
    """Load the rows of a RowsRef's directory, in order."""
    return list(lines(directory / ROWS))


def passes(directory: Path) -> list[list[int]]:
    """For each epoch the indices of rows that only some epochs have; all other rows are in every epoch."""
    file = directory / PASSES
    numbers: list[list[int]] = json.loads(file.read_bytes()) if file.is_file() else [[]]
    return numbers


def repeats(directory: Path) -> NDArray[np.uint8] | None:
    """(rows,): how often an epoch trains each row again; None for never."""
    file = directory / REPEATS
    return np.fromfile(file, np.uint8) if file.is_file() else None


def lines(path: Path) -> Iterator[ChatRow]:
    """The rows of a file of JSON lines, one by one."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
