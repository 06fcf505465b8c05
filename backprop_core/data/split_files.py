"""Splits a dataset into two files of rows, as a run would hold rows out."""

from pathlib import Path

import numpy as np
from pydantic import Field

from backprop_core.data.curation import curate
from backprop_core.data.heldout_leaks import safe
from backprop_core.data.row_files import index, times
from backprop_core.data.row_index import RowIndex
from backprop_core.data.row_sets import ORDER
from backprop_core.data.splits import HELDOUT_SHARE, by_hash, latest, lead
from backprop_core.data.token_lengths import Counter
from backprop_core.errors import NoRows
from backprop_core.schema.records import Record
from backprop_core.schema.refs import RowsRef, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store, write_atomic

SHARE = 1 / HELDOUT_SHARE  # of the rows that a run holds out


class SplitFiles(Record):
    """A dataset in two files."""

    read: int = Field(description="Rows in the source.")
    dropped: dict[str, int] = Field(description="Dropped rows by reason.")
    heldout_rows: int
    train_rows: int
    left_out: int = Field(description="Rows in neither file: too close to a held-out row, or of its group.")
    heldout: str
    train: str | None


def split_files(
    source: SourceRef,
    spec: DatasetSpec,
    *,
    share: float | None,
    heldout: Path,
    train: Path | None,
    counter: Counter | None,
    store: Store,
) -> SplitFiles:
    """Write the held-out rows of a source, and its other rows, as JSON lines of chat rows.

    Without a share it holds out what a first run of a line would. A row's hash decides, or its time if the dataset is
    split by time, so that a larger share holds out the same rows and more. `counter` counts tokens for curation. Raises
    what curation raises, NoRows if a side is empty, and OSError.
    """
    made = curate(source, spec, counter=counter, store=store)
    rows = index(made.rows, store)
    out = held_out(rows, made.rows, spec, share, store)
    rest = rows.take(~rows.among(out.keys))
    beside = rest.grouped(out.entries["group"])
    kept, _ = safe(rest.take(~beside), out, spec.curation, store, whole_questions=True)
    if not len(out) or not len(kept):
        side = "held out" if not len(out) else "left to train on"
        raise NoRows(f"{spec.path}: no row of {len(rows)} would be {side}", hint="choose another --share, or more rows")
    write(out, heldout)
    if train:
        write(kept.by_hash(ORDER), train)
    return SplitFiles(
        read=made.read,
        dropped=made.left_out,
        heldout_rows=len(out),
        train_rows=len(kept),
        left_out=len(rest) - len(kept),
        heldout=str(heldout),
        train=train and str(train),
    )


def held_out(rows: RowIndex, ref: RowsRef, spec: DatasetSpec, share: float | None, store: Store) -> RowIndex:
    """The held-out rows: those that a run would choose, or with another share the latest, or the lowest by hash."""
    if spec.time_split:
        return latest(rows, times(ref, store), share or spec.time_split.last, 0, spec.path)
    if share in (None, SHARE):
        return by_hash([rows], 0)
    assert share is not None
    return rows.take(lead(rows) < np.uint64(min(share * 2**64, 2**64 - 1)))


def write(rows: RowIndex, path: Path) -> None:
    """Write rows as JSON lines, whole or not at all."""
    write_atomic(path, "".join(line.decode() + "\n" for line in rows.lines()))
