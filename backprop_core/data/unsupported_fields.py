"""Rejects rows with fields that are not understood and that training would ignore: images, scores, masks, ….

The names come from OpenAI fine-tuning, TRL, Axolotl, LLaMA-Factory and ms-swift. Three rules ("laws") say which values
of these fields have a meaning; all other fields (id, source, category, …) are metadata and allowed.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, Literal

from backprop_core.data.file_readers import Malformed

Law = Literal["counts", "judges", "holds"]

COUNTS = {  # weights and masks: any value but 1 has a meaning
    *("weight", "weights", "sample_weight", "loss_weight", "loss_scale", "completion_mask", "loss_mask"),
    *("assistant_mask", "assistant_masks", "train_mask", "training_mask"),
}
JUDGES = {  # labels and preferences: any value has a meaning
    *("label", "labels", "kto_tag", "score", "scores", "rating", "ratings", "reward", "rewards", "rank", "margin"),
    *("chosen", "rejected", "rejected_response", "rejected_messages", "preferred_output", "non_preferred_output"),
    *("preference", "is_preferred", "desirable", "thumbs"),
    *("negative", "negatives", "negative_response", "bad_completion", "bad_response", "worse_response"),
}
HOLDS = {  # further input or output of the model: any non-empty value has a meaning
    *("tools", "tool", "functions", "tool_calls", "tool_call", "function_call", "function_calls", "tool_choice"),
    *("tool_plan", "documents", "chat_template_kwargs", "reasoning_content", "reasoning", "thinking", "thoughts"),
    *("think", "cot", "scratchpad", "tool_responses", "tool_response", "tool_results", "tool_result", "observations"),
    *("thought", "rationale", "chain_of_thought", "images", "image", "videos", "video", "audios", "audio", "objects"),
    *("refusal", "rejection"),
}
OF_A_TURN: dict[str, Law] = {  # fields with a meaning on a turn; on a row they are metadata
    **dict.fromkeys(("train", "training", "loss", "mask", "train_detail", "training_detail"), "counts"),
    **dict.fromkeys(("train_on_turn", "trainable", "learn", "learnable"), "counts"),
    **dict.fromkeys(("ignore", "ignored", "masked", "is_masked", "skip", "exclude"), "holds"),
    **dict.fromkeys(("name", "tool_call_id", "prefix", "recipient", "channel", "citations", "annotations"), "holds"),
}
WORDS: dict[str, Law] = {  # also any name with one of these words in it, like `score_chosen` or `reasoning_details`
    **dict.fromkeys(("weight", "weights"), "counts"),
    **dict.fromkeys(("chosen", "rejected", "kto"), "judges"),
    **dict.fromkeys(("reasoning", "thinking"), "holds"),
}
QUESTION = (
    *("system", "system_prompt", "system_message", "history", "instruction", "instructions", "input", "context"),
    *("passage", "persona", "preamble", "background"),
)

NOTHING = ("", "[]", "{}", "null", "none")
ONE = (None, True, "", "1", "1.0", "true")  # True == 1 == 1.0
ZERO = (False, "0", "0.0", "false")


def refuse_turn(turn: Mapping[str, Any], *, learned: bool) -> None:
    """Raise Malformed if a turn has a field that training would ignore. Turns not `learned` may have weight 0."""
    for name, value in turn.items():
        plain = snake(name)
        law = OF_A_TURN.get(plain) or law_of(plain)
        if law and carries(value, law) and not (law == "counts" and not learned and is_one_of(value, ZERO)):
            raise untrained("a turn", plain, value)


def refuse_row(row: Mapping[str, Any], *, used: Collection[str], said: Iterable[str]) -> None:
    """Raise Malformed if a row has a field, other than the `used` ones, that training would ignore.

    An unused system prompt, history, instruction, input or context is allowed if one of the trained texts, `said`,
    contains it.
    """
    for name, value in row.items():
        if name in used:
            continue
        plain = snake(name)
        law = law_of(plain)
        if law and carries(value, law):
            raise untrained("the row", plain, value)
        if plain in QUESTION and carries(value, "holds") and not any(str(value) in text for text in said):
            raise untrained("the row", plain, value)


def says_more(value: Any, said: Iterable[str]) -> bool:
    """Whether a text, or any turn's text, is neither part of the texts `said` nor contains them all."""
    if isinstance(value, list):
        return any(says_more(item, said) for item in value)
    if isinstance(value, dict):
        return says_more(value.get("content") or value.get("value"), said)
    text = "" if value is None else str(value).strip()
    return not any(text in one for one in said) and not all(one.strip() in text for one in said)


@cache
def law_of(name: str) -> Law | None:
    """The rule for a field of this name; None for metadata."""
    if name in COUNTS:
        return "counts"
    if name in JUDGES:
        return "judges"
    if name in HOLDS:
        return "holds"
    return next((WORDS[word] for word in name.split("_") if word in WORDS), None)


@cache
def snake(name: str) -> str:
    """Convert a name to snake case: `toolCalls` becomes `tool_calls`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+", "_", name.strip()).lower()


def carries(value: Any, law: Law) -> bool:
    """Whether a value has a meaning, by the rule of its field."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NOTHING):
        return False
    if isinstance(value, list | dict):
        values = value.values() if isinstance(value, dict) else value
        return any(carries(item, law) for item in values)
    return not is_one_of(value, ONE) if law == "counts" else law == "judges" or value is not False


def is_one_of(value: Any, known: Collection[Any]) -> bool:
    return (value.strip().lower() if isinstance(value, str) else value) in known


def untrained(whose: str, name: str, value: Any) -> Malformed:
    """The error; its reason is the field's name."""
    shown = f" {value!r}" if isinstance(value, bool | int | float) else ""
    return Malformed(name, f"{whose} has {name}{shown}, which is not trained: remove it, or map it with columns")
