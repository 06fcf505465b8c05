"""Detects the row format of a dataset, and converts its rows to chat rows."""

from collections.abc import Collection, Sequence

from backprop_core.data.file_readers import Malformed, Value
from backprop_core.data.row_formats import FORMATS, ChatRow, Format, Row
from backprop_core.data.unsupported_fields import refuse_row, says_more, untrained
from backprop_core.errors import ConfigInvalid, FormatUnknown
from backprop_core.schema.specs import DatasetSpec


def chat_row(row: Row, format: Format, columns: dict[str, str]) -> ChatRow:
    """Convert a row to a chat row. Raises Malformed if that would lose information."""
    made = format.convert(row)
    used = {*format.fields, *columns.values()}
    if "chosen" in used:  # mapped by columns: the user knows that it is one of two answers
        used |= {"rejected"}
    said = [turn["content"] for turn in made["messages"]] if "messages" in made else [made["text"]]
    refuse_row(row, used=used, said=said)
    if not columns:  # columns say which fields to use
        refuse_others(row, used=used, said=said)
    return made


def refuse_others(row: Row, *, used: Collection[str], said: Sequence[str]) -> None:
    """Raise Malformed for a row that also fits another format, with different text there."""
    for other in FORMATS.values():
        if row.keys() >= set(other.required):
            for name in other.required:
                if name not in used and says_more(row[name], said):
                    raise untrained("the row", name, row[name])


def row_of(value: Value, columns: dict[str, str]) -> Row:
    """A row with the field names of its format. Raises Malformed."""
    if isinstance(value, Malformed):
        raise value
    return mapped(value, columns)


def mapped(row: Row, columns: dict[str, str]) -> Row:
    """The row with the format's fields added, copied from their columns."""
    return {**row, **{field: row[column] for field, column in columns.items() if column in row}} if columns else row


def format_of(rows: list[Row], spec: DatasetSpec) -> str:
    """The configured format, or the one that fits most of these rows; the first in FORMATS if several do."""
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
        f"{spec.path}: unknown row format, with fields {found_in(rows)}",
        hint=f"map them with columns (field of the format -> column of the file). Formats: {known}",
    )
