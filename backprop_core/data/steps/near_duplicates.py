"""Finds near duplicates by MinHash and locality-sensitive hashing, and verifies each by exact Jaccard similarity.

Rows are compared in a given order, which is that of their identities: so what is dropped does not depend on the order
of the rows in the source. A row is dropped if an earlier row that is kept is at least as similar as the threshold.
Signatures and shingles are in files; in memory are about 40 bytes a row.

Bands as in chapter 3 of Leskovec, Rajaraman and Ullman, Mining of Massive Datasets: a pair of similarity s shares one
of b bands of r hashes with probability 1 - (1 - s^r)^b.
"""

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_index import Positions, RowIndex
from backprop_core.data.steps.set_step import Comparison, SetStep
from backprop_core.data.steps.shingles import shingles, text_on
from backprop_core.schema.specs.curation import ComparedPart

PERMUTATIONS = 128  # at most, of a signature
SEED = 1
RECALL = 0.99  # of pairs at the threshold, expected
COMPARED = 24  # kept rows of one bucket that a row is compared with
BATCH = 4096  # rows added together
NOT_DROPPED = -1


class Near(NamedTuple):
    """A row that is dropped, the kept row that it is close to, and their Jaccard similarity."""

    row: int
    kept: int
    similarity: float


def width(threshold: float) -> int:
    """Hashes of a band: the most at which a pair at the threshold is found with probability RECALL."""
    found = [r for r in range(1, 33) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL]
    return max(found, default=1)


class NearDuplicates:
    """Rows to compare, added in order. With `fixed`, the first `fixed` are kept, and the others compared to them."""

    def __init__(self, scratch: Path, threshold: float, *, fixed: int | None = None) -> None:
        self._threshold, self._fixed = threshold, fixed
        self._width = width(threshold)
        self._bands = [scratch / f"band-{number}" for number in range(PERMUTATIONS // self._width)]
        self._sets = scratch / "shingles"
        self._starts = array("q", [0])
        for path in (*self._bands, self._sets):
            path.write_bytes(b"")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, texts: Sequence[str]) -> None:
        """Add the next rows, by their texts; a text without words is close to no other."""
        from rensa import RMinHash  # type: ignore[import-untyped]

        hashes, starts = shingles(texts)
        count = len(self._bands) * self._width
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts.astype(np.uint64), count, SEED)
        signatures = np.array(matrix.to_rows(), np.uint64).reshape(len(texts), len(self._bands), self._width)
        factors = np.random.default_rng(SEED).integers(1, 2**63, self._width, np.uint64)
        keys = (signatures * factors).sum(axis=2, dtype=np.uint64)
        none = np.flatnonzero(np.diff(starts) == 0)
        keys[none] = np.arange(len(self), len(self) + len(none), dtype=np.uint64)[:, None]
        for path, column in zip(self._bands, keys.T, strict=True):
            with path.open("ab") as file:
                file.write(column.tobytes())
        with self._sets.open("ab") as file:
            hashes.tofile(file)
        self._starts.extend((starts[1:] + self._starts[-1]).tolist())

    def found(self) -> Iterator[Near]:
        """The rows to drop, in order."""
        self._close: NDArray[np.int32] = np.full(len(self), NOT_DROPPED, np.int32)
        with self._sets.open("rb", buffering=0) as file:
            self._file = file
            self._set = lru_cache(2**14)(self._read)
            for band in self._bands:
                for bucket in buckets(np.fromfile(band, np.uint64), np.flatnonzero(self._close == NOT_DROPPED)):
                    self._compare(bucket)
            yield from self._rooted()

    def _compare(self, bucket: list[int]) -> None:
        """Drop rows of a bucket that are close to an earlier one."""
        given = self._fixed or 0
        kept = [row for row in bucket if row < given][:COMPARED]
        for row in bucket[bisect_left(bucket, given) :]:
            near = next((one for one in kept if self._similarity(row, one) >= self._threshold), None)
            if near is not None:
                self._close[row] = near
            elif self._fixed is None and len(kept) < COMPARED:
                kept.append(row)

    def _rooted(self) -> Iterator[Near]:
        """The dropped rows that are close to a kept one; what is close only to dropped rows is kept after all."""
        for row in np.flatnonzero(self._close != NOT_DROPPED).tolist():
            kept = int(self._close[row])
            while self._close[kept] != NOT_DROPPED:
                kept = int(self._close[kept])
            similarity = self._similarity(row, kept)
            if similarity >= self._threshold:
                yield Near(row, kept, similarity)
            else:
                self._close[row] = NOT_DROPPED

    def _similarity(self, one: int, other: int) -> float:
        """The Jaccard similarity of two rows; 0 if their sizes alone say that it is below the threshold."""
        a, b = self._set(one), self._set(other)
        few, many = sorted((len(a), len(b)))
        if not few or few < self._threshold * many:
            return 0.0
        shared = len(a & b)
        return shared / (few + many - shared)

    def _read(self, row: int) -> frozenset[int]:
        start, end = self._starts[row], self._starts[row + 1]
        self._file.seek(8 * start)
        return frozenset(memoryview(self._file.read(8 * (end - start))).cast("Q"))


def step(threshold: float, on: ComparedPart) -> SetStep:
    """Drops near duplicates, by whole rows or by their questions."""
    text = text_on(on)

    def compare(rows: RowIndex, latest: Positions, scratch: Path) -> Iterator[Comparison]:
        near, lines = NearDuplicates(scratch, threshold), rows.lines()
        while some := list(islice(lines, BATCH)):
            near.add([text(json.loads(line)) for line in some])
        for row, kept, similarity in near.found():
            name = rows.entries["identity"][kept].tobytes().hex()
            yield Comparison(row, "dropped", "near_duplicate", f"{similarity:.2f} of row {name}")

    return compare


def buckets(keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> Iterator[list[int]]:
    """Groups of at least two of these rows with the same key, each in order."""
    rows = rows[np.argsort(keys[rows], kind="stable")]
    ordered = keys[rows]
    edges = np.flatnonzero(np.diff(ordered)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(rows)]])
    several = ends - starts > 1
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        yield rows[start:end].tolist()
