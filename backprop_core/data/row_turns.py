"""Converts the turns of a conversation, with ShareGPT's or OpenAI's field names, to those of a chat row.

A turn is `{"role", "content"}`. An assistant's may have `tool_calls`, `reasoning_content` and `weight: 0` (context, not
learned; weight 1 is left out); a tool's, `tool_call_id`; any, `name`. Content is always text, empty beside calls.
"""

from collections.abc import Sequence
from typing import Any

from backprop_core.data.file_readers import Malformed
from backprop_core.data.tool_calls import (
    Turn,
    calls_of,
    check_answers,
    encodable,
    from_json,
    written_calls,
)
from backprop_core.data.unsupported_fields import ONE, ZERO, is_one_of, refuse_turn, untrained

ROLES = {
    **dict.fromkeys(["system", "developer"], "system"),
    **dict.fromkeys(["user", "human"], "user"),
    **dict.fromkeys(["assistant", "gpt", "chatgpt", "model", "bot", "function_call"], "assistant"),
    **dict.fromkeys(["tool", "function", "observation", "ipython"], "tool"),
}
CALLS = "function_call"  # a ShareGPT speaker whose text is a call
REASONING = ("reasoning_content", "reasoning", "thinking")
UNDERSTOOD = {
    "system": {"name"},
    "user": {"name"},
    "assistant": {"name", "weight", "tool_calls", "function_call", *REASONING},
    "tool": {"name", "tool_call_id"},
}


def message(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def conversation(value: Any, field: str, system: Sequence[Turn] = ()) -> list[Turn]:
    """The turns of a list (or its JSON text), after the `system` turn beside it. Raises Malformed.

    One turn may be the system prompt. Each tool's answer belongs to a call before it.
    """
    listed = from_json(value, "not_json", repr(field)) if is_json_list(value) else value
    if not isinstance(listed, list):
        raise Malformed("missing_field", f"no list {field!r}")
    inside = [turn(one) for one in listed]
    spoken = [one for one in inside if one["role"] == "system"]
    beside = [] if list(system) == spoken[:1] else list(system)
    if len(beside) + len(spoken) > 1:
        raise Malformed("second_system", "the row has a second system prompt")
    turns = [*beside, *inside]
    check_answers(turns)
    return turns


def is_json_list(value: Any) -> bool:
    """Whether it is the JSON text of a list, as in a CSV cell."""
    return isinstance(value, str) and value.lstrip().startswith("[")


def turn(value: Any) -> Turn:
    """One turn. Raises Malformed for what is ill-formed, and for fields that are not understood."""
    if not isinstance(value, dict):
        raise Malformed("not_an_object", "a turn is not an object")
    named = one_of(value, "role", "from")
    role = ROLES.get(named) if isinstance(named, str) else None
    refuse_others(value, role)
    if role is None:
        raise Malformed("unknown_role", f"unknown role {named!r}")
    if role == "assistant":
        return assistant(value, writes_calls=named == CALLS)
    made = {**message(role, text_of(value)), **optional_texts(value, "name")}
    if role == "tool":
        made |= optional_texts(value, "tool_call_id")
    return made


def refuse_others(value: Turn, role: str | None) -> None:
    """Raise Malformed for fields of a turn that have a meaning and are not understood."""
    learned = role in (None, "assistant")
    understood = UNDERSTOOD.get(role or "", set())
    refuse_turn({name: item for name, item in value.items() if name not in understood}, learned=learned)
    for part in text_parts(one_of(value, "content", "value")):
        refuse_turn(part, learned=learned)


def assistant(value: Turn, *, writes_calls: bool) -> Turn:
    """An assistant's turn: text, calls, reasoning and weight."""
    calls = [*calls_of(value.get("tool_calls")), *legacy_calls(value)]
    if writes_calls:
        calls += written_calls(text_of(value))
    silent = writes_calls or (calls and one_of(value, "content", "value") is None)
    made = message("assistant", "" if silent else text_of(value))
    made |= optional_texts(value, "name")
    if reasoning := reasoning_of(value):
        made["reasoning_content"] = reasoning
    if calls:
        made["tool_calls"] = calls
    return made | weight_of(value)


def legacy_calls(value: Turn) -> list[Turn]:
    """The call of OpenAI's legacy `function_call`: an object, or its JSON text."""
    given = value.get("function_call")
    if given in (None, "", {}):
        return []
    return written_calls(given) if isinstance(given, str) else calls_of([given])


def reasoning_of(value: Turn) -> str:
    """The reasoning, under any of its names; empty if there is none."""
    found = {name: value[name] for name in REASONING if value.get(name) not in (None, "", [], {}, False)}
    if len({str(text) for text in found.values()}) > 1:
        raise Malformed("said_twice", f"a turn has different {' and '.join(found)}")
    for name, text in found.items():
        return checked(text, name) if checked(text, name).strip() else ""
    return ""


def weight_of(value: Turn) -> Turn:
    """`{"weight": 0}` for a turn that is not learned. Raises Malformed for a weight between 0 and 1, and any other."""
    given = value.get("weight")
    if is_one_of(given, ONE):
        return {}
    if is_one_of(given, ZERO):
        return {"weight": 0}
    raise untrained("a turn", "weight", given)


def optional_texts(value: Turn, field: str) -> Turn:
    """The field, if the turn has text there."""
    text = optional(value, field)
    return {field: text} if text else {}


def text_of(value: Turn) -> str:
    """A turn's text."""
    text = one_of(value, "content", "value")
    field = "content" if "content" in value else "value"
    return required(value, field) if text is None else checked(text, field)


def required(row: Turn, field: str) -> str:
    if field not in row:
        raise Malformed("missing_field", f"no field {field!r}")
    return checked(row[field], field)


def optional(row: Turn, field: str) -> str:
    """A field's text; empty if it is missing or null."""
    return "" if row.get(field) is None else checked(row[field], field)


def checked(value: Any, field: str) -> str:
    """`value` if it is text that UTF-8 can encode; joins the text parts of an OpenAI message. Raises Malformed."""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        return "".join(required(part, "text") for part in value)
    if not isinstance(value, str):
        raise Malformed("not_text", f"{field!r} is {what_it_is(value)}, not text")
    return encodable(value)


def what_it_is(value: Any) -> str:
    """A value's type; for a list, the types of its parts that are not text, as named in an OpenAI message."""
    named = [part.get("type") for part in value if isinstance(part, dict)] if isinstance(value, list) else []
    parts = sorted({str(name) for name in named} - {"text"})
    return f"a list with {', '.join(parts)}" if parts else type(value).__name__


def text_parts(content: Any) -> list[Turn]:
    """The text parts of an OpenAI message; none for plain text."""
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict) and part.get("type") == "text"]


def one_of(value: Turn, name: str, other: str) -> Any:
    """A turn's value under one of two names. Raises Malformed if both have different values."""
    first, second = value.get(name), value.get(other)
    if first is not None and second is not None and first != second:
        raise Malformed("said_twice", f"a turn has {name!r} and a different {other!r}")
    return second if first is None else first


def texts_of(turns: Sequence[Turn]) -> list[str]:
    """The texts that training reads in these turns: content and reasoning."""
    return [turn[name] for turn in turns for name in ("content", "reasoning_content") if name in turn]


def learned(turn: Turn) -> bool:
    """Whether training learns this turn: an assistant's text or calls, unless its weight is 0."""
    says = turn["content"].strip() or turn.get("tool_calls")
    return turn["role"] == "assistant" and bool(says) and turn.get("weight") != 0
