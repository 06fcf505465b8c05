"""Writes a conversation as a row of the format that a dataset has, so that both can stand in one directory."""

from pathlib import Path
from typing import Any

from backprop_core.data.loading import opened, snapshot
from backprop_core.data.row_formats import Row
from backprop_core.data.sources import members
from backprop_core.data.tool_calls import Turn
from backprop_core.errors import ConfigInvalid
from backprop_core.schema.specs import DatasetSpec

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}  # ShareGPT's names of roles


def format_in(directory: Path) -> str:
    """The row format of the newest file in a directory; `messages` if it has none. Raises what reading it raises."""
    files = sorted(members(str(directory)), key=lambda file: file.stat().st_mtime)
    if not files:
        return "messages"
    convert, _ = opened(snapshot(str(files[-1]), scratch=directory), DatasetSpec(path=str(files[-1])))
    return convert.name


def written(format: str, messages: list[Turn]) -> Row:
    """A row of a conversation that ends with an answer. Of its answers only the last is learned.

    Raises ConfigInvalid for a format that cannot say it.
    """
    system = {"system": messages[0]["content"]} if messages[0]["role"] == "system" else {}
    turns = messages[1:] if system else messages
    match format, turns:
        case "messages", _:
            return {"messages": [*map(context, messages[:-1]), messages[-1]]}
        case "sharegpt", _:
            return {"conversations": [*map(sharegpt, map(context, messages[:-1])), sharegpt(messages[-1])]}
        case "prompt-completion", [asked, answered]:
            return {"prompt": asked["content"], "completion": answered["content"], **system}
        case "prompt-completion", _:
            return {"prompt": turns[:-1], "completion": turns[-1:], **system}
        case "question-answer", [asked, answered]:
            return {"question": asked["content"], "answer": answered["content"], **system}
        case "alpaca", [asked, answered]:
            return {"instruction": asked["content"], "output": answered["content"], **system}
    raise ConfigInvalid(
        f"rows of the format {format} cannot say this conversation", hint="write the row into a file of the line's data"
    )


def context(turn: Turn) -> Turn:
    """A turn that is not learned."""
    return {**turn, "weight": 0} if turn["role"] == "assistant" else turn


def sharegpt(turn: Turn) -> dict[str, Any]:
    rest = {name: value for name, value in turn.items() if name == "weight"}
    return {"from": SPEAKERS[turn["role"]], "value": turn["content"], **rest}
