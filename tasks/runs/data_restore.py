"""`backprop data restore`: lists the rows in quarantine, and puts back those that a person names. No Prefect."""

import re
from collections.abc import Collection, Sequence

from pydantic import Field

from backprop_core.data.restored_rows import QuarantinedRow, listed, quarantined, restore, restored
from backprop_core.data.row_search import PREFIX
from backprop_core.errors import RefAmbiguous, RowUnknown
from backprop_core.lines.row_trace import source_paths
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import held

NAMED = 10  # rows that an error lists


class Restored(Record):
    """The rows that were put back, and those that are left in quarantine."""

    restored: list[QuarantinedRow]
    quarantined: list[QuarantinedRow] = Field(description="In the order of their files.")


def data_restore(asked: Sequence[str], config: Settings) -> Restored:
    """Put rows back, each named by the start of its id; the next run that reads them keeps them.

    Raises RowUnknown, RefAmbiguous.
    """
    store = Store(config.store_path)
    try:
        with held(store.lock("prune"), "the store is being pruned"):
            every, paths = quarantined(store), source_paths(store)
            chosen = {row: every[row] for row in (named(one, every) for one in asked)}
            if chosen:
                restore(chosen, store)
            left = {row: every[row] for row in every.keys() - restored(store)}
            return Restored(restored=listed(chosen, paths, store), quarantined=listed(left, paths, store))
    finally:
        store.close()


def named(asked: str, rows: Collection[str]) -> str:
    """The one row whose id starts like this. Raises RowUnknown, RefAmbiguous."""
    found = [row for row in rows if re.fullmatch(PREFIX, asked) and row.startswith(asked)]
    if not found:
        raise RowUnknown(
            f"no row in quarantine has the id {asked[:64]!r}",
            hint="`backprop data restore` lists them; write at least 6 digits of an id",
        )
    if len(found) > 1:
        shown = ", ".join(row[:12] for row in found[:NAMED])
        raise RefAmbiguous(f"{len(found)} rows in quarantine have the id {asked}: {shown}", hint="use more digits")
    return found[0]
