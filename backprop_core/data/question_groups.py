"""Groups preferences by question, beside the group that `group_by` gives them: both stay on one side.

A row is stored with one group. Where a row with a group of its own shares its question with others, all of these groups
are one: `kin` says so for the rows at hand, those of earlier nights among them, and is not stored.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from backprop_core.data.judged_answers import question
from backprop_core.data.preference_rows import is_preference
from backprop_core.data.row_conversations import judged
from backprop_core.data.row_files import commit, index
from backprop_core.data.row_identity import hashed, part
from backprop_core.data.row_index import RowIndex
from backprop_core.schema.refs import RowsRef
from backprop_core.store.artifacts import Store

Kin = Mapping[int, int]  # group -> what it is one of with others


def by_question(ref: RowsRef, store: Store) -> RowsRef:
    """Preferences, each in the group of its question unless it has another one."""
    rows = index(ref, store)
    entries = rows.entries.copy()
    asked = np.array([group_of(json.loads(line)) for line in rows.lines()], np.uint64)
    entries["group"] = np.where(entries["group"], entries["group"], asked)
    return commit(RowIndex(rows.paths, entries), store, {"stage": "split", "side": "preferences"}, identified=True)


def group_of(row: dict[str, Any]) -> int:
    """A hash of the question."""
    ids: dict[str, int] = {}
    return int.from_bytes(hashed(part(turn, ids) for turn in question(row))[:8]) or 1


def kin_of(sets: Iterable[RowIndex]) -> Kin:
    """The groups that are one with others, because preferences in them have one question."""
    parent: dict[int, int] = {}
    for rows in sets:
        for position, line in judged(rows):
            row, own = json.loads(line), int(rows.entries["group"][position])
            if own and is_preference(row) and (asked := group_of(row)) != own:
                first, second = sorted((root(own, parent), root(asked, parent)))
                parent[second] = first
    return {group: hash_of(root(group, parent)) for group in [*parent]}


def root(group: int, parent: dict[int, int]) -> int:
    """The smallest group of those that are one with it."""
    parent.setdefault(group, group)
    while parent[group] != group:
        parent[group] = parent[parent[group]]
        group = parent[group]
    return group


def hash_of(group: int) -> int:
    """A number that says nothing of how many groups are one: the smallest of many is small."""
    return int.from_bytes(hashlib.sha256(group.to_bytes(8)).digest()[:8]) or 1


def related(rows: RowIndex, kin: Kin) -> RowIndex:
    """The rows with what their groups are one of."""
    if not kin:
        return rows
    entries = rows.entries.copy()
    entries["kin"] = [kin.get(group, 0) for group in entries["group"].tolist()]
    return RowIndex(rows.paths, entries)
