"""Converts preference rows as OpenAI's fine-tuning reads them: a request, a preferred and a non-preferred output."""

from backprop_core.data.file_readers import Malformed
from backprop_core.data.preference_rows import preference, texts
from backprop_core.data.tool_calls import Turn, tools_of
from backprop_core.data.unsupported_fields import refuse_row

OUTPUTS = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
REQUESTED = {"messages", "tools", "functions"}


def is_request(row: Turn) -> bool:
    """Whether the row's `input` is an object: a text would be Alpaca's."""
    return isinstance(row["input"], dict)


def openai_preference(row: Turn) -> Turn:
    """The preference row of a request with two outputs. Raises Malformed."""
    request = row["input"]
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
        raise Malformed("missing_field", "the input has no list 'messages'")
    made = preference({"messages": request["messages"], **{name: row.get(field) for name, field in OUTPUTS.items()}})
    used = REQUESTED | ({"tool_choice"} if request.get("tool_choice") == "auto" else set())
    refuse_row(request, used=used, said=texts(made))
    tools = tools_of(request)
    return {**made, **({"tools": tools} if tools else {})}
