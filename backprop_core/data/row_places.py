"""Keeps where the rows of a source stand, in 4 bytes a row."""

from array import array
from bisect import bisect_right
from typing import Literal, NamedTuple

from backprop_core.data.parsed_items import Place


class Stretch(NamedTuple):
    """Successive rows of one file, by its name and what its numbers count."""

    file: str | None
    unit: Literal["line", "row"]


class Places:
    """The places of rows, numbered from 0 in the order in which they are added."""

    def __init__(self) -> None:
        self._numbers = array("I")
        self._starts, self._stretches = list[int](), list[Stretch]()

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, place: Place) -> int:
        """Add the next row, and return its number."""
        stretch = Stretch(place.file, place.unit)
        if not self._stretches or self._stretches[-1] != stretch:
            self._starts.append(len(self))
            self._stretches.append(stretch)
        self._numbers.append(place.number)
        return len(self) - 1

    def __getitem__(self, row: int) -> Place:
        file, unit = self._stretches[bisect_right(self._starts, row) - 1]
        return Place(file, unit, self._numbers[row])
