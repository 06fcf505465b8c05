"""Loads tokenized examples as tensors; cuts them into micro-batches by token budget; pads and collates batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from backprop_core.data import row_files, token_cache
from backprop_core.errors import NoRows
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import Limit
from backprop_core.store.artifacts import Store

OVERHEAD = 256  # fixed cost of a forward and backward pass, in tokens
log = logging.getLogger(__name__)

# b = examples, t = tokens of the longest, n = label tokens of the batch


@dataclass(frozen=True)
class Item:
    """One example: its token ids (t), the positions of its label tokens, and the row it comes from. Both int32."""

    ids_t: Tensor
    at_n: Tensor
    row: int

    def __len__(self) -> int:
        return len(self.ids_t)


class OfRow(Protocol):
    """What is trained together: an example, or those of a preference."""

    @property
    def row(self) -> int:
        """The row that it comes from."""

    def __len__(self) -> int:
        """Its tokens."""


class Items(list[Item]):
    """Examples in row order, with the counts of `chat_encoding.Examples`."""

    cut = 0
    left_out = 0


class Passes(list[list[int]]):
    """Indices of the examples of each epoch; `ordered`: in the order in which they are trained, not shuffled."""

    ordered = False


@dataclass(frozen=True)
class Batch:
    """A batch: inputs without the last column, and for each label token its flat position and its example."""

    ids_bt: Tensor
    lengths_b: Tensor
    at_n: Tensor
    row_n: Tensor
    labels_n: Tensor


def load(base: LoadedBase, rows: RowsRef, *, max_length: int | Limit, store: Store) -> Items:
    """Tokenize rows with the base's tokenizer and chat template, in row order; cached.

    Raises NoRows if there are none, and what `chat_encoding.encode` raises.
    """
    if rows.rows == 0:
        raise NoRows(f"rows artifact {rows.digest[:12]} is empty", hint="provide more rows")
    ref, flat = token_cache.load(base, rows, max_length=max_length, store=store)
    if ref.cut or ref.left_out:
        tokens = max_length.tokens if isinstance(max_length, Limit) else max_length
        log.warning(
            "%d rows are longer than %d tokens and were shortened; %d rows or answers were left out",
            *(ref.cut, tokens, ref.left_out),
        )
    made = Items(items(flat))
    made.cut, made.left_out = ref.cut, ref.left_out
    return made


def by_pass(items: Sequence[OfRow], rows: RowsRef, store: Store) -> Passes:
    """Indices of the examples in each epoch; one list with all examples unless the rows have replay passes.

    The examples of a row that is trained several times an epoch are there as often. With a curriculum they are in its
    order.
    """
    directory = store.local(rows)
    named = [set(numbers) for numbers in row_files.passes(directory)]
    some = set().union(*named)
    every, order = repeated(items, row_files.repeats(directory)), row_files.curriculum(directory)
    if order == "length":
        every.sort(key=lambda index: len(items[index]))
    made = Passes(
        [index for index in every if items[index].row in chosen or items[index].row not in some] for chosen in named
    )
    made.ordered = order is not None
    return made


def repeated(items: Sequence[OfRow], again: NDArray[np.uint8] | None) -> list[int]:
    """The indices of the examples, each as often as an epoch trains its row."""
    if again is None:
        return list(range(len(items)))
    return [index for index, item in enumerate(items) for _ in range(1 + int(again[item.row]))]


def items(flat: token_cache.Tensors) -> list[Item]:
    """Split flat tensors into examples (views)."""
    ids = torch.split(flat["ids_t"], flat["length_e"].tolist())
    positions = torch.split(flat["at_n"], flat["labels_e"].tolist())
    return [Item(*example) for example in zip(ids, positions, flat["row_e"].tolist(), strict=True)]


def collate(items: Sequence[Item], device: torch.device) -> Batch:
    """Pad examples into one batch on `device`."""
    ids_bt = pad_sequence([item.ids_t for item in items], batch_first=True)[:, :-1].long()
    width = ids_bt.shape[1]
    counts_b = torch.tensor([len(item.at_n) for item in items])
    row_n = torch.arange(len(items)).repeat_interleave(counts_b)
    at_n = torch.cat([item.at_n for item in items]) - 1 + row_n * width
    labels_n = torch.cat([item.ids_t[item.at_n] for item in items]).long()
    lengths_b = torch.tensor([len(item) for item in items])
    return Batch(*(tensor.to(device) for tensor in (ids_bt, lengths_b, at_n, row_n, labels_n)))


def by_budget(indices: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Sort `indices` by length and cut them into groups of at most `budget` padded tokens, or of one example.

    Minimizes the total cost: a group costs its padded tokens plus OVERHEAD. Up to rounding, the gradient does not
    depend on the grouping.
    """
    order = sorted(indices, key=lambda index: (-lengths[index], index))
    widths = [lengths[index] for index in order]
    costs, starts = [0], [0]  # of the best grouping of the first n examples; where its last group starts
    for end in range(1, len(order) + 1):
        first = next((i + 1 for i in range(end - 2, -1, -1) if (end - i) * widths[i] > budget), 0)
        cost, start = min((costs[i] + OVERHEAD + (end - i) * widths[i], i) for i in range(min(first, end - 1), end))
        costs.append(cost)
        starts.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(order[starts[end] : end])
        end = starts[end]
    return groups[::-1]
