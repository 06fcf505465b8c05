"""Indexes rows that stay in their files: per row its identity, file, offset, size, groups and repeats, 63 bytes."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 32  # bytes of an identity
FIELDS = [("identity", "u1", SIZE), ("path", "<u2"), ("offset", "<u8"), ("size", "<u4"), ("group", "<u8")]
ENTRY = np.dtype([*FIELDS, ("repeats", "u1"), ("kin", "<u8")])
PLACE = ["path", "offset", "size"]
WORDS = SIZE // 8
GROUP = 2**12  # rows turned into Python objects together

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]
Keys = NDArray[np.bytes_]  # (rows,), S32: identities that sort and compare as bytes


@dataclass(frozen=True)
class RowIndex:
    """Rows in some order. `entries` are (rows,) records of type ENTRY; `path` is an index into `paths`.

    `group` is the hash of what rows have in common that stay on one side (`group_by`); 0 for none. `repeats` is how
    often an epoch trains the row again. `kin`, if it is not 0, is what several groups are one of; it is not stored.
    """

    paths: tuple[Path, ...]
    entries: NDArray[Any]

    def __len__(self) -> int:
        return len(self.entries)

    def take(self, which: Positions | Mask | slice) -> "RowIndex":
        """Some of the rows, by position or by mask."""
        return RowIndex(self.paths, self.entries[which])

    def once(self) -> "RowIndex":
        """The rows without their repeats."""
        entries = self.entries.copy()
        entries["repeats"] = 0
        return RowIndex(self.paths, entries)

    @property
    def keys(self) -> Keys:
        """The rows' identities."""
        return keys_of(self.entries["identity"])

    def identities(self) -> Iterator[bytes]:
        """The rows' identities, one by one."""
        for begin in range(0, len(self), GROUP):
            some = self.entries["identity"][begin : begin + GROUP].tobytes()
            yield from (some[start : start + SIZE] for start in range(0, len(some), SIZE))

    def lines(self) -> Iterator[bytes]:
        """The rows' JSON lines, without their line feeds, read from disk one by one."""
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb", buffering=0)) for path in self.paths]
            for begin in range(0, len(self), GROUP):
                for path, offset, size in self.entries[PLACE][begin : begin + GROUP].tolist():
                    files[path].seek(offset)
                    yield files[path].read(size)

    def among(self, keys: Keys) -> Mask:
        """Which rows have one of these identities."""
        return among(self.keys, keys)

    @property
    def groups(self) -> NDArray[np.uint64]:
        """The rows' groups, as far as they are one with others."""
        return np.where(self.entries["kin"] != 0, self.entries["kin"], self.entries["group"]).astype(np.uint64)

    def grouped(self, groups: NDArray[np.uint64]) -> Mask:
        """Which rows belong to one of these groups."""
        mine = self.groups
        return np.asarray(np.isin(mine, groups) & (mine != 0), np.bool_)

    def by_hash(self, salt: str) -> "RowIndex":
        """The rows sorted by a second hash, sha256 of `salt` and the identity."""
        return self.take(order_of(np.frombuffer(salted(self, salt), np.uint8).reshape(-1, SIZE)))


def salted(rows: RowIndex, salt: str) -> bytes:
    """sha256 of `salt` and the identity of each row, concatenated."""
    start = hashlib.sha256(salt.encode())
    made = bytearray()
    for identity in rows.identities():
        one = start.copy()
        one.update(identity)
        made += one.digest()
    return bytes(made)


def keys_of(identities: NDArray[np.uint8]) -> Keys:
    """(rows, 32) bytes as (rows,) keys."""
    return np.ascontiguousarray(identities).view(f"S{SIZE}").reshape(-1)


def among(keys: Keys, others: Keys) -> Mask:
    """Which of the keys are in `others`."""
    if not len(others):
        return np.zeros(len(keys), np.bool_)
    ordered = np.sort(others)
    place = np.searchsorted(ordered, keys)
    place[place == len(ordered)] = 0
    return np.asarray(ordered[place] == keys, np.bool_)


def order_of(identities: NDArray[np.uint8]) -> Positions:
    """Positions that sort (rows, 32) identities; of equal ones the first comes first."""
    words = np.ascontiguousarray(identities).view(">u8").reshape(-1, WORDS)
    return np.lexsort([words[:, word] for word in reversed(range(WORDS))])


def joined(parts: Sequence[RowIndex]) -> RowIndex:
    """The rows of several indexes, one after the other."""
    paths = tuple(dict.fromkeys(path for part in parts for path in part.paths))
    place = {path: number for number, path in enumerate(paths)}
    entries = np.concatenate([part.entries for part in parts]) if parts else np.empty(0, ENTRY)
    start = 0
    for part in parts:
        renamed = np.array([place[path] for path in part.paths], "<u2")
        if len(part):
            entries["path"][start : start + len(part)] = renamed[part.entries["path"]]
        start += len(part)
    return RowIndex(paths, entries)


def distinct(rows: RowIndex) -> Positions:
    """Positions of the distinct rows in order of identity; of duplicates the first line in code point order."""
    order = order_of(rows.entries["identity"])
    ordered = rows.entries["identity"][order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    del ordered
    starts = np.flatnonzero(begins)
    sizes = np.diff(starts, append=len(order))
    chosen = order[starts]
    for group in np.flatnonzero(sizes > 1).tolist():
        members = order[starts[group] : starts[group] + sizes[group]]
        every = rows.take(members)
        chosen[group] = min(zip(every.lines(), every.entries["group"].tolist(), members.tolist(), strict=True))[2]
    return chosen


def unique(parts: Sequence[RowIndex]) -> RowIndex:
    """The distinct rows of several indexes in order of identity."""
    every = joined(parts)
    return every.take(distinct(every))
