"""Scores by the bytes of the answers, so that two models with different tokenizers can be compared row by row.

A tokenizer decides how many label tokens an answer has, so losses per token and token accuracies of two tokenizers are
about different things. The negative log-likelihood of the whole answer is not: both models give a probability to the
same text. Divided by the bytes of the text it is the bits per byte of the field [Gao et al. 2020, arXiv 2101.00027,
section 3.1]. What a template writes around an answer, such as its stop token, counts with the answer's bits.
"""

import math
from typing import Any

from backprop_core.data import row_files
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_turns import learned
from backprop_core.errors import NoRows
from backprop_core.evaluation.hits import read_scores
from backprop_core.schema.refs import ByteScores, RowsRef, Scores
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

SAID = ("content", "reasoning_content")  # texts of a turn that a model learns to write
METRIC = "bits_per_byte"  # negated in the gate, like the loss, so that higher is better


def per_byte(scores: Scores, other: Scores, rows: RowsRef, *, store: Store) -> ByteScores:
    """The bits and bytes of each row that has a label token under both tokenizers, and whether it is an exact match.

    Raises NoRows if there is none.
    """
    own, rival = by_row(scores, store), by_row(other, store)
    sizes = map(answer_bytes, row_files.load(store.local(rows)))
    made = [
        {"row": row, "bits": own[row]["loss"] / math.log(2), "bytes": size, "exact": own[row]["exact"]}
        for row, size in enumerate(sizes)
        if row in own and row in rival
    ]
    if not made:
        raise NoRows("no held-out row fits both models, so they cannot be compared", hint="raise training.max_length")
    total = sum(one["bytes"] for one in made)
    record = {"stage": "per_byte", "scores": scores.digest, "heldout": rows.digest}
    with store.begin(ByteScores.artifact) as directory:
        text = "".join(canonical(one) + "\n" for one in made)
        (directory / ByteScores.FILE).write_text(text, encoding="utf-8", newline="\n")
        bits = sum(one["bits"] for one in made) / total
        return store.commit(directory, ByteScores, record=record, rows=len(made), bytes=total, bits=bits)


def by_row(scores: Scores, store: Store) -> dict[int, dict[str, Any]]:
    """The scores of the rows that have a label token, by row."""
    return {row["row"]: row for row in read_scores(store.local(scores) / "scores.jsonl") if row["tokens"]}


def answer_bytes(row: ChatRow) -> int:
    """The bytes of what a row teaches: its answers with reasoning and calls, or its text. At least 1."""
    if "text" in row:
        return max(len(row["text"].encode()), 1)
    answers = (turn for place, turn in enumerate(row["messages"]) if place and learned(turn))
    return max(sum(map(turn_bytes, answers)), 1)


def turn_bytes(turn: dict[str, Any]) -> int:
    calls = canonical(turn["tool_calls"]) if turn.get("tool_calls") else ""
    return len("".join([*(turn.get(name) or "" for name in SAID), calls]).encode(errors="replace"))
