"""Loads a dataset: finds its source, parses the files, detects the row format, and converts rows to chat rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from backprop_core.data.file_readers import Item, Malformed, Place, rows_of
from backprop_core.data.format_detection import chat_row, format_of, mapped, row_of
from backprop_core.data.row_formats import FORMATS, ChatRow
from backprop_core.data.sources import ON_HUB, snapshot
from backprop_core.errors import ConfigInvalid, InputValidationFailed, NoRows
from backprop_core.schema.refs import SourceFile, SourceRef
from backprop_core.schema.specs import DatasetSpec

__all__ = ["Bad", "ChatRow", "Parsed", "find", "read_rows", "snapshot"]

DETECTED_FROM = 100  # rows
REFUSED = "refused_by_template"  # reason of rows that the base's chat template refuses
Refuse: TypeAlias = Callable[[Sequence[ChatRow]], Iterable[str | None]]


class Bad(NamedTuple):
    """A dropped row: its place, the reason to count by, and a detail for people."""

    place: Place
    reason: str
    detail: str


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

        return hub_datasets.snapshot(dataset)
    of_hub = [name for name in ("revision", "config", "split") if getattr(dataset, name)]
    if of_hub:
        raise ConfigInvalid(f"{dataset.path} is not a Hub dataset: it has no {of_hub[0]}", hint="remove that field")
    return snapshot(dataset.path, scratch=scratch, encoding=dataset.encoding)


def read_rows(source: SourceRef, spec: DatasetSpec, *, refusals: Refuse | None = None) -> Parsed:
    """Read all rows of a source, whose bytes must match its digest. `spec.path` is its name in errors.

    `refusals` returns for each chat row why it cannot be used, or None; refused rows count as malformed.
    Raises InputValidationFailed if the source cannot be parsed, has changed, or has more than `spec.max_bad_rows`
    malformed rows; NoRows if it is empty; FormatUnknown if no row format fits; ConfigInvalid if `spec.columns` names a
    field that no format has, or a column that the file does not have.
    """
    items = list(items_of(source, spec.path))
    if not items:
        raise NoRows(f"{spec.path} is empty", hint="use a file with rows")
    first = [mapped(item.value, spec.columns) for item in items[:DETECTED_FROM] if isinstance(item.value, dict)]
    chosen = FORMATS[format_of(first, spec)]
    good: dict[int, ChatRow] = {}
    bad: dict[int, Bad] = {}
    for number, item in enumerate(items):
        try:
            good[number] = chat_row(row_of(item.value, spec.columns), chosen, spec.columns)
        except Malformed as error:
            bad[number] = Bad(item.place, error.reason, str(error))
    if refusals:
        for number, why in zip(list(good), refusals(list(good.values())), strict=True):
            if why is not None:
                bad[number] = Bad(items[number].place, REFUSED, why)
                del good[number]
    parsed = Parsed(list(good.values()), [bad[number] for number in sorted(bad)])
    if len(bad) > spec.max_bad_rows * len(items):
        raise too_many_bad(parsed.bad, items, spec)
    return parsed


def items_of(source: SourceRef, name: str) -> Iterator[Item]:
    """All parsed rows of a source, file by file; with several files, each place names its file."""
    if not source.files:
        yield from rows_of(Path(source.path), source.digest, source.reading, name)
    for file in source.files:
        whole = f"{name.rstrip('/')}/{file.name}"
        for item in rows_of(place(source, file), file.digest, file.reading, whole):
            yield item._replace(place=item.place.inside(file.name))


def place(source: SourceRef, file: SourceFile) -> Path:
    """The local path of one of a source's files."""
    if not source.path.startswith(ON_HUB):
        return Path(source.path, file.name)
    from backprop_core.data import hub_datasets

    return hub_datasets.local(source.path, file.name)


def too_many_bad(bad: list[Bad], items: list[Item], spec: DatasetSpec) -> InputValidationFailed:
    """The error, with the first three places."""
    places = "; ".join(f"{place}: {detail}" for place, _, detail in bad[:3])
    refused = sum(one.reason == REFUSED for one in bad)
    if refused == len(bad):
        return InputValidationFailed(
            f"{spec.path}: the base's chat template refuses {'all' if refused == len(items) else f'{refused} of'} "
            f"{len(items)} rows: {places}",
            hint="use rows with the roles that it knows, in its order, or a base with another template; the maximum "
            f"share of bad rows is {spec.max_bad_rows:g} (max_bad_rows)",
        )
    return InputValidationFailed(
        f"{spec.path}: {len(bad)} of {len(items)} rows are malformed: {places}",
        hint=f"fix them; the maximum share of bad rows is {spec.max_bad_rows:g} (max_bad_rows)",
    )
