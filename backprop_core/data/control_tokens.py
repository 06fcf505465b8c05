"""Control tokens in rows: their names are fenced before rendering, so that they are tokenized as plain text.

A control token (an added token marked special) comes from the chat template alone: where its name stands in a row, also
in an argument or a tool's description, it is set between fences, and what lies between fences is plain text.
"""

from __future__ import annotations  # the tokenizer's type is of transformers, which the parent does not import

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backprop_core.data.chat_rendering import Message, begins_with_bos
from backprop_core.data.tool_calls import strings_in
from backprop_core.errors import ChatTemplateUnusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FENCE = "\ufdd0"  # a Unicode noncharacter, reserved for internal use
ESCAPED = "\\ufdd0"  # the same in JSON that is limited to ASCII


class Controls:
    """The control tokens of a tokenizer; fences their names in rows, so that they are tokenized as plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        names = "|".join(map(re.escape, sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)))
        self._names = re.compile(names or r"(?!)")
        self._stop = re.compile(rf"({names or '(?!)'})(?:\s|{names or '(?!)'})*\Z")
        self._tokenizer = tokenizer
        self.special = tokenizer.special_tokens_map  # made anew each time that it is asked for

    @cached_property
    def begin(self) -> str:
        """The prefix of raw text: the BOS token, or an empty string."""
        return str(self._tokenizer.bos_token) if begins_with_bos(self._tokenizer) else ""

    def stop(self, text: str, start: int) -> int | None:
        """The end of the stop token: of the control tokens that end `text`, whitespace aside, the first."""
        found = self._stop.search(text, start)
        return found.end(1) if found else None

    def fence_for(self, texts: list[str]) -> str:
        """A string that occurs in none of the texts; empty if they contain no control token's name."""
        if not self._names.search(FENCE.join(texts)):  # no name has a fence in it
            return ""
        return FENCE * (1 + sum(text.count(FENCE) for text in texts))

    def fenced(self, text: str, fence: str) -> str:
        """`text` with fences around the names of control tokens."""
        return self._names.sub(lambda name: fence + name[0] + fence, text) if fence else text

    def fenced_in(self, value: Any, fence: str) -> Any:
        """A JSON value with fences in all of its strings and keys."""
        match value:
            case str():
                return self.fenced(value, fence)
            case list():
                return [self.fenced_in(item, fence) for item in value]
            case dict():
                return {self.fenced(name, fence): self.fenced_in(item, fence) for name, item in value.items()}
        return value

    def fence_in(self, messages: list[Message], tools: list[Message]) -> tuple[list[Message], list[Message], str]:
        """Messages and tools with fences around the names of control tokens, and the fence; empty if there are none."""
        fence = self.fence_for([text for value in (*messages, *tools) for text in strings_in(value)])
        if not fence:
            return messages, tools, fence
        turns = [{**self.fenced_in(turn, fence), "role": turn["role"]} for turn in messages]
        return turns, self.fenced_in(tools, fence), fence


def check_fences(texts: list[str], fence: str) -> None:
    """Raise ChatTemplateUnusable if the template has split or escaped a row's text between fences."""
    if fence and any(ESCAPED in text or text.count(fence) % 2 for text in texts):
        raise ChatTemplateUnusable(
            "the chat template splits or escapes a text that has the name of a control token",
            hint="remove that name from the row",
        )
