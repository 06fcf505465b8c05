"""Keeps rows out of training that give away rows which score.

These are the same rows with or without redaction, near duplicates, and rows that share a run of words.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_identity import identity
from backprop_core.data.row_index import SIZE, Keys, Mask, RowIndex, among, keys_of, unique
from backprop_core.data.steps.near_duplicates import BATCH, NearDuplicates
from backprop_core.data.steps.personal_data import MARK, clean
from backprop_core.data.steps.shingles import conversation, question, runs, shingles, text_on, words
from backprop_core.schema.specs.curation import CurationSpec
from backprop_core.store.artifacts import Store

REDACTED = "held_out_redacted"
NEAR = "near_held_out"
MOST_COMMON = 0.01  # share of the rows that score; words in more of them are a template
SHARED = "shares_words_with_held_out"


class Safe(NamedTuple):
    """The rows that give away nothing, and how many do, by reason."""

    rows: RowIndex
    leaks: dict[str, int]


def safe(rows: RowIndex, scoring: RowIndex, spec: CurationSpec, store: Store, *, whole_questions: bool) -> Safe:
    """The rows without those that `spec` calls too close to the rows of `scoring`.

    `whole_questions`: decontaminate also finds questions of which each run of words is part of a template.
    """
    found = redacted_twins(rows, scoring, redacts=spec.personal_data == "redact")
    rows, leaks = rows.take(~found), {REDACTED: int(found.sum())}
    if spec.near_duplicates is not None:
        found = near(rows, scoring, spec.near_duplicates, text_on(spec.near_duplicates_on), store)
        rows, leaks[NEAR] = rows.take(~found), int(found.sum())
    if spec.decontaminate is not None:
        found = sharing(rows, scoring, spec.decontaminate)
        if whole_questions:
            found |= quoting(rows, scoring, spec.decontaminate)
        rows, leaks[SHARED] = rows.take(~found), int(found.sum())
    return Safe(rows, leaks)


def redacted_twins(rows: RowIndex, scoring: RowIndex, *, redacts: bool) -> Mask:
    """Which rows are a row that scores once both are redacted: a night may redact what another one did not.

    `redacts`: the rows are redacted already.
    """
    if not redacts and not is_redacted(scoring):
        return np.zeros(len(rows), np.bool_)
    return among(rows.keys if redacts else redacted_keys(rows), redacted_keys(scoring))


def is_redacted(rows: RowIndex) -> bool:
    """Whether any of the rows has the mark of a redaction."""
    return any(map(MARK.search, rows.lines()))


def redacted_keys(rows: RowIndex) -> Keys:
    """The identities of the rows after redaction."""
    made = bytearray()
    for line in rows.lines():
        made += identity(clean(json.loads(line)))
    return keys_of(np.frombuffer(made, np.uint8).reshape(-1, SIZE))


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
    """Which rows have `width` words in a row that a row that scores has too.

    System prompts do not count, nor do words that several rows have that score: those are a template.
    """
    known = telling([text for some in batches(unique([scoring]), said) for text in some], width)
    found, start = np.zeros(len(rows), np.bool_), 0
    for some in batches(rows, said):
        hashes, starts = shingles(some, width)
        shared = np.concatenate([[0], np.cumsum(np.isin(hashes, known))])
        found[start : start + len(some)] = shared[starts[1:]] > shared[starts[:-1]]
        start += len(some)
    return found


def telling(texts: list[str], width: int) -> NDArray[np.uint64]:
    """The runs of `width` words that tell which text they are from: neither of their ends is part of a template."""
    half = (width + 1) // 2
    ends, counts = np.unique(shingles(texts, half).hashes, return_counts=True)
    template = ends[counts > max(1, MOST_COMMON * len(texts))]
    _, hashes, left = runs(texts, width)
    common = np.isin(runs(texts, half).hashes, template)
    begins = np.flatnonzero(left >= width)
    return np.unique(hashes[begins[~common[begins] & ~common[begins + width - half]]])


def quoting(rows: RowIndex, scoring: RowIndex, width: int) -> Mask:
    """Which rows have all words in a row of a question that scores, if those are at least `width`.

    A question that several rows have which score is a template.
    """
    known = questions_in([text for some in batches(unique([scoring]), asked) for text in some], width)
    heads = np.fromiter(known, np.uint64, len(known))
    found, start = np.zeros(len(rows), np.bool_), 0
    for some in batches(rows, said) if known else ():
        texts, hashes, _ = runs(some, width)
        for place in np.flatnonzero(np.isin(hashes, heads)).tolist():
            text = int(texts[place])
            spoken = words(some[text])[place - int(np.searchsorted(texts, text)) :]
            quotes = known[int(hashes[place])]
            found[start + text] |= any(tuple(spoken[:length]) in quotes[length] for length in quotes)
        start += len(some)
    return found


def questions_in(texts: list[str], width: int) -> dict[int, dict[int, set[tuple[str, ...]]]]:
    """The words of the questions to find, by the hash of the first `width` and by their number."""
    counts = Counter(tuple(said) for said in map(words, texts) if len(said) >= width)
    found: dict[int, dict[int, set[tuple[str, ...]]]] = {}
    for said, count in counts.items():
        if count <= max(1, MOST_COMMON * len(texts)):
            head = int(runs([" ".join(said[:width])], width).hashes[0])
            found.setdefault(head, {}).setdefault(len(said), set()).add(said)
    return found


def asked(row: ChatRow) -> str:
    """A row's question without its system prompt."""
    return question(without_system(row))


def without_system(row: ChatRow) -> ChatRow:
    turns = [turn for turn in row.get("messages", ()) if turn["role"] != "system"]
    return {**row, "messages": turns} if turns else row


def said(row: ChatRow) -> str:
    """A row's texts without its system prompt."""
    return conversation(without_system(row))


def batches(rows: RowIndex, text: Callable[[ChatRow], str]) -> Iterator[list[str]]:
    """The texts of the rows, some at a time."""
    lines = rows.lines()
    while some := list(islice(lines, BATCH)):
        yield [text(json.loads(line)) for line in some]
