"""Finds what a row carries and its chat template does not write, and writes it as text if that is asked.

The text form is that of Hermes and Qwen: tools after the system prompt between `<tools>` and `</tools>`, a call between
`<tool_call>` and `</tool_call>`, its answer in a user's turn between `<tool_response>` and `</tool_response>`, and
reasoning before the answer between `<think>` and `</think>`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from backprop_core.data.row_turns import learned, message
from backprop_core.data.tool_calls import Turn

CALLS = (
    "# Tools\n\nYou may call the functions below. To call one, write its name and arguments as a JSON object between "
    '<tool_call> and </tool_call>, like <tool_call>\n{"name": "NAME", "arguments": {}}\n</tool_call>\n\n<tools>\n'
)
MORE = "x"  # makes another text of one
Turns = Sequence[Mapping[str, Any]]


class Write(Protocol):
    """Renders turns with a chat template."""

    def __call__(self, turns: Turns, tools: Turns = (), *, begins: bool = False) -> str: ...


def carries_more(row: Turn) -> bool:
    """Whether a row has anything but the plain texts of users, assistants and a system prompt."""
    return "tools" in row or any(len(turn) > 2 or turn["role"] == "tool" for turn in row["messages"])


def missing(turns: Turns, tools: Turns, write: Write) -> Iterator[str]:
    """What a conversation carries and its template does not write: tools, tool_calls, tool_results, reasoning, name.

    A part is written if the text has its words, and another one would change it: an answer may quote a result that is
    not there. Reasoning counts where it is learned: templates leave out that of earlier answers. Raises
    ChatTemplateUnusable.
    """
    known = turns[: last_learned(turns) + 1]
    whole = write(known, tools)
    bare = write(known) if tools else ""
    if whole == bare or not all(holds(whole, tool["function"]["name"]) for tool in tools):
        yield "tools"
    for place, turn in enumerate(known):
        calls, thought = turn.get("tool_calls", ()), turn.get("reasoning_content")
        if calls or (thought and learned(dict(turn))):
            before, text = known[:place], write(known[: place + 1], tools)
            span = text.removeprefix(write(before, tools, begins=True))
            others = (write([*before, other], tools) for other in with_another_call(turn))
            if not all(holds(span, word) for call in calls for word in words(call)) or text in others:
                yield "tool_calls"
            if thought and learned(dict(turn)):
                other = {**turn, "reasoning_content": thought + MORE}
                if not holds(span, thought.strip()) or text == write([*before, other], tools):
                    yield "reasoning"
        if turn["role"] == "tool":
            other = {**turn, "content": turn["content"] + MORE}
            after = write([*known[:place], other, *known[place + 1 :]], tools)
            if not holds(whole, turn["content"].strip()) or whole == after:
                yield "tool_results"
        if turn.get("name") and turn["role"] != "tool" and whole == write(without_name(turns, place), tools):
            yield "name"


def with_another_call(turn: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The turn with another name, or without the arguments, of each of its calls."""
    calls = turn.get("tool_calls", ())
    for place, call in enumerate(calls):
        function = call["function"]
        for other in ({"name": function["name"] + MORE}, *([{"arguments": {}}] if function["arguments"] else [])):
            changed = {**call, "function": {**function, **other}}
            yield {**turn, "tool_calls": [*calls[:place], changed, *calls[place + 1 :]]}


def words(call: Mapping[str, Any]) -> Iterator[str]:
    """The name and the argument names of a call."""
    yield call["function"]["name"]
    yield from call["function"]["arguments"]


def holds(text: str, part: str) -> bool:
    """Whether a rendered text has this part, as it is or as JSON writes it."""
    return part in text or json.dumps(part, ensure_ascii=False)[1:-1] in text or json.dumps(part)[1:-1] in text


def last_learned(turns: Turns) -> int:
    """The position of the last answer, after which nothing is trained; of the last turn if there is none."""
    return max((place for place, turn in enumerate(turns) if place and learned(dict(turn))), default=len(turns) - 1)


def without_name(turns: Turns, place: int) -> list[Mapping[str, Any]]:
    """The turns up to the last answer, one of them without its name."""
    plain = {name: value for name, value in turns[place].items() if name != "name"}
    return [*turns[:place], plain, *turns[place + 1 : last_learned(turns) + 1]]


def as_text(row: Turn, absent: set[str]) -> Turn:
    """The row with its tools and calls, or its reasoning, or both, written as text: those that are `absent`."""
    calls = bool(absent & {"tools", "tool_calls", "tool_results"})
    made = {name: value for name, value in row.items() if not (calls and name == "tools")}
    for field in ("messages", "chosen", "rejected"):
        if field in row:
            turns = [with_thought(turn) for turn in row[field]] if "reasoning" in absent else row[field]
            made[field] = results_as_text([with_calls(turn) for turn in turns]) if calls else turns
    if calls and row.get("tools"):
        made["messages"] = with_tools(made["messages"], row["tools"])
    return made


def with_tools(turns: list[Turn], tools: Sequence[Turn]) -> list[Turn]:
    """The turns with the tools in the system prompt."""
    listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
    begin, rest = (turns[:1], turns[1:]) if turns and turns[0]["role"] == "system" else ([], turns)
    said = begin[0]["content"] + "\n\n" if begin else ""
    return [message("system", f"{said}{CALLS}{listed}</tools>"), *rest]


def with_thought(turn: Turn) -> Turn:
    """The turn with its reasoning before its text."""
    if "reasoning_content" not in turn:
        return turn
    rest = {name: value for name, value in turn.items() if name != "reasoning_content"}
    return {**rest, "content": f"<think>\n{turn['reasoning_content'].strip()}\n</think>\n\n{turn['content']}"}


def with_calls(turn: Turn) -> Turn:
    """The turn with its calls after its text."""
    if "tool_calls" not in turn:
        return turn
    rest = {name: value for name, value in turn.items() if name != "tool_calls"}
    calls = (json.dumps(call["function"], ensure_ascii=False) for call in turn["tool_calls"])
    parts = [*filter(None, [turn["content"]]), *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
    return {**rest, "content": "\n".join(parts)}


def results_as_text(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with each run of tool turns as one user turn."""
    made: list[Turn] = []
    after_tool = False
    for turn in turns:
        if turn["role"] != "tool":
            made.append(turn)
        else:
            said = f"<tool_response>\n{turn['content']}\n</tool_response>"
            if after_tool:
                made[-1] = message("user", f"{made[-1]['content']}\n{said}")
            else:
                made.append(message("user", said))
        after_tool = turn["role"] == "tool"
    return made
