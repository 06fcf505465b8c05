"""The score of one held-out row, and what makes such scores."""

from typing import Protocol

from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.records import Record


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
