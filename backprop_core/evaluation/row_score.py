"""The score of one held-out row."""

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
