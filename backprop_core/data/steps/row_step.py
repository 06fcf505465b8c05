"""What a step that looks at one row at a time takes and returns, and the texts of a row."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_lineage import Outcome

NOT_TEXT = {"role", "type", "id", "tool_call_id", "name"}  # keys of a turn whose values are no free text
ARGUMENTS = "arguments"


class Finding(NamedTuple):
    """What a step finds in a row: what becomes of it and why.

    `row` is the changed row, of a kept one; of others, what may be shown of it.
    """

    outcome: Outcome
    reason: str
    detail: str = ""
    row: ChatRow | None = None


RowStep: TypeAlias = Callable[[Sequence[ChatRow]], Sequence[Finding | None]]  # None: nothing found


def dropped(reason: str, detail: str = "") -> Finding:
    return Finding("dropped", reason, detail)


def rewritten(value: Any, change: Callable[[str], str], kept: Collection[str] = NOT_TEXT) -> Any:
    """A row with all its free text changed, at any depth; all text in the arguments of a call is free."""
    match value:
        case str():
            return change(value)
        case list():
            return [rewritten(item, change, kept) for item in value]
        case dict():
            inside = {name: () if name == ARGUMENTS else kept for name in value}
            return {
                name: item if name in kept else rewritten(item, change, inside[name]) for name, item in value.items()
            }
    return value


def last_answer(row: ChatRow) -> str:
    """The text of a row's last answer; of raw text all."""
    answers = [turn["content"] for turn in row.get("messages", ()) if turn["role"] == "assistant"]
    return str(row["text"]) if "text" in row else str(answers[-1] if answers else "")


def last_question(row: ChatRow) -> str:
    """The text of the last user turn; empty if there is none."""
    asked = [turn["content"] for turn in row.get("messages", ()) if turn["role"] == "user"]
    return str(asked[-1]) if asked else ""
