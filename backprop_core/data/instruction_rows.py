"""Converts rows with question and answer in fields of their own: Alpaca, prompt-completion, question-answer."""

from typing import Any

from backprop_core.data.file_readers import Malformed
from backprop_core.data.row_turns import ROLES, checked, conversation, message, optional, required
from backprop_core.data.tool_calls import Turn

Turns = list[Turn]


def system_of(row: Turn) -> Turns:
    """The system turn, from a row's `system` field."""
    content = optional(row, "system")
    return [message("system", content)] if content else []


def alpaca(row: Turn) -> Turn:
    """The question is instruction and input on separate lines; history is a list of (question, answer)."""
    return {"messages": [*system_of(row), *instructed(row), message("assistant", required(row, "output"))]}


def instructed(row: Turn) -> Turns:
    """The history and the question of an Alpaca row."""
    question = "\n".join(filter(None, [required(row, "instruction"), optional(row, "input")]))
    earlier = [message(*turn) for pair in history_of(row) for turn in zip(("user", "assistant"), pair, strict=True)]
    return [*earlier, message("user", question)]


def history_of(row: Turn) -> list[tuple[str, str]]:
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Malformed("not_text", "'history' is not a list of (question, answer)")
    return [(checked(asked, "history"), checked(answered, "history")) for asked, answered in pairs]


def question_answer(row: Turn) -> Turn:
    """One question and its answer."""
    turns = [message("user", required(row, "question")), message("assistant", required(row, "answer"))]
    return {"messages": [*system_of(row), *turns]}


def prompt_completion(row: Turn) -> Turn:
    """A question and its answer, each a text, a turn or a list of turns. Only the completion's turns are learned."""
    asked, answered = side(row, "prompt", "user"), side(row, "completion", "assistant")
    whole = [*map(unlearned, asked), *answered]
    return {"messages": conversation(whole, "prompt", system_of(row))}


def side(row: Turn, field: str, role: str) -> list[Any]:
    """A field's turns as they are written: those of a list, or one turn, or a text as one turn of `role`."""
    value = row.get(field)
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        return value
    return [message(role, required(row, field))]


def unlearned(turn: Any) -> Any:
    """The turn as context alone: an assistant's has the weight 0."""
    if not isinstance(turn, dict):
        return turn
    speaker = turn.get("role", turn.get("from"))
    return {**turn, "weight": 0} if isinstance(speaker, str) and ROLES.get(speaker) == "assistant" else turn
