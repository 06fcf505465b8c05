"""All rows of a source in memory, converted, with the malformed ones in place: for looking at a dataset."""

from typing import NamedTuple

from backprop_core.data.file_readers import Item, Malformed, Value
from backprop_core.data.format_detection import chat_row, format_of, mapped, row_of
from backprop_core.data.loading import DETECTED_FROM, items_of
from backprop_core.data.row_formats import FORMATS, ChatRow, Format
from backprop_core.errors import NoRows
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec


class Converted(NamedTuple):
    """The row format of a source, its rows as parsed, and each of them as a chat row, or why it cannot be one."""

    format: str
    items: list[Item]
    rows: list[ChatRow | Malformed]


def converted(source: SourceRef, spec: DatasetSpec) -> Converted:
    """Parse a source and convert its rows. Raises what `loading.read_rows` raises, but not for malformed rows."""
    items = list(items_of(source, spec.path))
    if not items:
        raise NoRows(f"{spec.path} is empty", hint="use a file with rows")
    first = [mapped(item.value, spec.columns) for item in items[:DETECTED_FROM] if isinstance(item.value, dict)]
    name = format_of(first, spec)
    return Converted(name, items, [chat_row_or_malformed(item.value, FORMATS[name], spec.columns) for item in items])


def chat_row_or_malformed(value: Value, format: Format, columns: dict[str, str]) -> ChatRow | Malformed:
    try:
        return chat_row(row_of(value, columns), format, columns)
    except Malformed as error:
        return error.with_traceback(None)
