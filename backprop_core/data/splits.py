"""Which side a row is on: it scores, it is set aside, or it is trained. It stays there in all of a run and a line.

First the rows that score are found, over all inputs of a run: those that its line holds out, those of files of held-out
rows and of watched sets, and of every other dataset the lowest tenth by hash. A task that would have fewer than FEWEST
takes the next ones by hash, as long as two thirds of the new rows are left. The first `heldout_max` of a task score. Of
the others those of the line, of a file or of a watched set are set aside; those that only their hash would hold out are
trained. What a line has learned is never held out. Then every dataset is trained without all of these.
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

FEWEST = MinRowsSpec().task  # held-out rows of a task: with fewer the gate cannot tell
MOST = 3  # one in three rows at most, to have them


class Side(NamedTuple):
    """The rows of one task that are not trained, each list in order of identity."""

    scored: list[Known]
    aside: list[Known]
    learned: int  # that would have been among them


def split(
    batches: Sequence[Batch],
    *,
    watched: Sequence[Batch] = (),
    held: Mapping[str, Sequence[RowsRef]] | None = None,
    learned: Sequence[RowsRef] = (),
    heldout_max: int,
    store: Store,
) -> Split:
    """The training rows of each batch and the rows that score, as artifacts.

    `held` is what the line has ever held out, by task, and `learned` what it has trained. `Batch.skip` and `Batch.rows`
    cut a window out of the training rows. Good rows that are not trained are counted by reason: see DatasetSummary.

    A task without any row to score is in no `Split.heldout`. Raises NoRows if a batch has no row to train on, unless
    it continues a line.
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
    """The rows that are held out of a task by name, not by hash."""
    yield from held.get(task, ())
    yield from (batch.heldout for batch in batches if batch.task == task and batch.heldout)
    yield from (batch.source.rows for batch in watched if batch.task == task)


def side(
    rows: Sequence[Known], sources: Collection[RowsRef], learned: set[bytes], *, heldout_max: int, store: Store
) -> Side:
    """Of one task: `rows` are held out in any case, and some of `sources` by their hash."""
    every = unique(rows)
    kept = [row for row in every if row.identity not in learned]
    taken = {row.identity for row in kept} | learned if kept else learned
    scored = unique([*kept, *by_hash(sources, taken, len(kept), store)])[:heldout_max]
    scores = {row.identity for row in scored}
    return Side(scored, [row for row in kept if row.identity not in scores], len(every) - len(kept))


def by_hash(sources: Collection[RowsRef], taken: set[bytes], kept: int, store: Store) -> list[Known]:
    """The lowest tenth of the sources' rows that are not `taken`; a few more if with the `kept` ones they are few."""

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
    """What is trained of a batch, and which of its rows score."""
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
    """Why a row is not trained in a dataset of `task`, by identity; a row with several reasons has the last one."""
    found = {row.identity: "set_aside" for side in sides.values() for row in side.aside}
    others = [name for name in sides if name not in (task, *watched)]
    for reason, names in [("held_out_elsewhere", others), ("watched", watched), ("held_out", [task])]:
        found |= {row.identity: reason for name in names for row in sides[name].scored}
    return found


def window(rows: list[Known], batch: Batch, *, continues: bool) -> list[Known]:
    """Training rows in their order, `skip` left out, as many as are asked. Raises NoRows if the first run has none."""
    if not rows and not continues:
        raise NoRows(f"{batch.name}: all of its rows are held out, none is left to train on", hint=HINT)
    end = None if batch.rows is None else batch.skip + batch.rows
    cut = sorted(rows, key=lambda row: row.order)[batch.skip : end]
    if rows and not cut:
        raise NoRows(f"{batch.name}: {batch.skip} of its {len(rows)} training rows are skipped", hint="skip fewer")
    return cut
