"""The rows of a line that can be trained or scored on another base."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from backprop_core.data import row_files
from backprop_core.data.file_readers import Malformed
from backprop_core.data.learned_rows import in_any_form
from backprop_core.data.row_index import Mask
from backprop_core.data.template_refusals import Refusals
from backprop_core.schema.refs import ChatTemplate, RowsRef
from backprop_core.store.artifacts import Store

BATCH = 1024  # rows in memory


def carried_over(rows: RowsRef, template: ChatTemplate, *, without: Sequence[RowsRef], store: Store) -> RowsRef:
    """The rows that the template accepts and that are in no form in `without`, in order; unchanged if all are."""
    every, directory = row_files.index(rows, store), store.local(rows)
    kept = accepted(rows, template, store) & ~in_any_form(every, row_files.index_all(without, store))
    if kept.all():
        return rows
    record = {"stage": "carried_over", "rows": rows.digest}
    identified = (directory / row_files.IDENTITIES).is_file()
    order = row_files.curriculum(directory)
    return row_files.commit(every.take(kept), store, record, identified=identified, curriculum=order)


def accepted(rows: RowsRef, template: ChatTemplate, store: Store) -> Mask:
    """Which rows the template renders with all that they carry."""
    refusals, found = Refusals(template), list[bool]()
    left = row_files.lines(store.local(rows) / row_files.ROWS)
    while some := list(islice(left, BATCH)):
        found += [not isinstance(row, Malformed) for row in refusals(some)]
    return np.array(found, np.bool_)
