"""A source becomes distinct rows that teach something, the same whatever order they came in; and what is made of rows.

A row's identity is the sha256 of what cannot be taken for another row: its roles, and its texts in Unicode's NFC with
`\n` for every line ending and without whitespace at their ends. All other whitespace counts: it is what code, YAML and
tables are made of. Turns after the last answer are neither trained nor scored, so they do not count. Rows of one
identity are one row. Which side a row is on is `sides`' to say.
"""

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from json.encoder import encode_basestring  # what canonical JSON writes a text with; without an encoder, twice as fast
from pathlib import Path
from typing import Any, NamedTuple

from backprop_core.data.loading import ChatRow, read_rows
from backprop_core.data.template_refusals import Refusals
from backprop_core.errors import NoRows
from backprop_core.schema.refs import ChatTemplate, Curated, RowsRef, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

ROWS = "rows.jsonl"
PASSES = "passes.json"
IDENTITIES = "identities"  # of the rows, 32 bytes each, in their order
SIZE = 32
HELDOUT_SHARE = 10  # one in ten
SEARCH_SHARE = 4  # of the held-out rows, one in four is to choose by
HINT = "give more rows, or held-out rows of their own (--heldout FILE)"


class Known(NamedTuple):
    """A row by its identity, as the line that is written."""

    identity: bytes
    line: str

    @property
    def held_out(self) -> bool:
        """Whether it is in the lowest tenth of the hash space."""
        return int.from_bytes(self.identity) * HELDOUT_SHARE < 1 << 256

    @property
    def order(self) -> bytes:
        """Where it comes in training: a second hash, which knows nothing of the side."""
        return hashlib.sha256(b"order:" + self.identity).digest()

    @property
    def to_choose_by(self) -> bool:
        """Of a held-out row: whether something is chosen by it, so that it may not score what was chosen."""
        return hashlib.sha256(b"search:" + self.identity).digest()[0] * SEARCH_SHARE < 1 << 8


def curate(source: SourceRef, spec: DatasetSpec, *, template: ChatTemplate | None = None, store: Store) -> Curated:
    """The source's distinct rows that teach something, in order of identity, as an artifact.

    Dropped, and counted by reason: malformed rows, those that the base's chat `template` refuses, `empty` ones (nothing
    that an assistant answers) and `duplicate` ones. Raises NoRows if nothing is left; what `formats.read` raises.
    """
    rows, read, dropped = known_rows(source, spec, template)
    ref = commit(rows, store, {"stage": "curate", "source": source.digest}, identified=True)
    counts = {reason: count for reason, count in sorted(dropped.items()) if count}
    return Curated(rows=ref, read=read, dropped=counts)


def without(rows: Iterable[Known], side: Iterable[Known]) -> list[Known]:
    """The rows that are not on a side, by identity."""
    identities = {row.identity for row in side}
    return [row for row in rows if row.identity not in identities]


def known_rows(
    source: SourceRef, spec: DatasetSpec, template: ChatTemplate | None
) -> tuple[list[Known], int, Counter[str]]:
    """The source's distinct rows that teach something, in order of identity; how many it has; what was dropped.

    Raises NoRows if none is left.
    """
    parsed = read_rows(source, spec, refusals=Refusals(template) if template else None)
    dropped = Counter(bad.reason for bad in parsed.bad)
    teaching = [Known(identity(row), canonical(row)) for row in parsed.rows if teaches(row)]
    distinct = unique(teaching)
    dropped["empty"] = len(parsed.rows) - len(teaching)
    if not distinct:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count)
        raise NoRows(f"{spec.path}: no row is left ({why})", hint="rows need text that an assistant answers")
    dropped["duplicate"] = len(teaching) - len(distinct)
    return distinct, len(parsed.rows) + len(parsed.bad), dropped


def teaches(row: ChatRow) -> bool:
    """Whether there is text to learn: an assistant's answer to something, or raw text."""
    if "text" in row:
        return bool(row["text"].strip())
    return any(map(answers_something, row["messages"][1:]))


def taught(row: ChatRow) -> list[dict[str, str]]:
    """The turns up to the last that is learned or scored; all if none is."""
    turns: list[dict[str, str]] = row["messages"]
    answers = [place for place, turn in enumerate(turns) if place and answers_something(turn)]
    return turns[: answers[-1] + 1] if answers else turns


def answers_something(turn: dict[str, str]) -> bool:
    return turn["role"] == "assistant" and bool(turn["content"].strip())


def identity(row: ChatRow) -> bytes:
    """sha256 of the normalised row, as canonical JSON of (role, text) turn by turn."""
    parts = [("text", row["text"])] if "text" in row else [(turn["role"], turn["content"]) for turn in taught(row)]
    turns = ",".join(f"[{encode_basestring(role)},{encode_basestring(normalised(text))}]" for role, text in parts)
    return hashlib.sha256(f"[{turns}]".encode()).digest()


def normalised(text: str) -> str:
    """A text without what cannot change its meaning: how Unicode composes it, line endings, whitespace at its end."""
    composed = text if text.isascii() else unicodedata.normalize("NFC", text)
    return composed.replace("\r\n", "\n").replace("\r", "\n").rstrip()


def unique(rows: Iterable[Known]) -> list[Known]:
    """One row an identity, in order of identity; of several spellings the first in code point order."""
    spelt: dict[bytes, Known] = {}
    for row in rows:
        spelt[row.identity] = min(row, spelt.get(row.identity, row))
    return sorted(spelt.values())


def pool(heldouts: list[RowsRef], *, heldout_max: int, store: Store) -> RowsRef:
    """The rows of several held-out sets, each once, the first `heldout_max` by hash.

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
    seen = identities_of(learned, store)
    new = [row for row in known_in(rows, store) if row.identity not in seen]
    return commit(new, store, {"stage": "unseen", "rows": rows.digest})


def first(rows: RowsRef, *, most: int, store: Store) -> RowsRef:
    """The first rows, at most so many; curated rows are in the order of their hashes, so it is a fair sample."""
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
    """New rows, and in each of so many passes over them `share` of the rows of each earlier dataset, at least one.

    The passes of all runs go through an earlier dataset in turn, in an order drawn by `seed`: no row comes again before
    every one has. `earlier` has the oldest first. No row of `heldout` is taken.
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
    """Where a row comes in the order in which its dataset is replayed."""
    return hashlib.sha256(f"{seed}:".encode() + row.identity).digest()


def known_in(ref: RowsRef, store: Store) -> Iterator[Known]:
    """The rows of an artifact, one by one."""
    directory = store.local(ref)
    with (directory / ROWS).open(encoding="utf-8", newline="\n") as file:
        yield from map(Known, identities(directory), (line.removesuffix("\n") for line in file))


def identities(directory: Path) -> Iterator[bytes]:
    """The identities of the rows in a RowsRef's directory, in their order; computed where they are not beside them."""
    file = directory / IDENTITIES
    if not file.is_file():
        return map(identity, lines(directory / ROWS))
    every = file.read_bytes()
    return (every[place : place + SIZE] for place in range(0, len(every), SIZE))


def identities_of(refs: Iterable[RowsRef], store: Store) -> set[bytes]:
    """The identities of the rows of several artifacts."""
    return {one for ref in refs for one in identities(store.local(ref))}


def commit(
    rows: Sequence[Known],
    store: Store,
    record: dict[str, Any],
    *,
    passes: Sequence[Sequence[Known]] = (),
    identified: bool = False,
) -> RowsRef:
    """The rows as an artifact; with several `passes` over them, which rows are in one of them alone.

    With `identified` their identities stand beside them, for later readers.
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
