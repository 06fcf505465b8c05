"""All rows of a source in memory, converted, with the malformed ones in place: for looking at a dataset."""

from typing import NamedTuple

from backprop_core.data.file_readers import Item, Malformed
from backprop_core.data.loading import ChatRow, chat_row_or_malformed, opened
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec


class Converted(NamedTuple):
    """The row format of a source, its rows as parsed, and each of them as a chat row, or why it cannot be one."""

    format: str
    items: list[Item]
    rows: list[ChatRow | Malformed]


def converted(source: SourceRef, spec: DatasetSpec) -> Converted:
    """Parse a source and convert its rows. Raises what `loading.chat_rows` raises."""
    convert, items = opened(source, spec)
    every = list(items)
    return Converted(convert.name, every, [chat_row_or_malformed(item, convert) for item in every])
