"""Reads the rows of a dataset for its report into a file, without those that curation drops if no step is on.

In memory are about 110 bytes of each row that is left: its identity, place and length, and where it is in that file.
"""

import json
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.converted_rows import ConvertedRow, converted
from backprop_core.data.file_readers import Item, Malformed, Place
from backprop_core.data.forgotten_rows import names
from backprop_core.data.loading import BATCH, ChatRow
from backprop_core.data.preference_rows import is_preference
from backprop_core.data.report_samples import Reasons
from backprop_core.data.row_identity import identity, teaches
from backprop_core.data.row_index import SIZE, Positions, RowIndex, order_of
from backprop_core.data.row_places import Places
from backprop_core.data.row_spool import Spool
from backprop_core.data.template_refusals import Refusals
from backprop_core.data.token_lengths import MOST_ROWS, Reservoir, texts
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.cache_keys import canonical

EMPTY, DUPLICATE, JUDGED, FORGOTTEN = "empty", "duplicate", "preference", "forgotten"


@dataclass(frozen=True)
class Usable:
    """Distinct rows that curation keeps, in the source's order, as training is to see them."""

    index: RowIndex
    numbers: Positions  # of these rows among `places`
    places: Places
    characters: NDArray[np.uint64]

    def place(self, row: int) -> Place:
        """Where a row stands in the source."""
        return self.places[int(self.numbers[row])]

    def rows(self) -> Iterator[ChatRow]:
        """The rows, one by one."""
        return map(json.loads, self.index.lines())

    def at(self, which: Sequence[int]) -> list[ChatRow]:
        """The rows at some positions."""
        return list(map(json.loads, self.index.take(np.array(which, np.int64)).lines()))


class ReadRows:
    """The rows of a source: how many, why some are dropped, and a sample of all chat rows."""

    def __init__(
        self,
        scratch: Path,
        files: ExitStack,
        refusals: Refusals | None = None,
        forgotten: Collection[str] = (),
    ) -> None:
        self.format, self.malformed = "", 0
        self.dropped = Reasons()
        self.sample = Reservoir[ChatRow](MOST_ROWS)
        self.read_in, self.usable_in = Counter[str | None](), Counter[str | None]()  # by file
        self._refusals, self._forgotten = refusals, frozenset(forgotten)
        self._spool, self._places = Spool(scratch / "usable", files), Places()
        self._identities, self._characters = bytearray(), array("Q")

    @property
    def read(self) -> int:
        """How many rows the source has."""
        return self.read_in.total()

    def add(self, some: Sequence[ConvertedRow]) -> None:
        """Keep the usable ones of some rows, and note why others are dropped."""
        good: list[ChatRow] = [row for _, row in some if not isinstance(row, Malformed)]
        tried: Iterator[ChatRow | Malformed] = self._refusals(good) if self._refusals else iter(good)
        self.malformed += len(some) - len(good)
        for row in good:
            self.sample.add(row)
        for one in some:
            self.read_in[one.item.place.file] += 1
            self._add(one.item, one.row if isinstance(one.row, Malformed) else next(tried))

    def _add(self, item: Item, row: ChatRow | Malformed) -> None:
        if isinstance(row, Malformed):
            self._drop(item, row.reason, str(row))
        elif self._forgotten and names(row) & self._forgotten:
            self.dropped.add(FORGOTTEN, item.place, "it was forgotten".__str__, "".__str__)
        elif is_preference(row):
            self._drop(item, JUDGED, "a preference, trained only with training.preference.loss")
        elif not teaches(row):
            self._drop(item, EMPTY, "no answer to learn from")
        else:
            self._spool.add(self._places.add(item.place), canonical(row), group=0)
            self._identities += identity(row)
            self._characters.append(sum(map(len, texts(row))))
            self.usable_in[item.place.file] += 1

    def _drop(self, item: Item, reason: str, detail: str) -> None:
        value = item.value
        self.dropped.add(
            reason, item.place, lambda: detail, lambda: "" if isinstance(value, Malformed) else canonical(value)
        )

    def usable(self) -> Usable:
        """The rows that are left; of several equal ones the first, the others are dropped. Call it once."""
        every = self._spool.index(np.frombuffer(self._identities, np.uint8).reshape(-1, SIZE))
        first = firsts(every)
        for row in np.flatnonzero(first != np.arange(len(every))).tolist():
            place, before = self._places[row], self._places[int(first[row])]
            self.usable_in[place.file] -= 1
            self.dropped.add(DUPLICATE, place, f"the same as {before}".__str__, partial(text_at, every, row))
        kept = np.flatnonzero(first == np.arange(len(every)))
        return Usable(every.take(kept), kept, self._places, np.frombuffer(self._characters, np.uint64)[kept])


def read(
    source: SourceRef,
    spec: DatasetSpec,
    refusals: Refusals | None,
    scratch: Path,
    files: ExitStack,
    forgotten: Collection[str] = (),
) -> ReadRows:
    """Read a source; `forgotten` has identities of rows to drop. Raises what `loading.chat_rows` raises."""
    form, rows = converted(source, spec)
    made = ReadRows(scratch, files, refusals, forgotten)
    made.format = form
    while some := list(islice(rows, BATCH)):
        made.add(some)
    return made


def firsts(rows: RowIndex) -> Positions:
    """For each row the position of the first one with its identity."""
    order = order_of(rows.entries["identity"])
    ordered = rows.entries["identity"][order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    found = np.empty(len(order), np.int64)
    found[order] = order[begins][np.cumsum(begins) - 1]
    return found


def text_at(rows: RowIndex, row: int) -> str:
    """The line of one row."""
    return next(rows.take(slice(row, row + 1)).lines()).decode()
