"""The known row formats (ShareGPT, OpenAI messages, Alpaca, logs, preferences, …) and their conversion to chat rows.

A chat row is `{"messages": [turn, …], "tools"?: [tool, …]}` (see `row_turns` and `tool_calls`), or `{"text": …}` for
raw text, which has no turns: training learns all of it. Rows that judge answers have `chosen` and `rejected`, or a
`label` (see `preference_rows`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from backprop_core.data.instruction_rows import alpaca, prompt_completion, question_answer, system_of
from backprop_core.data.logged_rows import is_logged, logged
from backprop_core.data.openai_preferences import is_request, openai_preference
from backprop_core.data.preference_rows import preference
from backprop_core.data.row_turns import conversation, required

ChatRow: TypeAlias = dict[str, Any]
Row: TypeAlias = dict[str, Any]


def turns(row: Row, field: str) -> ChatRow:
    """The turns of a list, after the system turn beside it."""
    return {"messages": conversation(row.get(field), field, system_of(row))}


def always(row: Row) -> bool:
    return True


class Format(NamedTuple):
    """A row format: its required and optional fields, and the conversion to a chat row."""

    required: list[str]
    optional: list[str]
    convert: Callable[[Row], ChatRow]
    suits: Callable[[Row], bool] = always

    @property
    def fields(self) -> set[str]:
        return {*self.required, *self.optional}

    def has(self, row: Row) -> bool:
        """Whether the row has all required fields, also without a value."""
        return row.keys() >= set(self.required)

    def fits(self, row: Row) -> bool:
        """Whether the row has a value in every required field."""
        return all(row.get(name) is not None for name in self.required) and self.suits(row)


# A row that fits several is of the first: the one that says most about it.
FORMATS = {
    "log": Format(["request", "response"], [], logged, is_logged),
    "preference": Format(
        ["chosen", "rejected"],
        ["prompt", "question", "instruction", "input", "history", "messages", "conversations", "system", "tools"],
        preference,
    ),
    "openai-preference": Format(
        ["input", "preferred_output", "non_preferred_output"], [], openai_preference, is_request
    ),
    "sharegpt": Format(["conversations"], ["system", "tools"], lambda row: turns(row, "conversations")),
    "messages": Format(["messages"], ["system", "tools"], lambda row: turns(row, "messages")),
    "alpaca": Format(["instruction", "output"], ["input", "system", "history", "tools"], alpaca),
    "prompt-completion": Format(["prompt", "completion"], ["system", "tools"], prompt_completion),
    "question-answer": Format(["question", "answer"], ["system", "tools"], question_answer),
    "text": Format(["text"], [], lambda row: {"text": required(row, "text")}),
}
