"""Converts rows of all known formats (ShareGPT, OpenAI messages, Alpaca, prompt-completion, …) to chat rows.

A chat row is `{"messages": [{"role": …, "content": …}, …]}` with the roles system, user, assistant and tool, or
`{"text": …}` for raw text, which has no turns: training learns all of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from backprop_core.data.file_readers import Malformed
from backprop_core.data.unsupported_fields import refuse_turn

ChatRow: TypeAlias = dict[str, Any]
Row: TypeAlias = dict[str, Any]

ROLES = {
    **dict.fromkeys(["system", "developer"], "system"),
    **dict.fromkeys(["user", "human"], "user"),
    **dict.fromkeys(["assistant", "gpt", "chatgpt", "model", "function_call"], "assistant"),
    **dict.fromkeys(["tool", "function", "observation"], "tool"),
}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def system_of(row: Row) -> list[dict[str, str]]:
    """The system turn, from a row's `system` field."""
    content = optional(row, "system")
    return [message("system", content)] if content else []


def required(row: Row, field: str) -> str:
    if field not in row:
        raise Malformed("missing_field", f"no field {field!r}")
    return checked(row[field], field)


def optional(row: Row, field: str) -> str:
    """A field's text; empty if it is missing or null."""
    return "" if row.get(field) is None else checked(row[field], field)


def checked(value: Any, field: str) -> str:
    """`value` if it is text that UTF-8 can encode; joins the text parts of an OpenAI message. Raises Malformed."""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        return "".join(required(part, "text") for part in value)
    if not isinstance(value, str):
        raise Malformed("not_text", f"{field!r} is {what_it_is(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Malformed("not_unicode", f"{field!r} has half a surrogate pair") from error
    return value


def what_it_is(value: Any) -> str:
    """A value's type; for a list, the types of its parts that are not text, as named in an OpenAI message."""
    named = [part.get("type") for part in value if isinstance(part, dict)] if isinstance(value, list) else []
    parts = sorted({str(name) for name in named} - {"text"})
    return f"a list with {', '.join(parts)}" if parts else type(value).__name__


def turns(row: Row, field: str) -> ChatRow:
    """Convert a list of turns with ShareGPT's or OpenAI's field names; one may be the system turn."""
    if not isinstance(row.get(field), list):
        raise Malformed("missing_field", f"no list {field!r}")
    beside, inside = system_of(row), [turn(value) for value in row[field]]
    spoken = [one for one in inside if one["role"] == "system"]
    if beside == spoken[:1]:
        beside = []
    if len(beside) + len(spoken) > 1:
        raise Malformed("second_system", "the row has a second system prompt")
    return {"messages": [*beside, *inside]}


def turn(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Malformed("not_an_object", "a turn is not an object")
    role = one_of(value, "role", "from")
    known = ROLES.get(role) if isinstance(role, str) else None
    for part in [value, *text_parts(one_of(value, "content", "value"))]:
        refuse_turn(part, learned=known in (None, "assistant"))
    if known is None:
        raise Malformed("unknown_role", f"unknown role {role!r}")
    text = one_of(value, "content", "value")
    field = "content" if "content" in value else "value"
    return message(known, required(value, field) if text is None else checked(text, field))


def text_parts(content: Any) -> list[Row]:
    """The text parts of an OpenAI message; none for plain text."""
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict) and part.get("type") == "text"]


def one_of(value: Row, name: str, other: str) -> Any:
    """A turn's value under one of two names. Raises Malformed if both have different values."""
    first, second = value.get(name), value.get(other)
    if first is not None and second is not None and first != second:
        raise Malformed("said_twice", f"a turn has {name!r} and a different {other!r}")
    return second if first is None else first


def alpaca(row: Row) -> ChatRow:
    """The question is instruction and input on separate lines; history is a list of (question, answer)."""
    question = "\n".join(filter(None, [required(row, "instruction"), optional(row, "input")]))
    messages = system_of(row)
    for asked, answered in [*history_of(row), (question, required(row, "output"))]:
        messages += [message("user", asked), message("assistant", answered)]
    return {"messages": messages}


def history_of(row: Row) -> list[tuple[str, str]]:
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Malformed("not_text", "'history' is not a list of (question, answer)")
    return [(checked(asked, "history"), checked(answered, "history")) for asked, answered in pairs]


def pair(row: Row, question: str, answer: str) -> ChatRow:
    """One question and its answer."""
    turns = [message("user", required(row, question)), message("assistant", required(row, answer))]
    return {"messages": [*system_of(row), *turns]}


class Format(NamedTuple):
    """A row format: its required and optional fields, and the conversion to a chat row."""

    required: list[str]
    optional: list[str]
    convert: Callable[[Row], ChatRow]

    @property
    def fields(self) -> set[str]:
        return {*self.required, *self.optional}


FORMATS = {
    "sharegpt": Format(["conversations"], ["system"], lambda row: turns(row, "conversations")),
    "messages": Format(["messages"], ["system"], lambda row: turns(row, "messages")),
    "alpaca": Format(["instruction", "output"], ["input", "system", "history"], alpaca),
    "prompt-completion": Format(["prompt", "completion"], ["system"], lambda row: pair(row, "prompt", "completion")),
    "question-answer": Format(["question", "answer"], ["system"], lambda row: pair(row, "question", "answer")),
    "text": Format(["text"], [], lambda row: {"text": required(row, "text")}),
}
