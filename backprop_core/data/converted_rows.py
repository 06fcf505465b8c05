"""Reads the rows of a source one by one, converted, with the malformed ones in place: for looking at a dataset."""

from collections.abc import Iterator
from typing import NamedTuple

from backprop_core.data.file_readers import Item, Malformed
from backprop_core.data.loading import ChatRow, chat_row_or_malformed, opened
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec


class ConvertedRow(NamedTuple):
    """A row as parsed, and the chat row, or why it cannot be one."""

    item: Item
    row: ChatRow | Malformed


class Converted(NamedTuple):
    """The row format of a source, and its rows."""

    format: str
    rows: Iterator[ConvertedRow]


def converted(source: SourceRef, spec: DatasetSpec) -> Converted:
    """Parse a source and convert its rows. Raises what `loading.chat_rows` raises, also while rows are taken."""
    convert, items = opened(source, spec)
    return Converted(convert.name, (ConvertedRow(item, chat_row_or_malformed(item, convert)) for item in items))
