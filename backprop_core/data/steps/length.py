"""Drops rows that are too short or too long in tokens, counted with the base's tokenizer and chat template."""

from collections.abc import Sequence
from typing import Protocol

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.steps.row_step import Finding, RowStep, dropped
from backprop_core.data.token_lengths import Counted


class CountsTokens(Protocol):
    """What counts the tokens of rows: `token_lengths.Counter`."""

    def count(self, rows: Sequence[ChatRow]) -> list[Counted]:
        """Each row's tokens."""


def step(counter: CountsTokens, least: int | None, most: int | None) -> RowStep:
    """Drops rows with fewer tokens than `least` or more than `most`."""

    def judge(tokens: int) -> Finding | None:
        if least is not None and tokens < least:
            return dropped("too_short", f"{tokens} tokens")
        return dropped("too_long", f"{tokens} tokens") if most is not None and tokens > most else None

    return lambda rows: [judge(counted.tokens) for counted in counter.count(rows)]
