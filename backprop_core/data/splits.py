"""Splits rows into training, held-out (scored) and set-aside rows. A row keeps its side throughout a run and line.

Candidates for scoring, over all inputs of a run: rows that the line holds out, rows of held-out files and watched sets,
and the lowest tenth by hash of every other dataset. A task with fewer than FEWEST takes more by hash, as long as two
thirds of the new rows remain. The first `heldout_max` of a task are scored. Of the rest, rows held out by the line, a
file or a watched set are set aside, and rows held out only by hash are trained. Rows that the line has learned are
never held out. Every dataset is trained without the scored and set-aside rows of all tasks.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from backprop_core.data.curation import HINT, Known, commit, identities_of, known_in, unique
from backprop_core.errors import NoRows
from backprop_core.schema.refs import Batch, DatasetRef, RowsRef, Split
from backprop_core.schema.specs import MinRowsSpec
from backprop_core.store.artifacts import Store

FEWEST = MinRowsSpec().task  # held-out rows of a task that the gate needs
MOST = 3  # hold out at most one in three rows to reach FEWEST


class Side(NamedTuple):
    """The rows of one task that are not trained, in order of identity."""

    scored: list[Known]
    aside: list[Known]
    learned: int  # rows not held out because the line has learned them


def split(
    batches: Sequence[Batch],
    *,
    watched: Sequence[Batch] = (),
    held: Mapping[str, Sequence[RowsRef]] | None = None,
    learned: Sequence[RowsRef] = (),
    heldout_max: int,
    store: Store,
) -> Split:
    """Commit the training rows of each batch and the scored rows of each task as artifacts.

    `held` has all rows that the line ever held out, by task; `learned` all rows it was trained on. `Batch.skip` and
    `Batch.rows` select a window of the training rows. Usable rows not trained are counted by reason: see
    DatasetSummary.

    `Split.heldout` omits tasks without rows to score. Raises NoRows if a batch has no rows to train on, unless it
    continues a line.
    """
    held, known = held or {}, identities_of(learned, store)
    tasks = dict.fromkeys([*held, *(batch.task for batch in [*batches, *watched])])
    sides = {
        task: side(
            [row for ref in bound(task, batches, watched, held) for row in known_in(ref, store)],
            {batch.source.rows for batch in batches if batch.task == task and batch.heldout is None},
            known,
            heldout_max=heldout_max,
            store=store,
        )
        for task in tasks
    }
    seen_by = {"watched": [batch.task for batch in watched]}
    datasets = [dataset(batch, sides, known, store, **seen_by) for batch in batches]
    record = {"stage": "split", "side": "heldout"}
    return Split(
        datasets=datasets,
        heldout={task: commit(one.scored, store, record) for task, one in sides.items() if one.scored},
        aside={task: commit(one.aside, store, record) for task, one in sides.items() if one.aside},
        not_scored={task: one.learned for task, one in sides.items() if one.learned},
    )


def bound(
    task: str, batches: Sequence[Batch], watched: Sequence[Batch], held: Mapping[str, Sequence[RowsRef]]
) -> Iterator[RowsRef]:
    """Rows held out explicitly for a task, not by hash."""
    yield from held.get(task, ())
    yield from (batch.heldout for batch in batches if batch.task == task and batch.heldout)
    yield from (batch.source.rows for batch in watched if batch.task == task)


def side(
    rows: Sequence[Known], sources: Collection[RowsRef], learned: set[bytes], *, heldout_max: int, store: Store
) -> Side:
    """One task's sides: holds out all of `rows`, and some of `sources` by hash."""
    every = unique(rows)
    kept = [row for row in every if row.identity not in learned]
    taken = {row.identity for row in kept} | learned if kept else learned
    scored = unique([*kept, *by_hash(sources, taken, len(kept), store)])[:heldout_max]
    scores = {row.identity for row in scored}
    return Side(scored, [row for row in kept if row.identity not in scores], len(every) - len(kept))


def by_hash(sources: Collection[RowsRef], taken: set[bytes], kept: int, store: Store) -> list[Known]:
    """The lowest tenth by hash of the rows not in `taken`; more if, with `kept`, there are fewer than FEWEST."""

    def new(rows: Iterator[Known]) -> Iterator[Known]:
        return (row for row in rows if row.identity not in taken)

    tenth = unique(row for one in sources for row in new(takewhile(lambda row: row.held_out, known_in(one, store))))
    if kept + len(tenth) >= FEWEST:
        return tenth
    rows = unique(row for one in sources for row in new(known_in(one, store)))
    most = max(len(rows) // MOST, min(1, len(rows) - 1), 0)
    few = min(FEWEST - kept, most)
    return rows[: max(len(tenth), few) if kept else few]


def dataset(
    batch: Batch, sides: Mapping[str, Side], learned: set[bytes], store: Store, *, watched: Sequence[str]
) -> DatasetRef:
    """A batch's training rows and its scored rows."""
    where = places(batch.task, sides, watched)
    rows, found, counts = [], set[bytes](), Counter[str]()
    for row in known_in(batch.source.rows, store):
        if place := where.get(row.identity):
            counts[place] += 1
            found.add(row.identity)
        else:
            rows.append(row)
    own = identities_of([batch.heldout], store) if batch.heldout else found
    cut = window(rows, batch, continues=bool(learned))
    new = [row for row in cut if row.identity not in learned]
    counts["outside_window"], counts["learned"] = len(rows) - len(cut), len(cut) - len(new)
    scored = [row for row in sides[batch.task].scored if row.identity in own]
    return DatasetRef(
        name=batch.name,
        task=batch.task,
        train=commit(new, store, {"stage": "split", "side": "train"}),
        heldout=commit(scored, store, {"stage": "split", "side": "heldout"}),
        read=batch.source.read,
        dropped=batch.source.dropped,
        not_trained={reason: count for reason, count in sorted(counts.items()) if count},
    )


def places(task: str, sides: Mapping[str, Side], watched: Sequence[str]) -> dict[bytes, str]:
    """Identity -> why the row is not trained in a dataset of `task`; the last reason wins."""
    found = {row.identity: "set_aside" for side in sides.values() for row in side.aside}
    others = [name for name in sides if name not in (task, *watched)]
    for reason, names in [("held_out_elsewhere", others), ("watched", watched), ("held_out", [task])]:
        found |= {row.identity: reason for name in names for row in sides[name].scored}
    return found


def window(rows: list[Known], batch: Batch, *, continues: bool) -> list[Known]:
    """The window of training rows that `skip` and `rows` select. Raises NoRows if the first run has none."""
    if not rows and not continues:
        raise NoRows(f"{batch.name}: no rows to train on, all are held out", hint=HINT)
    end = None if batch.rows is None else batch.skip + batch.rows
    cut = sorted(rows, key=lambda row: row.order)[batch.skip : end]
    if rows and not cut:
        raise NoRows(f"{batch.name}: skip={batch.skip} skips all of its {len(rows)} training rows", hint="skip fewer")
    return cut
