"""Keeps the rows of a source in a file while they are curated: 24 bytes a row in memory."""

from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_index import ENTRY, Positions, RowIndex

BUFFER = 2**20  # bytes


class Spool:
    """JSON lines in a file, appended one by one, each with the number of its row in the source."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self._path, self._end = path, 0
        self._file = files.enter_context(path.open("wb", buffering=BUFFER))
        self._offsets, self._sizes, self._numbers = array("Q"), array("I"), array("I")
        self._groups = array("Q")

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, line: str, group: int) -> None:
        """Append the line of a row, and its group."""
        data = line.encode()
        self._file.write(data + b"\n")
        self._offsets.append(self._end)
        self._sizes.append(len(data))
        self._numbers.append(number)
        self._groups.append(group)
        self._end += len(data) + 1

    def numbers(self) -> Positions:
        """(rows,): the rows' numbers in the source."""
        return np.array(self._numbers, np.int64)

    def index(self, identities: NDArray[np.uint8]) -> RowIndex:
        """The rows in the source's order, given the identities of all rows of the source."""
        self._file.flush()
        entries: NDArray[Any] = np.zeros(len(self), ENTRY)
        entries["offset"], entries["size"], entries["group"] = self._offsets, self._sizes, self._groups
        if len(self):
            entries["identity"] = identities[np.frombuffer(self._numbers, np.uint32)]
        return RowIndex((self._path,), entries)
