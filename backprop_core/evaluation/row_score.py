"""The score of one held-out row, what makes such scores, and how they are stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.records import Record
from backprop_core.schema.refs import Scores
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical


class RowScore(Record):
    """A held-out row: summed negative log-likelihood of its label tokens, and how many of them argmax predicts."""

    row: int
    loss: float
    tokens: int
    correct: int

    @property
    def exact(self) -> bool:
        return self.correct == self.tokens


class Scorer(Protocol):
    """Scores the rows that it holds, one by one; `on_progress` gets (done, total) examples."""

    def __call__(self, on_progress: OnProgress | None = None) -> list[RowScore]: ...


def commit(scores: Sequence[RowScore], record: dict[str, Any], *, preferences: bool, store: Store) -> Scores:
    """The scores of a held-out set, with their means."""
    tokens = sum(row.tokens for row in scores)
    with store.begin("scores") as directory:
        write_scores(scores, directory / "scores.jsonl")
        return store.commit(
            directory,
            Scores,
            record=record,
            rows=len(scores),
            tokens=tokens,
            loss=sum(row.loss for row in scores) / tokens,
            token_accuracy=sum(row.correct for row in scores) / tokens,
            exact_match=sum(row.exact for row in scores) / len(scores),
            preferences=preferences,
        )


def write_scores(scores: Sequence[RowScore], path: Path) -> None:
    lines = [canonical({**row.model_dump(), "exact": row.exact}) + "\n" for row in scores]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
