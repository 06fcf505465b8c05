"""Converts what applications log of an OpenAI-compatible endpoint: `{"request": …, "response": …}`.

The answer in the response is learned; the request's turns are its context. Both may be JSON texts.
"""

from typing import Any

from backprop_core.data.file_readers import Malformed
from backprop_core.data.instruction_rows import unlearned
from backprop_core.data.row_turns import conversation, texts_of
from backprop_core.data.tool_calls import Turn, from_json, tools_of
from backprop_core.data.unsupported_fields import refuse_row

FINISHED = (None, "stop", "tool_calls", "function_call")
REQUESTED = {"messages", "tools", "functions"}


def is_logged(row: Turn) -> bool:
    """Whether the row's `request` is an object with messages, or may be its JSON text."""
    request = row["request"]
    return request.lstrip().startswith("{") if isinstance(request, str) else isinstance(request, dict)


def logged(row: Turn) -> Turn:
    """The request's conversation with the response's one answer. Raises Malformed for one that did not finish."""
    request, choice = opened(row, "request"), choice_of(opened(row, "response"))
    answer = choice.get("message")
    if not isinstance(answer, dict):
        raise Malformed("missing_field", "the response's choice has no message")
    asked = request.get("messages")
    if not isinstance(asked, list):
        raise Malformed("missing_field", "the request has no list 'messages'")
    turns = conversation([*map(unlearned, asked), {"role": "assistant", **answer}], "messages")
    used = REQUESTED | ({"tool_choice"} if request.get("tool_choice") == "auto" else set())
    refuse_row(request, used=used, said=texts_of(turns))
    tools = tools_of(request)
    return {"messages": turns, **({"tools": tools} if tools else {})}


def choice_of(response: Turn) -> Turn:
    """The response's only choice. Raises Malformed."""
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Malformed("missing_field", "the response has no choices")
    if len(choices) > 1:
        raise Malformed("choices", f"the response has {len(choices)} choices: log the one that was used")
    choice: Turn = choices[0]
    if choice.get("finish_reason") not in FINISHED:
        raise Malformed("unfinished", f"the answer ended with {choice['finish_reason']!r}, not with a stop")
    return choice


def opened(row: Turn, field: str) -> Turn:
    """An object, or its JSON text. Raises Malformed."""
    value: Any = row.get(field)
    value = from_json(value, "not_json", repr(field)) if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise Malformed("not_an_object", f"{field!r} is not an object")
    return value
