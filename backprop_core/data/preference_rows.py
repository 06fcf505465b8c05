"""Converts rows that judge answers: two answers to one question, or a thumb up or down.

A pair becomes `{"messages": the question's turns, "chosen": turns, "rejected": turns}`; a rated conversation gets
`label`, whether its answer is good. Neither is trained as an answer: curation keeps them apart.
"""

from collections.abc import Iterator
from typing import Any

from backprop_core.data.file_readers import Malformed
from backprop_core.data.instruction_rows import instructed, side, system_of
from backprop_core.data.row_turns import conversation, message, required, texts_of, turn
from backprop_core.data.tool_calls import Turn, check_answers
from backprop_core.data.unsupported_fields import says_more, untrained

Turns = list[Turn]

QUESTIONS = ("prompt", "question", "instruction", "messages", "conversations")  # the first that a row has is used
THUMBS = ("label", "kto_tag", "thumbs", "desirable")
GOOD, BAD = ("true", "up"), ("false", "down")


def is_preference(row: Turn) -> bool:
    """Whether a chat row judges answers, so that its turns are not to be trained as they are."""
    return "chosen" in row or "label" in row


def conversations(row: Turn) -> list[Turn]:
    """What a chat row stands for: the question with the better answer and with the worse one, or the row itself."""
    rest = {name: value for name, value in row.items() if name not in ("label", "chosen", "rejected")}
    answers = [row[name] for name in ("chosen", "rejected") if name in row]
    return [{**rest, "messages": [*row["messages"], *answer]} for answer in answers] or [rest]


def wanted(row: Turn) -> Turn | None:
    """The conversation that a model may learn from a chat row; None for a thumb down."""
    return None if row.get("label") is False else conversations(row)[0]


def preference(row: Turn) -> Turn:
    """A question with a better and a worse answer. Raises Malformed."""
    better, worse = (list(map(turn, side(row, field, "assistant"))) for field in ("chosen", "rejected"))
    asked = question(row)
    if asked is None:
        asked = [*system_of(row), *shared(better, worse)]
    before = without_end(asked, better)
    made = {"messages": before, "chosen": after(better, before), "rejected": after(worse, before)}
    check(made)
    said = list(texts(made))
    for name in [name for name in QUESTIONS if row.get(name) is not None][1:]:
        if says_more(row[name], said):
            raise untrained("the row", name, row[name])
    return made


def question(row: Turn) -> Turns | None:
    """The turns of the field that has the question; None if there is none, as the answers are whole conversations."""
    field = next((name for name in QUESTIONS if row.get(name) is not None), None)
    match field:
        case None:
            return None
        case "prompt":
            return conversation(side(row, field, "user"), field, system_of(row))
        case "question":
            return [*system_of(row), message("user", required(row, field))]
        case "instruction":
            return [*system_of(row), *instructed(row)]
    return conversation(row[field], field, system_of(row))


def shared(better: Turns, worse: Turns) -> Turns:
    """The turns with which both conversations begin."""
    places = (place for place, (one, other) in enumerate(zip(better, worse, strict=False)) if one != other)
    return better[: next(places, min(len(better), len(worse)))]


def without_end(asked: Turns, better: Turns) -> Turns:
    """The question without the better answer, which some files repeat after it."""
    end = after(better, asked)
    return asked[: -len(end)] if end and asked[-len(end) :] == end and len(asked) > len(end) else asked


def after(turns: Turns, before: Turns) -> Turns:
    """The turns after those of the question, if they begin with them."""
    spoken = [one for one in before if one["role"] != "system"]
    for begin in (before, spoken):
        if begin and turns[: len(begin)] == begin:
            return turns[len(begin) :]
    return turns


def check(made: Turn) -> None:
    """Raise Malformed for a row without a question, an answer, or a difference."""
    before, better, worse = made["messages"], made["chosen"], made["rejected"]
    if not any(one["role"] == "user" for one in before) or before[-1]["role"] == "assistant":
        raise Malformed("no_question", "the two answers have no question before them")
    for answer, field in ((better, "chosen"), (worse, "rejected")):
        if not answer or answer[0]["role"] != "assistant" or any(one["role"] == "system" for one in answer):
            raise Malformed("no_answer", f"{field!r} does not begin with an assistant's answer")
        check_answers([*before, *answer])
    if better == worse:
        raise Malformed("no_preference", "'chosen' and 'rejected' are the same")


def texts(made: Turn) -> Iterator[str]:
    """All texts of a preference row."""
    for field in ("messages", "chosen", "rejected"):
        yield from texts_of(made.get(field, []))


def thumb(row: Turn) -> tuple[bool | None, set[str]]:
    """Whether the row's answer was rated good, and the fields that say so; None if it was not rated.

    A number is no thumb: it may be a class or a score. Raises Malformed for two that differ.
    """
    found = {name: said for name in THUMBS if (said := up(row.get(name))) is not None}
    if len(set(found.values())) > 1:
        raise Malformed("said_twice", f"the row has different {' and '.join(found)}")
    return next(iter(found.values()), None), set(found)


def up(value: Any) -> bool | None:
    """A thumb: true or false, also as text, or up or down."""
    word = value.strip().lower() if isinstance(value, str) else value
    if word is True or word in GOOD:
        return True
    return False if word is False or word in BAD else None
