"""Keeps preferences apart that give away rows which score, by either of their answers, as `heldout_leaks` does rows."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from backprop_core.data.heldout_leaks import safe
from backprop_core.data.preference_rows import conversations
from backprop_core.data.row_files import commit, index
from backprop_core.data.row_identity import identity
from backprop_core.data.row_index import SIZE, RowIndex
from backprop_core.data.row_spool import Spool
from backprop_core.schema.refs import Batch, RowsRef
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

HELD_OUT = "preference_held_out"


def safe_preferences(batch: Batch, scoring: RowIndex, store: Store) -> tuple[RowsRef | None, int]:
    """The preferences of a batch that give away no row of `scoring`, and how many do."""
    if batch.source.preferences is None:
        return None, 0
    every = index(batch.source.preferences, store)
    left = safe_among(every, batch, scoring, store)
    record = {"stage": "split", "side": "preferences"}
    return (commit(left, store, record) if len(left) else None), len(every) - len(left)


def safe_among(every: RowIndex, batch: Batch, scoring: RowIndex, store: Store) -> RowIndex:
    """The preferences among `every` that give away no row of `scoring`."""
    with store.begin("preferences") as scratch, ExitStack() as files:
        said = spoken(every, scratch, files)
        rest = said.take(~said.among(scoring.keys))
        kept, _ = safe(rest, scoring, batch.curation, store, whole_questions=batch.whole_questions)
        lost = np.bincount(said.entries["group"].astype(np.int64), minlength=len(every))
        lost -= np.bincount(kept.entries["group"].astype(np.int64), minlength=len(every))
    return every.take((lost == 0) & ~every.grouped(scoring.groups))


def spoken(every: RowIndex, scratch: Path, files: ExitStack) -> RowIndex:
    """The conversations of all preferences; the group of each is the position of its preference."""
    spool, identities = Spool(scratch / "conversations", files), bytearray()
    for number, (position, row) in enumerate(said_in(every)):
        spool.add(number, canonical(row), position)
        identities += identity(row)
    return spool.index(np.frombuffer(identities, np.uint8).reshape(-1, SIZE))


def said_in(every: RowIndex) -> Iterator[tuple[int, dict[str, object]]]:
    """The position of each preference, with each of its conversations."""
    for position, line in enumerate(every.lines()):
        for row in conversations(json.loads(line)):
            yield position, row
