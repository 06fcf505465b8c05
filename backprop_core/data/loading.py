"""Rows in any known format → chat rows: a source is hashed, read in its shape, and each row converted."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from backprop_core.data.file_format import HEAD, reading
from backprop_core.data.file_readers import Item, Malformed, Value, parse
from backprop_core.data.row_formats import FORMATS, ChatRow, Format, Row
from backprop_core.data.sources import ON_HUB, content, snapshot
from backprop_core.data.unsupported_fields import refuse_row, says_more, untrained
from backprop_core.errors import ConfigInvalid, FormatUnknown, InputValidationFailed, NoRows
from backprop_core.schema.refs import SourceFile, SourceRef
from backprop_core.schema.specs import DatasetSpec

__all__ = ["Bad", "ChatRow", "Parsed", "find", "read_rows", "snapshot"]

DETECTED_FROM = 100  # rows
REFUSED = "refused_by_template"  # why a row is bad that the base's chat template does not write
Refuse: TypeAlias = Callable[[Sequence[ChatRow]], Iterable[str | None]]


class Bad(NamedTuple):
    """A row that was dropped: where ("line 3", "a.csv, row 3"), the reason it is counted by, what is wrong in words."""

    place: str
    reason: str
    detail: str


class Parsed(NamedTuple):
    """What a source holds: its chat rows and what was dropped, each in the source's order."""

    rows: list[ChatRow]
    bad: list[Bad]


def find(dataset: DatasetSpec, *, scratch: Path) -> SourceRef:
    """What a dataset names, as it is now. A file that is here comes before a dataset of the Hub of the same name.

    Raises what `snapshot` and `hub.snapshot` raise, and ConfigInvalid for fields that only a dataset of the Hub has.
    """
    if dataset.on_hub():
        from backprop_core.data import hub_datasets

        return hub_datasets.snapshot(dataset)
    of_hub = [name for name in ("revision", "config", "split") if getattr(dataset, name)]
    if of_hub:
        raise ConfigInvalid(f"{dataset.path} is no dataset of the Hub: it has no {of_hub[0]}", hint="leave it out")
    return snapshot(dataset.path, scratch=scratch)


def read_rows(source: SourceRef, spec: DatasetSpec, *, refusals: Refuse | None = None) -> Parsed:
    """All rows of a source, checked to be the bytes that were hashed. `spec.path` is what errors call it.

    `refusals` says of each chat row why it cannot be used, or None: what it refuses is bad as a malformed row is.
    Raises InputValidationFailed if it is in no known shape, has changed, or has more than `spec.max_bad_rows`
    malformed rows; NoRows if it is empty; FormatUnknown if no row format fits; ConfigInvalid if `spec.columns` names a
    field that no format has, or a column that the file does not have.
    """
    items = list(items_of(source, spec.path))
    if not items:
        raise NoRows(f"{spec.path} is empty", hint="give a file with rows in it")
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
    """All rows as the source has them; of several files one after the other, each place with its file."""
    if not source.files:
        data = content(Path(source.path), source.digest, name)
        yield from parse(data, source.reading or reading(data[:HEAD], source.path), name)
    for file in source.files:
        whole = f"{name.rstrip('/')}/{file.name}"
        data = content(place(source, file), file.digest, whole)
        for item in parse(data, file.reading or reading(data[:HEAD], file.name), whole):
            yield Item(f"{file.name}, {item.place}", item.value)


def place(source: SourceRef, file: SourceFile) -> Path:
    """Where one of a source's files is on this machine."""
    if not source.path.startswith(ON_HUB):
        return Path(source.path, file.name)
    from backprop_core.data import hub_datasets

    return hub_datasets.local(source.path, file.name)


def chat_row(row: Row, format: Format, columns: dict[str, str]) -> ChatRow:
    """A row as a chat row, if all that it carries is in that. Raises Malformed."""
    made = format.convert(row)
    used = {*format.fields, *columns.values()}
    if "chosen" in used:  # by columns: the better answer is trained, and it is known that it is one of two
        used |= {"rejected"}
    said = [turn["content"] for turn in made["messages"]] if "messages" in made else [made["text"]]
    refuse_row(row, used=used, said=said)
    if not columns:  # they say which fields are meant
        refuse_others(row, used=used, said=said)
    return made


def refuse_others(row: Row, *, used: Collection[str], said: Sequence[str]) -> None:
    """Raise Malformed for a row that is of another format too, and says something else there."""
    for other in FORMATS.values():
        if row.keys() >= set(other.required):
            for name in other.required:
                if name not in used and says_more(row[name], said):
                    raise untrained("the row", name, row[name])


def row_of(value: Value, columns: dict[str, str]) -> Row:
    """A row under the field names of its format. Raises Malformed."""
    if isinstance(value, Malformed):
        raise value
    return mapped(value, columns)


def mapped(row: Row, columns: dict[str, str]) -> Row:
    """The row with the fields of the format added to the columns they come from."""
    return {**row, **{field: row[column] for field, column in columns.items() if column in row}} if columns else row


def format_of(rows: list[Row], spec: DatasetSpec) -> str:
    """The format that was named, or the one that fits most of these rows; of equal ones the first in FORMATS."""
    candidates = FORMATS if spec.format == "auto" else {spec.format: FORMATS[spec.format]}
    candidates = {name: known for name, known in candidates.items() if known.fields >= spec.columns.keys()}
    check_columns(rows, candidates, spec)
    fits = {name: sum(row.keys() >= set(known.required) for row in rows) for name, known in candidates.items()}
    best = max(fits, key=lambda name: fits[name])
    if rows and not fits[best]:
        raise unknown(rows, candidates, spec)
    return best


def check_columns(rows: list[Row], candidates: dict[str, Format], spec: DatasetSpec) -> None:
    if not candidates:
        known = "; ".join(f"{name}: {', '.join(sorted(format.fields))}" for name, format in FORMATS.items())
        raise ConfigInvalid(f"columns: no format has {', '.join(spec.columns)}", hint=f"fields by format: {known}")
    missing = [column for column in spec.columns.values() if not any(column in row for row in rows)]
    if rows and missing:
        raise ConfigInvalid(f"columns: {spec.path} has no {', '.join(missing)}", hint=f"it has {found_in(rows)}")


def found_in(rows: list[Row]) -> str:
    return ", ".join(sorted({str(field) for row in rows for field in row})) or "no fields"


def unknown(rows: list[Row], candidates: dict[str, Format], spec: DatasetSpec) -> FormatUnknown:
    known = "; ".join(f"{name}: {', '.join(format.required)}" for name, format in candidates.items())
    return FormatUnknown(
        f"{spec.path}: rows of no known format, with {found_in(rows)}",
        hint=f"map them with columns (field of the format -> column of the file). Formats: {known}",
    )


def too_many_bad(bad: list[Bad], items: list[Item], spec: DatasetSpec) -> InputValidationFailed:
    """The error that names the first three places."""
    places = "; ".join(f"{place}: {detail}" for place, _, detail in bad[:3])
    refused = sum(one.reason == REFUSED for one in bad)
    if refused == len(bad):
        return InputValidationFailed(
            f"{spec.path}: the base's chat template refuses {'all' if refused == len(items) else f'{refused} of'} "
            f"{len(items)} rows: {places}",
            hint="give rows with the roles that it knows, in its order, or a base with another template; up to "
            f"{spec.max_bad_rows:g} of the rows may be bad (max_bad_rows)",
        )
    return InputValidationFailed(
        f"{spec.path}: {len(bad)} of {len(items)} rows are malformed: {places}",
        hint=f"mend them; up to {spec.max_bad_rows:g} of the rows may be bad (max_bad_rows)",
    )
