"""Finds rows that a chat template refuses to render, or writes without what they carry, before a model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backprop_core.data.file_readers import Malformed
from backprop_core.data.loading import ABSENT, REFUSED
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_turns import learned
from backprop_core.data.template_places import as_text, carries_more, missing
from backprop_core.errors import ChatTemplateUnusable
from backprop_core.models import chat_template
from backprop_core.schema.refs import ChatTemplate

ROWS = 64  # rows rendered per time limit
OTHERWISE = "its assistant turn does not start with its generation prompt"
AS_TEXT = {"tools", "tool_calls", "tool_results", "reasoning"}  # what can be written as text
ANSWERS = ("chosen", "rejected")
Turns = Sequence[Mapping[str, Any]]


class Refusals:
    """Finds out why a template refuses rows.

    Renders every row that carries more than texts, and every row if the template can raise errors. Otherwise, once a
    row renders, other rows with the same sequence of roles are assumed to render too. With `tools_as_text`, what the
    template does not write is written as text.
    """

    def __init__(self, template: ChatTemplate, *, tools_as_text: bool = False) -> None:
        self._template, self._tools_as_text = template, tools_as_text
        self._words = "raise_exception" in template.text
        self._sound: dict[tuple[str, ...], bool] = {}

    def __call__(self, rows: Sequence[ChatRow]) -> Iterator[ChatRow | Malformed]:
        """Each row as training is to see it, or why the template refuses it.

        Raises ChatTemplateUnusable if the template loops.
        """
        for begin in range(0, len(rows), ROWS):
            with chat_template.limit():
                found = [self._tried(row) for row in rows[begin : begin + ROWS]]
            yield from found

    def _tried(self, row: ChatRow) -> ChatRow | Malformed:
        """The row, or its text form if the template needs that and it is asked, or why it is refused."""
        if "text" in row:
            return row
        refused, absent = self._faults(row)
        if refused is None:
            return row
        if not self._tools_as_text or not carries_more(row):
            return refused
        written = as_text(row, absent or AS_TEXT)
        again, _ = self._faults(written)
        return written if again is None else again

    def _faults(self, row: ChatRow) -> tuple[Malformed | None, set[str]]:
        """Why the template refuses a row, and what it leaves out; of a preference, with either answer."""
        tools: Turns = row.get("tools", [])
        for end in [row[name] for name in ANSWERS if name in row] or [[]]:
            turns = [*row["messages"], *end]
            if not carries_more({**row, "messages": turns}):
                fault = self._plain(turns)
            else:
                try:
                    if absent := list(missing(turns, tools, self._write)):
                        detail = f"the base's chat template does not write {', '.join(absent)}"
                        return Malformed(absent[0] + ABSENT, detail), {*absent} & AS_TEXT
                    fault = self._unlike_prompt(turns, tools)
                except ChatTemplateUnusable as error:
                    fault = error.message
            if fault is not None:
                return Malformed(REFUSED, fault), set()
        return None, set()

    def _plain(self, turns: Turns) -> str | None:
        """Why the template refuses turns of texts, or None."""
        answers = [place for place, turn in enumerate(turns) if place and learned(dict(turn))]
        roles = tuple(turn["role"] for turn in turns)
        try:
            if self._sound.get(roles):
                if self._words and answers:
                    self._write(turns[: answers[-1] + 1])
                return None
            fault = self._unlike_prompt(turns)
        except ChatTemplateUnusable as error:
            fault = error.message
        self._sound[roles] = fault is None and bool(answers)
        return fault

    def _unlike_prompt(self, turns: Turns, tools: Turns = ()) -> str | None:
        """The fault of a template whose answers do not start with its generation prompt."""
        answers = (place for place, turn in enumerate(turns) if place and learned(dict(turn)))
        return next((OTHERWISE for place in answers if not self._begins(turns, place, tools)), None)

    def _begins(self, turns: Turns, place: int, tools: Turns) -> bool:
        """Whether an answer starts with the generation prompt."""
        whole = self._write(turns[: place + 1], tools)
        return whole.startswith(self._write(turns[:place], tools, begins=True))

    def _write(self, turns: Turns, tools: Turns = (), *, begins: bool = False) -> str:
        text, special = self._template.text, self._template.special
        return chat_template.render(text, turns, special=special, add_generation_prompt=begins, tools=tools)
