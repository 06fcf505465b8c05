"""Tokenizes rows that judge answers, beside rows that have one answer to learn.

A pair is two examples: its question with each answer. A rated answer is two as well: its question with the answer, and
with the answer of the rating before it, by which KTO estimates a divergence. Only the judged answer has label tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from backprop_core.data import batching, chat_encoding, row_files
from backprop_core.data.batching import Item, Items
from backprop_core.data.judged_answers import are_preferences, ratings, said
from backprop_core.data.long_rows import Example
from backprop_core.data.preference_rows import Turns, is_preference
from backprop_core.data.row_formats import ChatRow
from backprop_core.errors import NoRows
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import Limit, PreferenceLoss
from backprop_core.store.artifacts import Store


@dataclass(frozen=True)
class Pair:
    """A question with its better and its worse answer."""

    chosen: Item
    rejected: Item
    row: int

    @property
    def sides(self) -> tuple[Item, Item]:
        return self.chosen, self.rejected

    @property
    def width(self) -> int:
        """Padded tokens of both, which are computed together."""
        return 2 * max(map(len, self.sides))

    def __len__(self) -> int:
        return sum(map(len, self.sides))


@dataclass(frozen=True)
class Rating:
    """A question with an answer that was rated good or bad, and with another row's answer."""

    answer: Item
    other: Item
    good: bool
    row: int

    @property
    def sides(self) -> tuple[Item, Item]:
        return self.answer, self.other

    @property
    def width(self) -> int:
        """Padded tokens of the longer one; they are computed one after the other."""
        return max(map(len, self.sides))

    def __len__(self) -> int:
        return sum(map(len, self.sides))


Unit = Item | Pair | Rating


class Units(list[Unit]):
    """What a step is made of, in row order, with the counts of `chat_encoding.Examples`."""

    cut = 0
    left_out = 0


class Asked(NamedTuple):
    """A judgment before it is tokenized: its row, what was said of the answer (None for a pair), both conversations."""

    row: int
    good: bool | None
    sides: tuple[ChatRow, ChatRow]


def load(base: LoadedBase, rows: RowsRef, *, pairs_as: PreferenceLoss, max_length: int | Limit, store: Store) -> Units:
    """Tokenize rows of all kinds; with `pairs_as="kto"` the answers of a pair are two ratings.

    A judgment of which an answer does not fit into `max_length` is left out and counted. Raises NoRows, and what
    `chat_encoding.encode` raises.
    """
    every = row_files.load(store.local(rows))
    if not every:
        raise NoRows(f"rows artifact {rows.digest[:12]} is empty", hint="provide more rows")
    learned = answers(base, every, max_length)
    judged, too_long = judgments(base, asked(every, pairs_as), max_length)
    made = Units(sorted([*learned, *judged], key=lambda unit: unit.row))
    made.cut, made.left_out = learned.cut, learned.left_out + too_long
    return made


def answered(base: LoadedBase, rows: RowsRef, *, max_length: int | Limit, store: Store) -> list[Item]:
    """The examples of rows of one kind, of preferences those with the preferred answer. Raises what `load` raises."""
    if not are_preferences(store.local(rows)):
        return batching.load(base, rows, max_length=max_length, store=store)
    units = load(base, rows, pairs_as="dpo", max_length=max_length, store=store)
    return [unit if isinstance(unit, Item) else unit.sides[0] for unit in units]


def answers(base: LoadedBase, every: Sequence[ChatRow], max_length: int | Limit) -> Items:
    """The examples of the rows that judge nothing."""
    numbers = [number for number, row in enumerate(every) if not is_preference(row)]
    if not numbers:
        return Items()
    found = chat_encoding.encode(base.tokenizer, [every[number] for number in numbers], max_length=max_length)
    made = Items(item(base, example, numbers[example.row]) for example in found)
    made.cut, made.left_out = found.cut, found.left_out
    return made


def judgments(base: LoadedBase, some: Sequence[Asked], max_length: int | Limit) -> tuple[list[Pair | Rating], int]:
    """The judgments of which both conversations are one example each, and how many are left out."""
    if not some:
        return [], 0
    limit = Limit(tokens=max_length if isinstance(max_length, int) else max_length.tokens, too_long="drop")
    flat = [side for one in some for side in one.sides]
    found: dict[int, list[Example]] = {}
    for example in chat_encoding.encode(base.tokenizer, flat, max_length=limit):
        found.setdefault(example.row, []).append(example)
    made: list[Pair | Rating] = []
    for number, one in enumerate(some):
        sides = [*found.get(2 * number, []), *found.get(2 * number + 1, [])]
        if len(sides) == 2 and sides[0].row != sides[1].row:
            first, second = (item(base, side, one.row) for side in sides)
            made.append(Pair(first, second, one.row) if one.good is None else Rating(first, second, one.good, one.row))
    return made, len(some) - len(made)


def item(base: LoadedBase, example: Example, row: int) -> Item:
    """An example as tensors. Raises TokenizerMismatch."""
    ids = torch.tensor(example.ids, dtype=torch.int32)
    base.check_ids(ids)
    return Item(ids, torch.from_numpy(np.flatnonzero(example.labels).astype(np.int32)), row)


def asked(every: Sequence[ChatRow], pairs_as: PreferenceLoss) -> list[Asked]:
    """The pairs of some rows, and their ratings, each with an answer of the row before it."""
    pairs, rated = list[Asked](), list[tuple[int, list[tuple[Turns, bool]]]]()
    for number, row in enumerate(every):
        if "chosen" in row and pairs_as != "kto":
            pairs.append(Asked(number, None, (said(row, row["chosen"]), said(row, row["rejected"]))))
        elif is_preference(row):
            rated.append((number, list(ratings(row))))
    return [*pairs, *with_others(every, rated)]


def with_others(every: Sequence[ChatRow], rated: Sequence[tuple[int, list[tuple[Turns, bool]]]]) -> Iterator[Asked]:
    """Each rating with the answer of the row before it that has the same place there."""
    for place, (number, own) in enumerate(rated):
        before = rated[place - 1][1]
        for at, (answer, good) in enumerate(own):
            other, _ = before[at % len(before)]
            yield Asked(number, good, (said(every[number], answer), said(every[number], other)))
