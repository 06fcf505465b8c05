"""Reads tools and tool calls in the spellings of OpenAI, ShareGPT and their JSON texts, and checks who answers whom.

A call becomes `{"type": "function", "id"?, "function": {"name", "arguments": {…}}}` and a tool
`{"type": "function", "function": {"name", …}}`: the form that servers hand to a chat template.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from backprop_core.data.file_readers import Malformed

Turn: TypeAlias = dict[str, Any]

BAD_CALL = "bad_call"
BAD_TOOLS = "bad_tools"
NO_CALL = "answer_to_no_call"
DEEPEST = 64  # levels of nested arguments


def calls_of(value: Any) -> list[Turn]:
    """The calls of a turn's `tool_calls`, a list or its JSON text; empty for null. Raises Malformed."""
    listed = from_json(value, BAD_CALL, "tool_calls") if isinstance(value, str) else value
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise Malformed(BAD_CALL, "'tool_calls' is not a list")
    return [call_of(one) for one in listed]


def written_calls(text: str) -> list[Turn]:
    """The calls of a ShareGPT function_call turn: JSON text of one call, or of a list of them. Raises Malformed."""
    value = from_json(text, BAD_CALL, "the function_call")
    calls = [call_of(one) for one in (value if isinstance(value, list) else [value])]
    if not calls:
        raise Malformed(BAD_CALL, "the function_call is an empty list")
    return calls


def call_of(value: Any) -> Turn:
    """One call, in OpenAI's form or as a bare `{"name", "arguments"}`. Raises Malformed."""
    if not isinstance(value, dict):
        raise Malformed(BAD_CALL, "a tool call is not an object")
    if value.get("type") not in (None, "function"):
        raise Malformed(BAD_CALL, f"a tool call has the type {value['type']!r}, not 'function'")
    function = value if value.get("function") is None else value["function"]
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Malformed(BAD_CALL, "a tool call has no function name")
    made: Turn = {"name": plain(name, BAD_CALL), "arguments": arguments_of(function)}
    given = value.get("id")
    if given is not None and not isinstance(given, str):
        raise Malformed(BAD_CALL, "a tool call's id is not text")
    return {"type": "function", **({"id": plain(given, BAD_CALL)} if given else {}), "function": made}


def arguments_of(function: Turn) -> Turn:
    """A call's arguments: an object, or its JSON text. Missing, null and empty ones are `{}`. Raises Malformed."""
    value = function.get("arguments")
    if isinstance(value, str) and value.strip():
        value = from_json(value, BAD_CALL, f"the arguments of {function['name']!r}")
    value = {} if value in (None, "") or (isinstance(value, str) and not value.strip()) else value
    if not isinstance(value, dict):
        raise Malformed(BAD_CALL, f"the arguments of {function['name']!r} are not a JSON object")
    made: Turn = plain(value, BAD_CALL)
    return made


def tools_of(row: Turn) -> list[Turn]:
    """The tools of a row, from `tools` or the legacy `functions`; empty if it has none. Raises Malformed."""
    found = [listed_tools(row[name], name) for name in ("tools", "functions") if row.get(name) is not None]
    said = [tools for tools in found if tools]
    if len(said) == 2 and said[0] != said[1]:
        raise Malformed("said_twice", "the row has 'tools' and different 'functions'")
    return said[0] if said else []


def listed_tools(value: Any, name: str) -> list[Turn]:
    if isinstance(value, str):
        value = from_json(value, BAD_TOOLS, repr(name)) if value.strip() else []
    value = [] if value in (None, {}) else value
    if not isinstance(value, list):
        raise Malformed(BAD_TOOLS, f"{name!r} is not a list")
    return [tool_of(from_json(one, BAD_TOOLS, "a tool") if isinstance(one, str) else one) for one in value]


def tool_of(value: Any) -> Turn:
    """A tool in OpenAI's form, also from a bare `{"name", "description", "parameters"}`. Raises Malformed."""
    bare = isinstance(value, dict) and value.get("function") is None
    function = value if bare or not isinstance(value, dict) else value["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Malformed(BAD_TOOLS, "a tool has no function name")
    if not bare and value.get("type") not in (None, "function"):
        raise Malformed(BAD_TOOLS, f"a tool has the type {value['type']!r}, not 'function'")
    own = {name: item for name, item in function.items() if not (bare and name in ("type", "function"))}
    made: Turn = plain({"type": "function", "function": own}, BAD_TOOLS)
    return made


def check_answers(turns: Sequence[Turn]) -> None:
    """Raise Malformed for a tool turn that answers no call.

    Tool turns follow the assistant turn that they answer. With calls there, each answers one of them, by its id if it
    has one; without, the calls are written in the assistant's text, and the tool turn may carry no id.
    """
    waiting: list[Turn] | None = None  # calls of the last assistant turn without an answer; None: not after one
    in_text = False
    for turn in turns:
        if turn["role"] == "assistant":
            waiting = list(turn.get("tool_calls", ()))
            in_text = not waiting
        elif turn["role"] != "tool":
            waiting = None
        elif waiting is None or (in_text and turn.get("tool_call_id")):
            raise Malformed(NO_CALL, "a tool's answer follows no call")
        elif not in_text:
            waiting.remove(answered_call(turn, waiting))


def answered_call(turn: Turn, waiting: Sequence[Turn]) -> Turn:
    """The call that a tool turn answers: by id, by the function's name, or else the first one."""
    given, name = turn.get("tool_call_id"), turn.get("name")
    for call in waiting:
        known = call.get("id")
        if given and known and given != known:
            continue
        if not (given and known) and name and name != call["function"]["name"]:
            continue
        return call
    raise Malformed(NO_CALL, f"a tool's answer {given or name or ''!r} belongs to no call before it")


def from_json(text: str, reason: str, what: str) -> Any:
    """Parse JSON text in a row. Raises Malformed."""
    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Malformed(reason, f"{what} is not JSON: {str(error)[:80]}") from error


def once(pairs: list[tuple[str, Any]]) -> Turn:
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a duplicate key")
    return made


def no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def plain(value: Any, reason: str, depth: int = 0) -> Any:
    """`value` if it is plain JSON that UTF-8 can encode. Raises Malformed."""
    if depth > DEEPEST:
        raise Malformed(reason, f"nested deeper than {DEEPEST} levels")
    match value:
        case dict():
            return {name_of(name, reason): plain(item, reason, depth + 1) for name, item in value.items()}
        case list():
            return [plain(item, reason, depth + 1) for item in value]
        case str():
            return encodable(value)
        case float() if not math.isfinite(value):
            raise Malformed(reason, f"{value} is not JSON")
        case None | bool() | int() | float():
            return value
    raise Malformed(reason, f"{type(value).__name__} is not JSON")


def name_of(name: Any, reason: str) -> str:
    if not isinstance(name, str):
        raise Malformed(reason, "a key is not text")
    return encodable(name)


def encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Malformed("not_unicode", "a text has half a surrogate pair") from error
    return text


def strings_in(value: Any) -> Iterable[str]:
    """All strings in a JSON value, keys included."""
    match value:
        case str():
            yield value
        case dict():
            for name, item in value.items():
                yield name
                yield from strings_in(item)
        case list():
            for item in value:
                yield from strings_in(item)
