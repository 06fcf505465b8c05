"""What a step that compares rows takes and returns."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from backprop_core.data.row_index import Positions, RowIndex
from backprop_core.data.row_lineage import Outcome


class Comparison(NamedTuple):
    """What a step finds of a row among others: its position, what becomes of it, and why."""

    row: int
    outcome: Outcome
    reason: str
    detail: str


# the distinct rows in order of identity, where each last occurs in the source, and a directory for temporary files
SetStep: TypeAlias = Callable[[RowIndex, Positions, Path], Iterator[Comparison]]
