"""Finds the rows that a model was trained on, in whatever form: as they are, redacted, or as a preference's answer."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.heldout_leaks import is_redacted, redacted_keys
from backprop_core.data.question_groups import kin_of, related
from backprop_core.data.row_conversations import all_keys, conversation_keys, sharing_conversations
from backprop_core.data.row_index import Keys, Mask, RowIndex, among


class Learned(NamedTuple):
    """The rows that the line was trained on: their identities, also after redaction if any night redacts, and groups.

    A preference has its own identity and those of its conversations.
    """

    keys: Keys
    redacted: Keys | None
    groups: NDArray[np.uint64]


def learned_from(rows: RowIndex, *, redacts: bool = False) -> Learned:
    """What was learned with some rows.

    `redacts`: rows that are compared with them are redacted, as far as known; rows that are redacted themselves tell.
    """
    found = None
    if redacts or is_redacted(rows):
        found = np.concatenate([redacted_keys(rows), conversation_keys(rows, redacted=True)])
    return Learned(all_keys(rows), found, rows.groups)


def known(rows: RowIndex, learned: Learned, *, redacts: bool = False) -> Mask:
    """Which rows were learned, or others of their group."""
    return was_learned(rows, learned, redacts=redacts) | rows.grouped(learned.groups)


def was_learned(rows: RowIndex, learned: Learned, *, redacts: bool = False) -> Mask:
    """Which rows, or conversations in them, were learned, with or without redaction.

    `redacts`: the rows are redacted already.
    """
    same = rows.among(learned.keys) | sharing_conversations(rows, learned.keys)
    if learned.redacted is None:
        return same
    twins = among(rows.keys if redacts else redacted_keys(rows), learned.redacted)
    return same | twins | sharing_conversations(rows, learned.redacted, redacted=not redacts)


def in_any_form(rows: RowIndex, others: RowIndex, *, whole_groups: bool = False) -> Mask:
    """Which rows are among the others in any form; with `whole_groups` also those of a group of theirs."""
    if not whole_groups:
        return was_learned(rows, learned_from(others, redacts=is_redacted(rows)))
    kin = kin_of([rows, others])
    return known(related(rows, kin), learned_from(related(others, kin), redacts=is_redacted(rows)))
