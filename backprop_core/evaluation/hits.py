"""The score of each held-out row, as the gate compares it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.schema.refs import ByteScores, Ratings, Scores
from backprop_core.store.artifacts import Store

Row = Mapping[str, Scores | Ratings | ByteScores]


class Hits(NamedTuple):
    """Per held-out row (r): its points, out of how many, and its number in the set where rows may be left out."""

    right_r: NDArray[np.float64]
    all_r: NDArray[np.int64]
    number_r: Sequence[int] = ()

    @property
    def rows(self) -> int:
        return len(self.all_r)

    @property
    def score(self) -> float:
        return float(self.right_r.sum() / self.all_r.sum()) if self.rows else 0.0

    def is_of_rows_of(self, other: "Hits") -> bool:
        """Whether both are of the same rows in the same tokens, so that they can be compared row by row."""
        return np.array_equal(self.all_r, other.all_r) and self.number_r == other.number_r


def hits_of(row: Row, metric: str, store: Store) -> dict[str, Hits]:
    return {task: hits(scores, metric, store) for task, scores in row.items()}


def hits(scores: Scores | Ratings | ByteScores, metric: str, store: Store) -> Hits:
    """The score of each row: per label token for token_accuracy and (negated) loss, else for the row as a whole.

    ByteScores count (negated) bits per byte, or whole rows. Preferences count their points in every metric: if a tie
    were plainly wrong, noise alone would be a gain over the base. Rows without a label token are left out.
    """
    if scores.artifact == "ratings":
        return whole_rows([row["score"] for row in read_scores(store.local(scores) / "ratings.jsonl")])
    if scores.artifact == "byte_scores":
        rows = read_scores(store.local(scores) / ByteScores.FILE)
        if metric == "exact_match":
            return whole_rows([float(row["exact"]) for row in rows], numbers(rows))
        sizes = np.array([row["bytes"] for row in rows], dtype=np.int64)
        return Hits(np.array([-row["bits"] for row in rows]), sizes, numbers(rows))
    if isinstance(scores, Scores) and scores.preferences:
        metric = "token_accuracy"
    rows = [row for row in read_scores(store.local(scores) / "scores.jsonl") if row["tokens"]]
    if metric == "exact_match":
        return whole_rows([float(row["exact"]) for row in rows], numbers(rows))
    right = [-row["loss"] if metric == "loss" else float(row["correct"]) for row in rows]
    return Hits(np.array(right), np.array([row["tokens"] for row in rows], dtype=np.int64), numbers(rows))


def whole_rows(right: list[float], number_r: Sequence[int] = ()) -> Hits:
    return Hits(np.array(right), np.ones(len(right), dtype=np.int64), number_r)


def numbers(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [row["row"] for row in rows]


def read_scores(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def changes_by_one(candidate: Hits, rival: Hits) -> float:
    """The smallest possible change of a row: 1 if rows or tokens are counted, else 0."""
    values_r = np.concatenate([candidate.right_r, rival.right_r])
    return float((values_r == np.rint(values_r)).all())
