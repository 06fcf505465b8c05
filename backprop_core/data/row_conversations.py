"""Compares rows by the conversations in them: those of a preference are its question with each of its answers."""

import json
from collections.abc import Iterator

import numpy as np

from backprop_core.data.preference_rows import conversations, is_preference
from backprop_core.data.row_identity import identity
from backprop_core.data.row_index import SIZE, Keys, Mask, Positions, RowIndex, among, keys_of
from backprop_core.data.row_turns import learned
from backprop_core.data.steps.personal_data import clean

MARKS = (b'"chosen"', b'"label"')  # every preference has one of them; an answer may quote them too


def all_keys(rows: RowIndex) -> Keys:
    """The identities of some rows, and of the conversations in their preferences."""
    return np.concatenate([rows.keys, conversation_keys(rows)])


def conversation_keys(rows: RowIndex, *, redacted: bool = False) -> Keys:
    """The identities of the conversations in the preferences among some rows, with or without redaction."""
    return in_preferences(rows, redacted=redacted)[0]


def sharing_conversations(rows: RowIndex, keys: Keys, *, redacted: bool = False) -> Mask:
    """Which rows are preferences with one of these conversations in them, with or without redaction."""
    found = np.zeros(len(rows), np.bool_)
    if not len(keys):
        return found
    said, positions = in_preferences(rows, redacted=redacted)
    found[positions[among(said, keys)]] = True
    return found


def beginning_with(rows: RowIndex, keys: Keys) -> Mask:
    """Which rows begin with one of these conversations and go on: training learns its answer too."""
    found, made, positions = np.zeros(len(rows), np.bool_), bytearray(), list[int]()
    for position, line in enumerate(rows.lines() if len(keys) else ()):
        row = json.loads(line)
        turns = row.get("messages", ())
        for end in range(2, len(turns)):
            if learned(turns[end - 1]):
                made += identity({**row, "messages": turns[:end]})
                positions.append(position)
    said = keys_of(np.frombuffer(made, np.uint8).reshape(-1, SIZE))
    found[np.array(positions, np.int64)[among(said, keys)]] = True
    return found


def in_preferences(rows: RowIndex, *, redacted: bool) -> tuple[Keys, Positions]:
    """The identity of each conversation in a preference, and the position of that preference among the rows."""
    made, positions = bytearray(), list[int]()
    for position, line in judged(rows):
        row = json.loads(line)
        for one in conversations(row) if is_preference(row) else ():
            made += identity(clean(one) if redacted else one)
            positions.append(position)
    return keys_of(np.frombuffer(made, np.uint8).reshape(-1, SIZE)), np.array(positions, np.int64)


def judged(rows: RowIndex) -> Iterator[tuple[int, bytes]]:
    """The rows that may be preferences, each with its position."""
    for position, line in enumerate(rows.lines()):
        if any(mark in line for mark in MARKS):
            yield position, line
