"""What a preference row judges: its question, its answers, and which of them are good."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from backprop_core.data import row_files
from backprop_core.data.preference_rows import Turns, is_preference
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_turns import texts_of

JUDGMENT = ("messages", "chosen", "rejected", "label")


def question(row: ChatRow) -> Turns:
    """The turns before the judged answer: all of a pair's own, those up to the last user's of a rated conversation."""
    turns: Turns = row["messages"]
    if "chosen" in row:
        return turns
    return turns[: max((place + 1 for place, turn in enumerate(turns) if turn["role"] == "user"), default=0)]


def ratings(row: ChatRow) -> Iterator[tuple[Turns, bool]]:
    """The answers of a row, each with whether it is good."""
    if "chosen" in row:
        yield from ((row["chosen"], True), (row["rejected"], False))
    else:
        yield row["messages"][len(question(row)) :], row["label"]


def said(row: ChatRow, answer: Turns) -> ChatRow:
    """The question of a row with an answer, of which only the answer is learned."""
    before = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in question(row)]
    return {**{name: value for name, value in row.items() if name not in JUDGMENT}, "messages": [*before, *answer]}


def preferred(row: ChatRow) -> ChatRow:
    """The question with the answer that is good, or the rated one whatever it is; any other row as it is."""
    return said(row, next(answer for answer, _ in ratings(row))) if is_preference(row) else row


def with_longer_answer(row: ChatRow) -> ChatRow:
    """The longest conversation that training reads of a row."""
    if "chosen" not in row:
        return row
    return max(
        (said(row, answer) for answer, _ in ratings(row)), key=lambda one: sum(map(len, texts_of(one["messages"])))
    )


def kinds(rows: Iterable[ChatRow]) -> dict[str, int]:
    """How many of some rows are pairs, and how many ratings."""
    found = {"pairs": 0, "ratings": 0}
    for row in rows:
        if is_preference(row):
            found["pairs" if "chosen" in row else "ratings"] += 1
    return found


def are_preferences(directory: Path) -> bool:
    """Whether the rows of a RowsRef's directory judge answers, by the first: held-out sets are of one kind."""
    first = next(row_files.lines(directory / row_files.ROWS), None)
    return first is not None and is_preference(first)
