"""Loads a dataset: finds its source, parses the files, detects the row format, and converts rows to chat rows."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from backprop_core.data.file_readers import Item, Malformed, Place, rows_of
from backprop_core.data.format_detection import DETECTED_FROM, Conversion, conversion, found_in, mapped
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_time import time_of
from backprop_core.data.sources import ON_HUB, in_order, snapshot
from backprop_core.errors import ConfigInvalid, InputValidationFailed, NoRows
from backprop_core.schema.refs import SourceFile, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.cache_keys import digest_of

__all__ = ["Bad", "ChatRow", "Parsed", "Read", "chat_rows", "check", "find", "good_rows", "read_rows", "snapshot"]

BATCH = 1024  # rows that the chat template is tried on together
SHOWN = 3  # malformed rows in an error
REFUSED = "refused_by_template"  # reason of rows that the base's chat template refuses
ABSENT = "_not_in_template"  # end of the reasons of rows that it writes without their tools, calls, reasoning or names
Refuse: TypeAlias = Callable[[Sequence[ChatRow]], Iterable[ChatRow | Malformed]]


class Bad(NamedTuple):
    """A dropped row: its place, the reason to count by, and a detail for people."""

    place: Place
    reason: str
    detail: str


class Read(NamedTuple):
    """One row of a source: its place, and the chat row or why there is none.

    `group` is the hash of its group; 0 for none. `time` is in microseconds since 1970, if the dataset is split by time.
    """

    place: Place
    row: ChatRow | Malformed
    group: int = 0
    time: int = 0


class Parsed(NamedTuple):
    """The chat rows and the dropped rows of a source, each in the source's order."""

    rows: list[ChatRow]
    bad: list[Bad]


def find(dataset: DatasetSpec, *, scratch: Path) -> SourceRef:
    """Find and hash a dataset's source. A local file takes precedence over a Hub dataset of the same name.

    Raises what `snapshot` and `hub_datasets.snapshot` raise, and ConfigInvalid for fields that only Hub datasets have.
    """
    if dataset.on_hub():
        from backprop_core.data import hub_datasets

        return hub_datasets.snapshot(dataset, scratch=scratch)
    of_hub = [name for name in ("revision", "config", "split", "first") if getattr(dataset, name)]
    if of_hub:
        raise ConfigInvalid(f"{dataset.path} is not a Hub dataset: it has no {of_hub[0]}", hint="remove that field")
    return snapshot(dataset.path, scratch=scratch, encoding=dataset.encoding)


def read_rows(source: SourceRef, spec: DatasetSpec, *, refusals: Refuse | None = None) -> Parsed:
    """Read all rows of a source into memory, where `chat_rows` reads them one by one.

    Raises what `chat_rows` raises, and InputValidationFailed for more than `spec.max_bad_rows` malformed rows.
    """
    good, bad, tally = list[ChatRow](), list[Bad](), BadRows()
    for place, row, *_ in chat_rows(source, spec, refusals=refusals):
        if isinstance(row, Malformed):
            bad.append(Bad(place, row.reason, str(row)))
        else:
            good.append(row)
        tally.add(place, row)
    tally.check(spec)
    return Parsed(good, bad)


def good_rows(source: SourceRef, spec: DatasetSpec) -> Iterator[ChatRow]:
    """Read the chat rows of a source one by one, and raise at the end what `read_rows` raises."""
    tally = BadRows()
    for place, row, *_ in chat_rows(source, spec):
        tally.add(place, row)
        if not isinstance(row, Malformed):
            yield row
    tally.check(spec)


def chat_rows(source: SourceRef, spec: DatasetSpec, *, refusals: Refuse | None = None) -> Iterator[Read]:
    """Read the rows of a source one by one; its bytes must match its digest. `spec.path` is its name in errors.

    `refusals` returns each chat row as it is to be used, or why it cannot be; refused rows count as malformed.
    Raises InputValidationFailed if the source cannot be parsed or has changed; NoRows if it is empty; FormatUnknown if
    no row format fits; FormatsMixed if two do; ConfigInvalid if `spec.columns` names a field that no format has, or a
    column that the file does not have. InputValidationFailed also for a usable row with several values of
    `spec.group_by`, or with `spec.time_split` without a time.
    """
    convert, items = opened(source, spec)
    while some := [read(item, convert, spec) for item in islice(items, BATCH)]:
        yield from accepted(some, refusals) if refusals else some


def check(source: SourceRef, spec: DatasetSpec) -> None:
    """Read the first rows of a source. Raises what `read_rows` raises for them, and for a short source all of it."""
    tally = BadRows()
    for place, row, *_ in islice(chat_rows(source, spec), DETECTED_FROM):
        tally.add(place, row)
    if tally.read < DETECTED_FROM:
        tally.check(spec)


def read(item: Item, convert: Conversion, spec: DatasetSpec) -> Read:
    """An item as a chat row, with its group and its time."""
    row, fields = chat_row_or_malformed(item, convert), item.value
    if isinstance(fields, Malformed) or isinstance(row, Malformed):
        return Read(item.place, row)
    value = fields.get(spec.group_by) if spec.group_by else None
    group = 0 if value is None else int(digest_of(group_text(one_group(value, item.place, spec)))[:16], 16)
    asked = spec.time_split
    return Read(item.place, row, group, time_of(fields, asked.field, item.place, spec.path) if asked else 0)


def one_group(value: Any, place: Place, spec: DatasetSpec) -> Any:
    """A row's group. Raises InputValidationFailed for a list of several: their rows may stand on different sides."""
    if isinstance(value, list) and len({group_text(one) for one in value}) > 1:
        raise InputValidationFailed(
            f"{spec.path}: {place}: group_by {spec.group_by}: the row belongs to {len(value)} groups",
            hint="name a field with one value a row, such as one that you add for rows that belong together",
        )
    return value


def group_text(value: Any) -> str:
    """A group's value as text, the same whether its container has numbers (17), only text ("17"), or floats (17.0)."""
    if isinstance(value, str):
        return value
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return json.dumps(whole, sort_keys=True, default=str)


def opened(source: SourceRef, spec: DatasetSpec) -> tuple[Conversion, Iterator[Item]]:
    """How to convert a source's rows, and its parsed rows. Raises what `chat_rows` raises."""
    items = items_of(source, spec.path)
    head = list(islice(items, DETECTED_FROM))
    if not head:
        raise NoRows(f"{spec.path} is empty", hint="use a file with rows")
    first = [mapped(item.value, spec.columns) for item in head if isinstance(item.value, dict)]
    asked = {"group_by": spec.group_by, "time_split.field": spec.time_split and spec.time_split.field}
    for name, field in asked.items():
        if field and first and not any(field in row for row in first):
            raise ConfigInvalid(f"{name}: {spec.path} has no {field}", hint=f"it has {found_in(first)}")
    return conversion(head, spec), chain(head, items)


def chat_row_or_malformed(item: Item, convert: Conversion) -> ChatRow | Malformed:
    """An item's chat row, or why there is none."""
    try:
        return convert(item)
    except Malformed as error:
        return error.with_traceback(None)


def accepted(some: Sequence[Read], refusals: Refuse) -> Iterator[Read]:
    """The same rows as the base's chat template takes them, or why it refuses them."""
    found = iter(refusals([read.row for read in some if not isinstance(read.row, Malformed)]))
    for read in some:
        yield read if isinstance(read.row, Malformed) else read._replace(row=next(found))


class BadRows:
    """Counts the malformed rows of a source, and remembers the first three."""

    def __init__(self) -> None:
        self.read = self.bad = self.refused = 0
        self._first: list[str] = []

    def add(self, place: Place, row: ChatRow | Malformed) -> None:
        """Count a row."""
        self.read += 1
        if isinstance(row, Malformed):
            self.bad += 1
            self.refused += row.reason == REFUSED or row.reason.endswith(ABSENT)
            if self.bad <= SHOWN:
                self._first.append(f"{place}: {row}")

    def check(self, spec: DatasetSpec) -> None:
        """Raise InputValidationFailed if more than `spec.max_bad_rows` of the rows are malformed."""
        if self.bad <= spec.max_bad_rows * self.read:
            return
        places, most = "; ".join(self._first), f"the maximum share of bad rows is {spec.max_bad_rows:g} (max_bad_rows)"
        if self.refused < self.bad:
            raise InputValidationFailed(
                f"{spec.path}: {self.bad} of {self.read} rows are malformed: {places}", hint=f"fix them; {most}"
            )
        share = "all" if self.refused == self.read else f"{self.refused} of"
        raise InputValidationFailed(
            f"{spec.path}: the base's chat template refuses {share} {self.read} rows: {places}",
            hint="use rows with the roles that it knows, in its order, or a base with another template; the dataset's "
            f"`tools: as_text` writes tools, calls and reasoning as text; {most}",
        )


def items_of(source: SourceRef, name: str) -> Iterator[Item]:
    """All parsed rows of a source, file by file; with several files, each place names its file.

    Files are in the order of their names, in which part-9 comes before part-10.
    """
    if not source.files:
        yield from rows_of(Path(source.path), source.digest, source.reading, name)
    for file in sorted(source.files, key=lambda file: in_order(file.name)):
        whole = f"{name.rstrip('/')}/{file.name}"
        for item in rows_of(place(source, file), file.digest, file.reading, whole):
            yield item.inside(file.name)


def place(source: SourceRef, file: SourceFile) -> Path:
    """The local path of one of a source's files."""
    if not source.path.startswith(ON_HUB):
        return Path(source.path, file.name)
    from backprop_core.data import hub_datasets

    return hub_datasets.local(source.path, file.name)
