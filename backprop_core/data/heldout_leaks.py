"""Keeps rows out of training that give away rows which score: near duplicates, and rows that share a run of words."""

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_index import Mask, RowIndex
from backprop_core.data.steps.near_duplicates import BATCH, NearDuplicates
from backprop_core.data.steps.shingles import conversation, shingles, text_on
from backprop_core.schema.specs.curation import CurationSpec
from backprop_core.store.artifacts import Store

NEAR = "near_held_out"
SHARED = "shares_words_with_held_out"


class Safe(NamedTuple):
    """The rows that give away nothing, and how many do, by reason."""

    rows: RowIndex
    leaks: dict[str, int]


def safe(rows: RowIndex, scoring: RowIndex, spec: CurationSpec, store: Store) -> Safe:
    """The rows without those that `spec` calls too close to the rows of `scoring`."""
    leaks: dict[str, int] = {}
    if spec.near_duplicates is not None:
        found = near(rows, scoring, spec.near_duplicates, text_on(spec.near_duplicates_on), store)
        rows, leaks[NEAR] = rows.take(~found), int(found.sum())
    if spec.decontaminate is not None:
        found = sharing(rows, scoring, spec.decontaminate)
        rows, leaks[SHARED] = rows.take(~found), int(found.sum())
    return Safe(rows, leaks)


def near(rows: RowIndex, scoring: RowIndex, threshold: float, text: Callable[[ChatRow], str], store: Store) -> Mask:
    """Which rows are at least as similar to a row that scores as the threshold."""
    found = np.zeros(len(rows), np.bool_)
    with store.begin("near") as scratch:
        every = NearDuplicates(scratch, threshold, fixed=len(scoring))
        for some in chain(batches(scoring, text), batches(rows, text)):
            every.add(some)
        for one in every.found():
            found[one.row - len(scoring)] = True
    return found


def sharing(rows: RowIndex, scoring: RowIndex, width: int) -> Mask:
    """Which rows have `width` words in a row that a row that scores has too; system prompts do not count."""
    parts = [shingles(some, width).hashes for some in batches(scoring, said)]
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))
    found, start = np.zeros(len(rows), np.bool_), 0
    for some in batches(rows, said):
        hashes, starts = shingles(some, width)
        shared = np.concatenate([[0], np.cumsum(np.isin(hashes, known))])
        found[start : start + len(some)] = shared[starts[1:]] > shared[starts[:-1]]
        start += len(some)
    return found


def said(row: ChatRow) -> str:
    """A row's texts without its system prompt."""
    turns = [turn for turn in row.get("messages", ()) if turn["role"] != "system"]
    return conversation({**row, "messages": turns} if turns else row)


def batches(rows: RowIndex, text: Callable[[ChatRow], str]) -> Iterator[list[str]]:
    """The texts of the rows, some at a time."""
    lines = rows.lines()
    while some := list(islice(lines, BATCH)):
        yield [text(json.loads(line)) for line in some]
