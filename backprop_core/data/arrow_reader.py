"""Reads Parquet files, and Arrow files and streams (Feather), batch by batch, with pyarrow."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from backprop_core.data.parsed_items import Item, at_row
from backprop_core.errors import InputValidationFailed

BATCH = 1024  # rows


def parquet(file: BinaryIO, name: str) -> Iterator[Item]:
    """The rows of a Parquet file. Raises InputValidationFailed if it is damaged."""
    import pyarrow.parquet  # type: ignore[import-untyped]

    with undamaged("Parquet", name):
        opened = pyarrow.parquet.ParquetFile(file, pre_buffer=False)  # which would read the whole file at first
        columns = opened.schema_arrow.names
    yield from rows(opened.iter_batches(BATCH), columns, "Parquet", name)


def arrow(file: BinaryIO, name: str) -> Iterator[Item]:
    """The rows of an Arrow IPC file, or Feather file. Raises InputValidationFailed if it is damaged."""
    import pyarrow.ipc  # type: ignore[import-untyped]

    with undamaged("Arrow", name):
        opened = pyarrow.ipc.open_file(file)
        columns = opened.schema.names
    batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
    yield from rows(batches, columns, "Arrow", name)


def arrow_stream(stream: BinaryIO, name: str) -> Iterator[Item]:
    """The rows of an Arrow IPC stream. Raises InputValidationFailed if it is damaged."""
    import pyarrow.ipc

    with undamaged("Arrow", name):
        opened = pyarrow.ipc.open_stream(stream)
        columns = opened.schema.names
    yield from rows(opened, columns, "Arrow", name)


def rows(batches: Iterable[Any], columns: Sequence[str], kind: str, name: str) -> Iterator[Item]:
    """The rows of record batches. Raises InputValidationFailed for two columns of one name."""
    if twice := [column for column, count in Counter(columns).items() if count > 1]:
        raise InputValidationFailed(f"{name} has two columns named {twice[0]!r}", hint="rename one of them")
    number, source = 0, iter(batches)
    while (part := values(source, kind, name, number)) is not None:
        for piece in part:
            with undamaged(kind, name, after=number):
                found = piece.to_pylist()
            for value in found:
                number += 1
                yield at_row(number, value)


def values(batches: Iterator[Any], kind: str, name: str, before: int) -> list[Any] | None:
    """The next batch, checked, in pieces of BATCH rows; None if there is none. `before` rows come before it."""
    with undamaged(kind, name, after=before):
        batch = next(batches, None)
        if batch is None:
            return None
        batch.validate(full=True)  # wrong offsets would be read outside the buffers
        return [batch.slice(begin, BATCH) for begin in range(0, batch.num_rows, BATCH)]


@contextmanager
def undamaged(kind: str, name: str, *, after: int = 0) -> Iterator[None]:
    """Turn pyarrow's errors into InputValidationFailed. A damaged length is more memory than there is."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError) as error:
        where = f"{name}, after row {after}" if after else name
        hint = "create or copy it again"
        raise InputValidationFailed(f"{where}: damaged {kind} file: {error}", hint=hint) from error
