"""Renders rows, and locates the answers in them that are learned.

An answer is what follows the generation prompt, up to and including the stop token, without the newline after it. Raw
text is rendered with the end-of-sequence token after it.
"""

from __future__ import annotations  # the tokenizer's type is of transformers, which the parent does not import

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from backprop_core.data.chat_rendering import Message, apply
from backprop_core.data.control_tokens import FENCE, Controls, check_fences
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_turns import learned
from backprop_core.errors import ChatTemplateUnusable, NoLabelTokens
from backprop_core.models import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMITED = 512  # rows rendered per time limit


class Written(NamedTuple):
    """A row, or its conversation up to one answer, rendered as text; `spans` are the character ranges of labels."""

    row: int
    text: str
    spans: list[tuple[int, int]]
    fence: str


class Answer(NamedTuple):
    """An assistant turn: the conversation up to its end, and the character range of the answer with its stop token."""

    text: str
    start: int
    end: int


def write_all(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[ChatRow], refused: list[ChatTemplateUnusable]
) -> Iterator[Written]:
    """Render all rows; appends to `refused` the error of each row that the template refuses."""
    controls = Controls(tokenizer)
    if any("text" in row for row in rows):
        _ = controls.begin  # asks the tokenizer, which another thread uses from the first texts on
    for begin in range(0, len(rows), LIMITED):
        with chat_template.limit():
            indices = range(begin, min(begin + LIMITED, len(rows)))
            texts = [text for index in indices for text in render_row(tokenizer, controls, rows[index], index, refused)]
        yield from texts


def render_row(
    tokenizer: PreTrainedTokenizerBase,
    controls: Controls,
    row: ChatRow,
    index: int,
    refused: list[ChatTemplateUnusable],
) -> list[Written]:
    """Render a row as one text, or as one text per answer; none if the template refuses it."""
    if "text" in row:
        return [raw(tokenizer, controls, row["text"], index)]
    messages, tools, fence = controls.fence_in(row["messages"], row.get("tools", []))
    try:
        answers = [answer(tokenizer, controls, messages[: end + 1], tools) for end in answered(messages)]
        check_fences([part.text for part in answers], fence)
    except ChatTemplateUnusable as error:
        refused.append(ChatTemplateUnusable(f"row {index + 1}: {error.message}", hint=error.hint))
        return []
    if not answers:
        raise NoLabelTokens(f"row {index + 1} has no answer to learn from", hint="remove it, or add an answer")
    whole = answers[-1].text
    if all(whole.startswith(part.text[: part.end]) for part in answers):
        return [Written(index, whole, [(part.start, part.end) for part in answers], fence)]
    return [Written(index, part.text, [(part.start, part.end)], fence) for part in answers]


def raw(tokenizer: PreTrainedTokenizerBase, controls: Controls, text: str, index: int) -> Written:
    """Raw text between fences, with the BOS token (if used) before it and the EOS token after it."""
    if tokenizer.eos_token is None:
        raise ChatTemplateUnusable(
            "the tokenizer has no eos_token to end raw text with", hint="add it to tokenizer_config.json"
        )
    fence = FENCE * (1 + text.count(FENCE))
    begin = controls.begin
    whole = f"{begin}{fence}{text}{fence}{tokenizer.eos_token}"
    return Written(index, whole, [(len(begin), len(whole))], fence)


def answered(messages: list[Message]) -> list[int]:
    """Positions of the learned turns: answers and calls that follow another turn."""
    return [i for i, turn in enumerate(messages) if i and learned(turn)]


def answer(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, messages: list[Message], tools: list[Message]
) -> Answer:
    """Render a conversation that ends with an assistant turn, and locate that turn."""
    special = controls.special
    prompt = apply(tokenizer, messages[:-1], tools, special=special, add_generation_prompt=True)
    text = apply(tokenizer, messages, tools, special=special, add_generation_prompt=False)
    if not text.startswith(prompt):
        raise ChatTemplateUnusable(
            "the chat template's assistant turn does not start with its generation prompt", hint=chat_template.HINT
        )
    end = controls.stop(text, len(prompt))
    if end is None:
        raise ChatTemplateUnusable(
            "the chat template ends an assistant turn without a stop token", hint=chat_template.HINT
        )
    return Answer(text, len(prompt), end)


def write_prompt(
    tokenizer: PreTrainedTokenizerBase, controls: Controls, messages: list[Message], tools: list[Message]
) -> Written:
    messages, tools, fence = controls.fence_in(messages, tools)
    text = apply(tokenizer, messages, tools, add_generation_prompt=True)
    check_fences([text], fence)
    return Written(0, text, [], fence)
