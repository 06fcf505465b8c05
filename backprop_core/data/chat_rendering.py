"""Renders conversations with a tokenizer's chat template, in the sandbox of `models.chat_template`."""

from __future__ import annotations  # the tokenizer's type is of transformers, which the parent does not import

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from backprop_core.data.row_formats import ChatRow
from backprop_core.errors import ChatTemplateMissing
from backprop_core.models import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = dict[str, Any]


def render(tokenizer: PreTrainedTokenizerBase, row: ChatRow) -> str:
    """Render a whole row: its conversation, or its raw text without BOS and EOS."""
    if "text" in row:
        return str(row["text"])
    with chat_template.limit():
        return apply(tokenizer, row["messages"], row.get("tools", []), add_generation_prompt=False)


def apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    tools: Sequence[Message] = (),
    *,
    special: Mapping[str, Any] | None = None,
    add_generation_prompt: bool,
) -> str:
    """Render messages and tools with the tokenizer's chat template, in the sandbox; `special`: its special tokens."""
    template = template_of(tokenizer)
    if not template:
        raise ChatTemplateMissing("the tokenizer has no chat template", hint=chat_template.HINT)
    return chat_template.render(
        template,
        messages,
        special=tokenizer.special_tokens_map if special is None else special,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
    )


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's (default) chat template; empty if there is none."""
    named = tokenizer.chat_template or ""
    return named if isinstance(named, str) else str(named.get("default", ""))


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    """Render the conversation with the generation prompt."""
    with chat_template.limit():
        return apply(tokenizer, messages, add_generation_prompt=True)


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every sequence starts with BOS: the tokenizer adds it to text, and the chat template renders it.

    llama.cpp has one setting for both, `add_bos_token`, and its servers remove the BOS that a template has rendered
    before they add theirs. If the tokenizer adds BOS but its chats start without it, the chats win: raw text gets no
    BOS, in training and in the GGUF file.
    """
    bos = tokenizer.bos_token
    if bos is None or tokenizer("").input_ids[:1] != [tokenizer.bos_token_id]:
        return False
    return not tokenizer.chat_template or render_prompt(tokenizer, [chat_template.ASKED]).startswith(bos)
