"""Finds contradictions: rows with the same question and another answer.

The question is all that stands before the last answer, spelled alike as in `row_identity`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_identity import identity
from backprop_core.data.row_index import SIZE, Positions, RowIndex, order_of
from backprop_core.data.steps.set_step import Comparison, SetStep
from backprop_core.schema.specs.curation import Contradictions

ANSWER = {"role": "assistant", "content": "."}  # stands for any: an identity goes as far as the last answer


def asked(row: ChatRow) -> bytes:
    """The identity of a row's question; that of the row itself if it has none."""
    turns = row.get("messages", [])
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    return identity({**row, "messages": [*turns[:last], ANSWER]} if last else row)


def step(mode: Contradictions) -> SetStep:
    """What `mode` says of rows with the same question and another answer."""

    def compare(rows: RowIndex, latest: Positions, scratch: Path) -> Iterator[Comparison]:
        made = bytearray()
        for line in rows.lines():
            made += asked(json.loads(line))
        for group in alike(np.frombuffer(made, np.uint8).reshape(-1, SIZE)):
            newest = int(group[np.argmax(latest[group])])
            for row in group.tolist():
                drops = mode == "drop_both" or (mode == "keep_newest" and row != newest)
                detail = f"{len(group)} answers to its question"
                yield Comparison(row, "dropped" if drops else "kept", "contradiction", detail)

    return compare


def alike(identities: NDArray[np.uint8]) -> Iterator[Positions]:
    """Groups of at least two positions with the same identity."""
    order = order_of(identities)
    ordered = identities[order]
    edges = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(order)]])
    several = ends - starts > 1
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        yield order[start:end]
