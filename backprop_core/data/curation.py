"""Curates a source: drops malformed, empty and duplicate rows and sorts by hash; held-out sampling, replay.

Rows with the same identity (see `row_identity`) are duplicates. `splits` decides which rows are held out.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from backprop_core.data.loading import ChatRow, read_rows
from backprop_core.data.row_identity import identity, teaches
from backprop_core.data.template_refusals import Refusals
from backprop_core.errors import NoRows
from backprop_core.schema.refs import ChatTemplate, Curated, RowsRef, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

ROWS = "rows.jsonl"
PASSES = "passes.json"
IDENTITIES = "identities"  # file of the rows' identities, 32 bytes each, in row order
SIZE = 32
HELDOUT_SHARE = 10  # one row in ten, unless the dataset has its own held-out rows
SEARCH_SHARE = 4  # one in four held-out rows is for the lambda search
HINT = "provide more rows, or a separate file of held-out rows (--heldout FILE)"


class Known(NamedTuple):
    """A row's identity and its JSON line."""

    identity: bytes
    line: str

    @property
    def held_out(self) -> bool:
        """Whether it is in the lowest tenth of the hash space."""
        return int.from_bytes(self.identity) * HELDOUT_SHARE < 1 << 256

    @property
    def order(self) -> bytes:
        """Sort key of training order: a second hash, independent of `held_out`."""
        return hashlib.sha256(b"order:" + self.identity).digest()

    @property
    def to_choose_by(self) -> bool:
        """Whether a held-out row is for the lambda search, and therefore not for the gate."""
        return hashlib.sha256(b"search:" + self.identity).digest()[0] * SEARCH_SHARE < 1 << 8


def curate(source: SourceRef, spec: DatasetSpec, *, template: ChatTemplate | None = None, store: Store) -> Curated:
    """Commit the source's distinct usable rows, in order of identity, as an artifact.

    Drops and counts by reason: malformed rows, rows that the base's chat `template` refuses, `empty` rows (without an
    assistant's answer) and `duplicate` rows. Raises NoRows if none is left, and what `loading.read_rows` raises.
    """
    rows, read, dropped = known_rows(source, spec, template)
    ref = commit(rows, store, {"stage": "curate", "source": source.digest}, identified=True)
    counts = {reason: count for reason, count in sorted(dropped.items()) if count}
    return Curated(rows=ref, read=read, dropped=counts)


def without(rows: Iterable[Known], side: Iterable[Known]) -> list[Known]:
    """The rows that are not in `side`, by identity."""
    identities = {row.identity for row in side}
    return [row for row in rows if row.identity not in identities]


def known_rows(
    source: SourceRef, spec: DatasetSpec, template: ChatTemplate | None
) -> tuple[list[Known], int, Counter[str]]:
    """The source's distinct usable rows in order of identity, the number of its rows, and the dropped rows by reason.

    Raises NoRows if none is left.
    """
    parsed = read_rows(source, spec, refusals=Refusals(template) if template else None)
    dropped = Counter(bad.reason for bad in parsed.bad)
    teaching = [Known(identity(row), canonical(row)) for row in parsed.rows if teaches(row)]
    distinct = unique(teaching)
    dropped["empty"] = len(parsed.rows) - len(teaching)
    if not distinct:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count)
        raise NoRows(f"{spec.path}: no usable rows after filtering ({why})", hint="rows need an assistant's answer")
    dropped["duplicate"] = len(teaching) - len(distinct)
    return distinct, len(parsed.rows) + len(parsed.bad), dropped


def unique(rows: Iterable[Known]) -> list[Known]:
    """Remove duplicates and sort by identity; of duplicates, keep the first in code point order."""
    spelt: dict[bytes, Known] = {}
    for row in rows:
        spelt[row.identity] = min(row, spelt.get(row.identity, row))
    return sorted(spelt.values())


def pool(heldouts: list[RowsRef], *, heldout_max: int, store: Store) -> RowsRef:
    """Merge held-out sets: distinct rows, the first `heldout_max` by hash. A single set is returned unchanged.

    Raises NoRows if there is none.
    """
    distinct = {ref.digest: ref for ref in heldouts if ref.rows}
    if not distinct:
        raise NoRows("this task has no held-out rows to score", hint=HINT)
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    merged = unique(row for ref in distinct.values() for row in known_in(ref, store))
    return commit(merged[:heldout_max], store, {"stage": "pool", "heldout": sorted(distinct)})


def apart(heldout: RowsRef, *, to_choose_by: bool, store: Store) -> RowsRef:
    """One of two parts of held-out rows: those for the lambda search, or those for the gate.

    The row's hash decides, so a row never changes sides. Raises NoRows if the part is empty.
    """
    rows = [row for row in known_in(heldout, store) if row.to_choose_by == to_choose_by]
    if not rows:
        raise NoRows(f"{heldout.rows} held-out rows are too few for both the lambda search and the gate", hint=HINT)
    return commit(rows, store, {"stage": "apart", "heldout": heldout.digest})


def unseen(rows: RowsRef, *, learned: Sequence[RowsRef], store: Store) -> RowsRef:
    """The rows that are in none of the `learned` sets, by identity, in order."""
    seen = identities_of(learned, store)
    new = [row for row in known_in(rows, store) if row.identity not in seen]
    return commit(new, store, {"stage": "unseen", "rows": rows.digest})


def first(rows: RowsRef, *, most: int, store: Store) -> RowsRef:
    """The first `most` rows: a random sample, as curated rows are sorted by hash."""
    return commit(list(islice(known_in(rows, store), most)), store, {"stage": "first", "rows": rows.digest})


def replay(
    rows: RowsRef,
    earlier: Sequence[RowsRef],
    *,
    heldout: Sequence[RowsRef],
    share: float,
    passes: int,
    seed: int,
    store: Store,
) -> RowsRef:
    """Mix new rows with replayed ones: each epoch adds `share` of each earlier dataset's rows, at least one.

    Successive epochs and runs step through an earlier dataset in an order drawn by `seed`, so no row repeats before all
    others were used. `earlier` is sorted from oldest to newest. Rows in `heldout` are never replayed.
    """
    new, out = list(known_in(rows, store)), [row for ref in heldout for row in known_in(ref, store)]
    draws: list[list[Known]] = [[] for _ in range(passes)]
    for runs_since, ref in enumerate(reversed(earlier)):
        order = sorted(without(known_in(ref, store), out), key=lambda row: lot(row, seed))
        count = math.ceil(share * ref.rows) if order else 0
        for number, draw in enumerate(draws, runs_since * passes):
            draw += [order[place % len(order)] for place in range(number * count, (number + 1) * count)]
    record = {"stage": "replay", "rows": rows.digest, "earlier": [ref.digest for ref in earlier]}
    mixed = sorted(unique([*new, *(row for draw in draws for row in draw)]), key=lambda row: row.order)
    return commit(mixed, store, record, passes=[without(draw, new) for draw in draws])


def lot(row: Known, seed: int) -> bytes:
    """Sort key of a row in the replay order."""
    return hashlib.sha256(f"{seed}:".encode() + row.identity).digest()


def known_in(ref: RowsRef, store: Store) -> Iterator[Known]:
    """Iterate over the rows of an artifact."""
    directory = store.local(ref)
    with (directory / ROWS).open(encoding="utf-8", newline="\n") as file:
        yield from map(Known, identities(directory), (line.removesuffix("\n") for line in file))


def identities(directory: Path) -> Iterator[bytes]:
    """The row identities of a RowsRef's directory, in row order; computed if not stored."""
    file = directory / IDENTITIES
    if not file.is_file():
        return map(identity, lines(directory / ROWS))
    every = file.read_bytes()
    return (every[place : place + SIZE] for place in range(0, len(every), SIZE))


def identities_of(refs: Iterable[RowsRef], store: Store) -> set[bytes]:
    """The row identities of several artifacts."""
    return {one for ref in refs for one in identities(store.local(ref))}


def commit(
    rows: Sequence[Known],
    store: Store,
    record: dict[str, Any],
    *,
    passes: Sequence[Sequence[Known]] = (),
    identified: bool = False,
) -> RowsRef:
    """Commit rows as an artifact; with several `passes`, also which rows only some of them have.

    With `identified`, also stores the identities for later readers.
    """
    with store.begin("rows") as directory:
        text = "".join(row.line + "\n" for row in rows)
        (directory / ROWS).write_text(text, encoding="utf-8", newline="\n")
        if identified:
            (directory / IDENTITIES).write_bytes(b"".join(row.identity for row in rows))
        if len(passes) > 1:
            place = {row.identity: index for index, row in enumerate(rows)}
            numbers = [sorted({place[row.identity] for row in part}) for part in passes]
            (directory / PASSES).write_text(canonical(numbers), encoding="utf-8")
        return store.commit(directory, RowsRef, record=record, rows=len(rows))


def load(directory: Path) -> list[ChatRow]:
    """Load the rows of a RowsRef's directory, in order."""
    return list(lines(directory / ROWS))


def passes(directory: Path) -> list[list[int]]:
    """For each epoch the indices of rows that only some epochs have; all other rows are in every epoch."""
    file = directory / PASSES
    numbers: list[list[int]] = json.loads(file.read_bytes()) if file.is_file() else [[]]
    return numbers


def lines(path: Path) -> Iterator[ChatRow]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
