"""Finds forgotten rows that the sets of a store still have, and unites the lists of two stores."""

from collections.abc import Collection, Iterator

import numpy as np

from backprop_core.data.forgotten_rows import ForgottenRow, forgotten, write
from backprop_core.data.row_conversations import sharing_conversations
from backprop_core.data.row_files import index
from backprop_core.data.row_index import Keys
from backprop_core.data.row_search import sets
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import held


def unite(source: Store, target: Store) -> None:
    """Add the rows that one store has forgotten to the list of another. Waits for a prune of it."""
    with held(target.lock("prune"), "the store is being pruned"):
        known = forgotten(target)
        both = known | {row: united(one, known.get(row)) for row, one in forgotten(source).items()}
        if both != known:
            write(both.values(), target)


def united(one: ForgottenRow, other: ForgottenRow | None) -> ForgottenRow:
    """A row with the versions that either store knows."""
    return one.model_copy(update={"versions": sorted({*one.versions, *(other.versions if other else ())})})


def having(rows: Collection[str], store: Store) -> Iterator[str]:
    """The rows in the sets of a store that have one of these identities, or a conversation with one of them."""
    keys: Keys = np.array([bytes.fromhex(row) for row in rows], "S32")
    for ref in sets(store) if rows else ():
        found = index(ref, store)
        gone = found.among(keys) | sharing_conversations(found, keys)
        yield from (row.hex() for row in found.take(gone).identities())
