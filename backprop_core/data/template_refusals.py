"""Which conversations a chat template refuses: known before a model is loaded, so that such a row is dropped alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backprop_core.errors import ChatTemplateUnusable
from backprop_core.models import chat_template
from backprop_core.schema.refs import ChatTemplate

ROWS = 64  # written in the time of one limit
OTHERWISE = "its assistant turn does not begin as its generation prompt does"
Turns = Sequence[Mapping[str, Any]]


class Refusals:
    """What a template says to rows.

    Every row is written where the template can refuse in words of its own. Where it cannot, rows of the same roles are
    taken to fail together or not at all, unless the first of them fails.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._words = "raise_exception" in template.text
        self._sound: dict[tuple[str, ...], bool] = {}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str | None]:
        """For each row why the template refuses it, or None. Raises ChatTemplateUnusable for one that loops."""
        for begin in range(0, len(rows), ROWS):
            some = rows[begin : begin + ROWS]
            with chat_template.limit():
                found = [self._of(row["messages"]) if "messages" in row else None for row in some]
            yield from found

    def _of(self, turns: Turns) -> str | None:
        """Why these turns cannot be learned from."""
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
        """Whether an answer begins as the template asks for one."""
        return self._write(turns[: place + 1]).startswith(self._write(turns[:place], begins=True))

    def _write(self, turns: Turns, *, begins: bool = False) -> str:
        text, special = self._template.text, self._template.special
        return chat_template.render(text, turns, special=special, add_generation_prompt=begins)
