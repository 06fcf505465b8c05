"""Drops rows that are too short or too long in tokens, counted with the base's tokenizer and chat template."""

from collections.abc import Sequence
from typing import Protocol

from backprop_core.data.preference_rows import conversations
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.steps.row_step import Finding, RowStep, dropped
from backprop_core.data.token_lengths import Counted


class CountsTokens(Protocol):
    """What counts the tokens of rows: `token_lengths.Counter`."""

    def count(self, rows: Sequence[ChatRow]) -> list[Counted]:
        """Each row's tokens."""


def step(counter: CountsTokens, least: int | None, most: int | None) -> RowStep:
    """Drops rows with fewer tokens than `least` or more than `most`; of a preference, with either answer."""

    def judge(tokens: Sequence[int]) -> Finding | None:
        fewest, largest = min(tokens), max(tokens)
        if least is not None and fewest < least:
            return dropped("too_short", f"{fewest} tokens")
        return dropped("too_long", f"{largest} tokens") if most is not None and largest > most else None

    def judge_all(rows: Sequence[ChatRow]) -> Sequence[Finding | None]:
        said = [conversations(row) for row in rows]
        counted = iter(counter.count([one for some in said for one in some]))
        return [judge([next(counted).tokens for _ in some]) for some in said]

    return judge_all
