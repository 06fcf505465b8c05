"""Draws a sample of a source's rows: of JSON lines, only the drawn ones are parsed."""

from backprop_core.data.file_readers import Item, Malformed
from backprop_core.data.forgotten_rows import names
from backprop_core.data.loading import BadRows, ChatRow, opened, read
from backprop_core.data.token_lengths import MOST_ROWS, sample
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec


def sampled(source: SourceRef, spec: DatasetSpec) -> tuple[list[ChatRow], int]:
    """A sample of a source's usable rows without the forgotten ones, and about how many there are.

    Raises what `loading.chat_rows` raises, but InputValidationFailed for too many malformed rows only if all rows are
    drawn, or none is usable. Curation reads the others.
    """
    convert, items = opened(source, spec)
    tally, gone = BadRows(), frozenset(source.forgotten)

    def usable(item: Item) -> ChatRow | None:
        place, row, *_ = read(item, convert, spec)
        tally.add(place, row)
        return None if isinstance(row, Malformed) or (gone and names(row) & gone) else row

    rows, count = sample(items, usable)
    if tally.read < MOST_ROWS or not rows:
        tally.check(spec)
    return rows, count
