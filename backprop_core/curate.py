"""Filter, deduplicate, split: a source becomes training rows and held-out rows, the same whatever order it came in.

A row's identity is the sha256 of its normalised form: every text in Unicode's NFC, each run of whitespace one space,
none at the ends; roles count. Rows of one identity are one row. The identity decides the side: the lowest tenth of the
hash space is held out, so a row is on the same side for ever, in whatever file and company it comes. That is why a
small batch may hold out nothing: `pool` asks that its task does.
"""

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from backprop_core.errors import NoRows
from backprop_core.formats import ChatRow, read
from backprop_core.keys import canonical
from backprop_core.refs import DatasetRef, RowsRef, SourceRef
from backprop_core.specs import DatasetSpec
from backprop_core.store import Store

ROWS = "rows.jsonl"
PASSES = "passes.json"
HELDOUT_SHARE = 10  # one in ten
SEARCH_SHARE = 4  # of the held-out rows, one in four is to choose by
HINT = "give more rows, or held-out rows of their own (--heldout FILE)"


class Known(NamedTuple):
    """A row by its identity, as the line that is written."""

    identity: bytes
    line: str

    @property
    def held_out(self) -> bool:
        return int.from_bytes(self.identity) * HELDOUT_SHARE < 1 << 256

    @property
    def order(self) -> bytes:
        """Where it comes in training: a second hash, which knows nothing of the side."""
        return hashlib.sha256(b"order:" + self.identity).digest()

    @property
    def to_choose_by(self) -> bool:
        """Of a held-out row: whether something is chosen by it, so that it may not score what was chosen."""
        return hashlib.sha256(b"search:" + self.identity).digest()[0] * SEARCH_SHARE < 1 << 8


def curate(
    source: SourceRef,
    spec: DatasetSpec,
    *,
    name: str,
    task: str,
    heldout: SourceRef | None,
    heldout_max: int,
    scored: Sequence[RowsRef] = (),
    watch: bool = False,
    store: Store,
) -> DatasetRef:
    """The rows to train on and the rows held out, as artifacts; with `watch`, all are held out.

    Not used, and counted by reason: malformed rows, `empty` ones (nothing that an assistant answers), `duplicate` ones,
    `heldout_over_cap` (held-out side, not among the first `heldout_max` by hash: nothing trains on them either). With
    `heldout`, its rows are the held-out ones, and rows of the source that equal one of them are dropped as `heldout`,
    as are those that equal one of `scored`, which a line holds out already. `spec.skip` and `spec.rows` cut a window
    out of the training rows; what lies outside is in no count.

    Raises NoRows if nothing is left to train on, or to watch; what `formats.read` raises.
    """
    rows, read_rows, dropped = known_rows(source, spec)
    own_file = heldout if not watch else None
    if own_file:
        side, _, _ = known_rows(own_file, spec.model_copy(update={"path": spec.heldout or own_file.path}))
    else:
        side = [row for row in rows if watch or row.held_out]
    train, kept = without(rows, side), side[:heldout_max]
    if own_file:
        dropped["heldout"] = len(rows) - len(train)
    else:
        dropped["heldout_over_cap"] = len(side) - len(kept)
    new = without(train, [row for ref in scored for row in known_in(ref, store)])
    dropped["heldout"] += len(train) - len(new)
    record = {"stage": "curate", "source": source.digest}
    return DatasetRef(
        name=name,
        task=task,
        train=commit([] if watch else window(new, spec), store, {**record, "side": "train"}),
        heldout=commit(kept, store, {**record, "side": "heldout"}),
        read=read_rows,
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
    )


def without(rows: list[Known], side: list[Known]) -> list[Known]:
    identities = {row.identity for row in side}
    return [row for row in rows if row.identity not in identities]


def window(train: list[Known], spec: DatasetSpec) -> list[Known]:
    """Training rows in their order, `spec.skip` left out, `spec.rows` of them."""
    if not train:
        raise NoRows(f"{spec.path}: all of its rows are held out, none is left to train on", hint=HINT)
    end = None if spec.rows is None else spec.skip + spec.rows
    rows = sorted(train, key=lambda row: row.order)[spec.skip : end]
    if not rows:
        raise NoRows(f"{spec.path}: {spec.skip} of its {len(train)} training rows are skipped", hint="skip fewer")
    return rows


def known_rows(source: SourceRef, spec: DatasetSpec) -> tuple[list[Known], int, Counter[str]]:
    """The source's distinct rows that teach something, in order of identity; how many it has; what was dropped.

    Raises NoRows if none is left.
    """
    parsed = read(source, spec)
    dropped = Counter(bad.reason for bad in parsed.bad)
    teaching = [Known(identity(row), canonical(row)) for row in parsed.rows if teaches(row)]
    distinct = unique(teaching)
    if not distinct:
        raise NoRows(f"{spec.path}: no row is left of it", hint="rows need text that an assistant answers")
    dropped["empty"] = len(parsed.rows) - len(teaching)
    dropped["duplicate"] = len(teaching) - len(distinct)
    return distinct, len(parsed.rows) + len(parsed.bad), dropped


def teaches(row: ChatRow) -> bool:
    """Whether there is text to learn: an assistant's answer to something, or raw text."""
    if "text" in row:
        return bool(row["text"].strip())
    return any(turn["role"] == "assistant" and turn["content"].strip() for turn in row["messages"][1:])


def identity(row: ChatRow) -> bytes:
    """sha256 of the normalised row."""
    parts = [["text", row["text"]]] if "text" in row else [[turn["role"], turn["content"]] for turn in row["messages"]]
    return hashlib.sha256(canonical([[role, normalised(text)] for role, text in parts]).encode()).digest()


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def unique(rows: Iterable[Known]) -> list[Known]:
    """One row an identity, in order of identity; of several spellings the first in code point order."""
    spelt: dict[bytes, Known] = {}
    for row in rows:
        spelt[row.identity] = min(row, spelt.get(row.identity, row))
    return sorted(spelt.values())


def pool(heldouts: list[RowsRef], *, heldout_max: int, store: Store) -> RowsRef:
    """The held-out rows of one task: those of all its datasets, each once, the first `heldout_max` by hash.

    Of a single set it is that one. Raises NoRows if there is none.
    """
    distinct = {ref.digest: ref for ref in heldouts if ref.rows}
    if not distinct:
        raise NoRows("no row of this task is held out, so nothing can be scored", hint=HINT)
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    merged = unique(row for ref in distinct.values() for row in known_in(ref, store))
    return commit(merged[:heldout_max], store, {"stage": "pool", "heldout": sorted(distinct)})


def apart(heldout: RowsRef, *, to_choose_by: bool, store: Store) -> RowsRef:
    """One of the two parts of held-out rows: those to choose by, or those to score what was chosen.

    The row's hash says which it is in, so it is in one of them for ever. Raises NoRows where a part has none.
    """
    rows = [row for row in known_in(heldout, store) if row.to_choose_by == to_choose_by]
    if not rows:
        raise NoRows(f"of {heldout.rows} held-out rows none is left, for a search or for the gate", hint=HINT)
    return commit(rows, store, {"stage": "apart", "heldout": heldout.digest})


def unseen(rows: RowsRef, *, learned: Sequence[RowsRef], store: Store) -> RowsRef:
    """The rows that are in none of the `learned` sets, by identity, in their order."""
    seen = {identity(row) for ref in learned for row in load(store.local(ref))}
    new = [row for row in known_in(rows, store) if row.identity not in seen]
    return commit(new, store, {"stage": "unseen", "rows": rows.digest})


def first(rows: RowsRef, *, most: int, store: Store) -> RowsRef:
    """The first rows, at most so many; curated rows are in the order of their hashes, so it is a fair sample."""
    return commit(known_in(rows, store)[:most], store, {"stage": "first", "rows": rows.digest})


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
    """New rows, and in each of so many passes over them `share` of the rows of each earlier dataset, at least one.

    The passes of all runs go through an earlier dataset in turn, in an order drawn by `seed`: no row comes again before
    every one has. `earlier` has the oldest first. No row of `heldout` is taken.
    """
    new, out = known_in(rows, store), [row for ref in heldout for row in known_in(ref, store)]
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
    """Where a row comes in the order in which its dataset is replayed."""
    return hashlib.sha256(f"{seed}:".encode() + row.identity).digest()


def known_in(ref: RowsRef, store: Store) -> list[Known]:
    """The rows of an artifact."""
    return [Known(identity(row), canonical(row)) for row in load(store.local(ref))]


def commit(
    rows: list[Known], store: Store, record: dict[str, Any], *, passes: Sequence[Sequence[Known]] = ()
) -> RowsRef:
    """The rows as an artifact; with several `passes` over them, which rows are in one of them alone."""
    with store.begin("rows") as directory:
        text = "".join(row.line + "\n" for row in rows)
        (directory / ROWS).write_text(text, encoding="utf-8", newline="\n")
        if len(passes) > 1:
            place = {row.identity: index for index, row in enumerate(rows)}
            numbers = [sorted({place[row.identity] for row in part}) for part in passes]
            (directory / PASSES).write_text(canonical(numbers), encoding="utf-8")
        return store.commit(directory, RowsRef, record=record, rows=len(rows))


def load(directory: Path) -> list[ChatRow]:
    """The rows of a RowsRef's directory, in its order."""
    return list(lines(directory / ROWS))


def passes(directory: Path) -> list[list[int]]:
    """Of a RowsRef's directory, the rows that only some passes have, pass by pass; the other rows are in every one."""
    file = directory / PASSES
    numbers: list[list[int]] = json.loads(file.read_bytes()) if file.is_file() else [[]]
    return numbers


def lines(path: Path) -> Iterator[ChatRow]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
