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
from backprop_core.evaluation.scored_by_both import both
from backprop_core.schema.refs import ByteScores, RowsRef, Scores
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

SAID = ("content", "reasoning_content")  # texts of a turn that a model learns to write
METRIC = "bits_per_byte"  # negated in the gate, like the loss, so that higher is better


def per_byte(scores: Scores, other: Scores, rows: RowsRef, *, store: Store) -> ByteScores:
    """The bits and bytes of each row that has a label token under both tokenizers, and whether it is an exact match.

    Raises NoRows if there is none.
    """
    sizes = [answer_bytes(row) for row in row_files.load(store.local(rows))]
    made = [
        {"row": row, "bits": score["loss"] / math.log(2), "bytes": sizes[row], "exact": score["exact"]}
        for row, score in both(scores, other, store).items()
    ]
    total = sum(one["bytes"] for one in made)
    record = {"stage": "per_byte", "scores": scores.digest, "heldout": rows.digest}
    with store.begin(ByteScores.artifact) as directory:
        text = "".join(canonical(one) + "\n" for one in made)
        (directory / ByteScores.FILE).write_text(text, encoding="utf-8", newline="\n")
        bits = sum(one["bits"] for one in made) / total
        return store.commit(directory, ByteScores, record=record, rows=len(made), bytes=total, bits=bits)


def answer_bytes(row: ChatRow) -> int:
    """The bytes of what a row teaches: its answers with reasoning and calls, or its text. At least 1."""
    if "text" in row:
        return max(len(row["text"].encode()), 1)
    answers = (turn for place, turn in enumerate(row["messages"]) if place and learned(turn))
    return max(sum(map(turn_bytes, answers)), 1)


def turn_bytes(turn: dict[str, Any]) -> int:
    calls = canonical(turn["tool_calls"]) if turn.get("tool_calls") else ""
    return len("".join([*(turn.get(name) or "" for name in SAID), calls]).encode(errors="replace"))
