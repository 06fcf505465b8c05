"""The rows that two models have both scored, so that they can be compared row by row.

What a tokenizer makes too long is left out, so models with two tokenizers may have scored different rows of a set.
"""

from typing import Any

from backprop_core.errors import NoRows
from backprop_core.evaluation.hits import read_scores
from backprop_core.evaluation.row_score import RowScore, commit
from backprop_core.schema.refs import Scores
from backprop_core.store.artifacts import Store


def scored_by_both(scores: Scores, other: Scores, *, store: Store) -> Scores:
    """The scores of the rows that the other model has scored too. Raises NoRows if there is none."""
    kept = both(scores, other, store).values()
    rows = [RowScore(**{name: row[name] for name in RowScore.model_fields}) for row in kept]
    record = {"stage": "scored_by_both", "scores": scores.digest, "other": other.digest}
    return commit(rows, record, preferences=scores.preferences, store=store)


def both(scores: Scores, other: Scores, store: Store) -> dict[int, dict[str, Any]]:
    """The scores of the rows that have a label token for both models, by row. Raises NoRows if there is none."""
    own, rival = by_row(scores, store), by_row(other, store)
    kept = {row: score for row, score in own.items() if row in rival}
    if not kept:
        raise NoRows("no held-out row fits both models, so they cannot be compared", hint="raise training.max_length")
    return kept


def by_row(scores: Scores, store: Store) -> dict[int, dict[str, Any]]:
    """The scores of the rows that have a label token, by row."""
    return {row["row"]: row for row in read_scores(store.local(scores) / "scores.jsonl") if row["tokens"]}
