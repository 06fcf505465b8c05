"""Finds rows that a chat template refuses to render, so that curation drops them before a model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backprop_core.errors import ChatTemplateUnusable
from backprop_core.models import chat_template
from backprop_core.schema.refs import ChatTemplate

ROWS = 64  # rows rendered per time limit
OTHERWISE = "its assistant turn does not start with its generation prompt"
Turns = Sequence[Mapping[str, Any]]


class Refusals:
    """Finds out why a template refuses rows.

    Renders every row if the template can raise errors. Otherwise, once a row renders, other rows with the same sequence
    of roles are assumed to render too.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._words = "raise_exception" in template.text
        self._sound: dict[tuple[str, ...], bool] = {}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str | None]:
        """For each row why the template refuses it, or None. Raises ChatTemplateUnusable if the template loops."""
        for begin in range(0, len(rows), ROWS):
            some = rows[begin : begin + ROWS]
            with chat_template.limit():
                found = [self._of(row["messages"]) if "messages" in row else None for row in some]
            yield from found

    def _of(self, turns: Turns) -> str | None:
        """Why the template refuses these turns, or None."""
        says = [bool(turn["content"].strip()) for turn in turns]
        answers = [place for place, turn in enumerate(turns) if place and says[place] and turn["role"] == "assistant"]
        roles = tuple(turn["role"] for turn in turns)
        try:
            if self._sound.get(roles):
                if self._words and answers:
                    self._write(turns[: answers[-1] + 1])
                return None
            fault = next((OTHERWISE for place in answers if not self._begins(turns, place)), None)
        except ChatTemplateUnusable as error:
            fault = error.message
        self._sound[roles] = fault is None and bool(answers)
        return fault

    def _begins(self, turns: Turns, place: int) -> bool:
        """Whether an answer starts with the generation prompt."""
        return self._write(turns[: place + 1]).startswith(self._write(turns[:place], begins=True))

    def _write(self, turns: Turns, *, begins: bool = False) -> str:
        text, special = self._template.text, self._template.special
        return chat_template.render(text, turns, special=special, add_generation_prompt=begins)
