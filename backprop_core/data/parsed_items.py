"""What readers of files yield: rows or the reason why one cannot be used, each with its place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias


class Malformed(Exception):
    """One row cannot be used: `reason` is the word to count by, the message is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


Value: TypeAlias = dict[str, Any] | Malformed


class Place(NamedTuple):
    """Where a row stands: its line or row from 1, and the file of a directory or archive; None if it is one file."""

    file: str | None
    unit: Literal["line", "row"]
    number: int

    def __str__(self) -> str:
        """As people read it: "line 3", or "a.csv, row 3"."""
        where = f"{self.unit} {self.number}"
        return f"{self.file}, {where}" if self.file else where

    def inside(self, file: str) -> "Place":
        """The place as seen from outside `file`, which is a file, or an archive with files."""
        return Place(f"{file}/{self.file}" if self.file else file, self.unit, self.number)


@dataclass(slots=True)
class Item:
    """One row and its place. The row may be parsed only when its value is first needed."""

    place: Place
    _value: Value | Callable[[], Value]

    @property
    def value(self) -> Value:
        if callable(self._value):
            self._value = self._value()
        return self._value

    def inside(self, file: str) -> "Item":
        """The row as seen from outside `file`."""
        return Item(self.place.inside(file), self._value)


def at_line(number: int, value: Value | Callable[[], Value]) -> Item:
    return Item(Place(None, "line", number), value)


def at_row(number: int, value: Value) -> Item:
    return Item(Place(None, "row", number), value)


def object_or_malformed(value: Any) -> Value:
    return value if isinstance(value, dict) else Malformed("not_an_object", f"a {type(value).__name__}, not an object")
