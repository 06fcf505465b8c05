"""What becomes of a row whose answer does not fit: it is never trained as if the answer ended at the maximum length.

drop leaves the row out. cut_left leaves out the earliest turns after the system prompt until the rest fits. windows
makes several examples: raw text in pieces that overlap by one token, a conversation in stretches of whole turns, each
answer in one of them. What begins after the system prompt is always a user's turn. What does not fit is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_turns import learned
from backprop_core.data.tool_calls import Turn
from backprop_core.schema.specs import TooLong


class Example(NamedTuple):
    """Token ids, a label flag for each (the first is never a label), and the index of the row."""

    ids: list[int]
    labels: list[bool]
    row: int


class Shortened(NamedTuple):
    """The examples of a long row, and how many of its answers (or the row, if it is dropped whole) are left out."""

    examples: list[Example]
    left_out: int


Encoded: TypeAlias = Callable[[ChatRow], list[Example]]  # of one row, at its full length


def fits(example: Example, length: int) -> bool:
    """Whether no label is beyond the maximum length."""
    return not any(example.labels[length:])


def first(example: Example, length: int) -> Example:
    """The example cut on the right."""
    return (
        example if len(example.ids) <= length else Example(example.ids[:length], example.labels[:length], example.row)
    )


def shorter(row: ChatRow, made: Sequence[Example], length: int, how: TooLong, encoded: Encoded) -> Shortened:
    """The examples of a row that does not fit; `made` are those of its full length."""
    match how:
        case "drop":
            return Shortened([], 1)
        case "cut_left":
            found = next(fitting(row, row["messages"], length, encoded), None) if "messages" in row else None
            return Shortened(found[0], 0) if found else Shortened([], 1)
        case "windows" if "messages" in row:
            return stretches(row, length, encoded)
    return Shortened(list(pieces(made[0], length)), 0)


def pieces(example: Example, length: int) -> Iterator[Example]:
    """Raw text in pieces; the first token of each is the last of the one before, and no label of it."""
    for begin in range(0, len(example.ids) - 1, length - 1):
        labels = example.labels[begin : begin + length]
        yield Example(example.ids[begin : begin + length], [False, *labels[1:]], example.row)


def fitting(row: ChatRow, turns: Sequence[Turn], length: int, encoded: Encoded) -> Iterator[tuple[list[Example], int]]:
    """The examples of these turns without the earliest ones, where they fit, and the position that they begin at."""
    begin = 1 if turns[0]["role"] == "system" else 0
    starts = [place for place, turn in enumerate(turns) if place >= begin and turn["role"] == "user"]
    for start in starts:
        rest = list(turns[start:])
        if not any(map(learned, rest)):
            return
        examples = encoded({**row, "messages": [*turns[:begin], *rest]})
        if examples and all(fits(example, length) for example in examples):
            yield [first(example, length) for example in examples], start


def stretches(row: ChatRow, length: int, encoded: Encoded) -> Shortened:
    """A conversation as stretches of turns, from the last one backwards; each is as long as it can be."""
    turns, examples, left_out = list(row["messages"]), list[Example](), 0
    while answers := [place for place, turn in enumerate(turns) if place and learned(turn)]:
        turns = turns[: answers[-1] + 1]
        if found := next(fitting(row, turns, length, encoded), None):
            examples, turns = [*found[0], *examples], turns[: found[1]]
        else:
            turns, left_out = turns[:-1], left_out + 1
    return Shortened(examples, left_out)
