"""Splits rows into training, held-out (scored) and set-aside rows. A row keeps its side throughout a run and line.

Candidates for scoring, over all inputs of a run: rows that the line holds out, rows of held-out files and watched sets,
the latest rows of datasets that are split by time, and the lowest tenth by hash of every other dataset. A task with
fewer than FEWEST takes more by time or hash, as long as two thirds of the new rows remain. The first `heldout_max` of a
task are scored. Of the rest, rows held out only by hash are trained, and all others are set aside. Rows that the line
has learned are never held out. Every dataset is trained without the scored and set-aside rows of all tasks, and without
the rows that its curation calls too close to them. Preferences, if they are trained, are split in the same way.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.data import preference_splits
from backprop_core.data.heldout_leaks import safe
from backprop_core.data.learned_rows import Learned, known, learned_from, was_learned
from backprop_core.data.preference_leaks import HELD_OUT, safe_preferences
from backprop_core.data.preference_splits import Judged, Read
from backprop_core.data.question_groups import kin_of, related
from backprop_core.data.row_conversations import beginning_with
from backprop_core.data.row_files import commit, index, ranks, times
from backprop_core.data.row_index import SIZE, Mask, Positions, RowIndex, joined, unique
from backprop_core.data.row_sets import HINT, ORDER, spread
from backprop_core.errors import NoRows
from backprop_core.schema.refs import Batch, DatasetRef, RowsRef, Split, preference_task
from backprop_core.schema.refs.datasets import PREFERENCES
from backprop_core.schema.specs import MinRowsSpec
from backprop_core.store.artifacts import Store

FEWEST = MinRowsSpec().task  # held-out rows of a task that the gate needs
HELDOUT_SHARE = 10  # one row in ten, unless the dataset has its own held-out rows
MOST = 3  # hold out at most one in three rows to reach FEWEST
IN_PREFERENCE = "in_held_out_preference"
LAST_HELD_OUT = ((1 << 8 * SIZE) - 1) // HELDOUT_SHARE  # the largest identity in the lowest tenth


class Side(NamedTuple):
    """The rows of one task that are not trained, in order of identity."""

    scored: RowIndex
    aside: RowIndex
    learned: int  # rows not held out because the line has learned them


NOTHING = Side(joined([]), joined([]), 0)


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
    held, redacts = held or {}, any(map(redacted, [*batches, *watched]))
    batches = [preference_splits.with_groups(batch, store) for batch in batches]
    preference_splits.check_tasks(batches)
    parts = [part for batch in batches for part in preference_splits.parts(batch)]
    read = reader(parts, [*learned, *chain(*held.values())], store)
    rows = joined([read(ref) for ref in learned])
    before = learned_from(rows, redacts=redacts)
    tasks = dict.fromkeys([*held, *(batch.task for batch in [*parts, *watched])])
    sides = {
        task: side(
            unique([read(ref) for ref in bound(task, parts, watched, held)]),
            {batch.source.rows: batch for batch in parts if batch.task == task and batch.heldout is None},
            before,
            read,
            heldout_max=heldout_max,
            store=store,
        )
        for task in tasks
    }
    seen_by = {"watched": [batch.task for batch in watched]}
    not_trained = {task: joined([one.scored, one.aside]) for task, one in sides.items()}
    with store.begin("scoring") as scratch, ExitStack() as files:
        told = preference_splits.answers_in(not_trained, scratch, files)
        datasets = [dataset(batch, sides, told, rows, read, store, **seen_by) for batch in batches]
    record = {"stage": "split", "side": "heldout"}
    return Split(
        datasets=datasets,
        heldout={task: commit(one.scored, store, record) for task, one in sides.items() if len(one.scored)},
        aside={task: commit(one.aside, store, record) for task, one in sides.items() if len(one.aside)},
        not_scored={task: one.learned for task, one in sides.items() if one.learned},
    )


def reader(parts: Sequence[Batch], earlier: Sequence[RowsRef], store: Store) -> Read:
    """Reads rows with what their groups are one of, by the questions of preferences that are trained now or were."""
    judging = [part for part in parts if part.task.endswith(PREFERENCES)]
    refs = [ref for part in judging for ref in (part.source.rows, part.heldout) if ref]
    kin = kin_of(index(ref, store) for ref in [*refs, *earlier]) if judging else {}
    return lambda ref: related(index(ref, store), kin)


def bound(
    task: str, batches: Sequence[Batch], watched: Sequence[Batch], held: Mapping[str, Sequence[RowsRef]]
) -> Iterator[RowsRef]:
    """Rows held out explicitly for a task, not by hash."""
    yield from held.get(task, ())
    yield from (batch.heldout for batch in batches if batch.task == task and batch.heldout)
    yield from (batch.source.rows for batch in watched if batch.task == task)


def redacted(batch: Batch) -> bool:
    """Whether the batch's rows are redacted."""
    return batch.curation.personal_data == "redact"


def side(
    every: RowIndex, sources: Mapping[RowsRef, Batch], learned: Learned, read: Read, *, heldout_max: int, store: Store
) -> Side:
    """One task's sides: holds out all of `every`, and some of the rows of `sources`, by time or by hash."""
    bound = kept = every.take(~was_learned(every, learned))
    new: list[RowIndex] = []
    for ref, batch in sources.items():
        rows = read(ref)
        is_new = ~rows.among(bound.keys) & ~known(rows, learned, redacts=redacted(batch))
        if batch.last is None:
            new.append(rows.take(is_new))
        else:
            late = latest(rows.take(is_new), times(ref, store)[is_new], batch.last, len(bound), batch.name)
            kept = unique([kept, late])
    scored = unique([kept, by_hash([rows.take(~rows.among(kept.keys)) for rows in new], len(kept))])
    scored = scored.take(slice(heldout_max))
    return Side(scored.once(), kept.take(~kept.among(scored.keys)).once(), len(every) - len(bound))


def latest(rows: RowIndex, times: Positions, share: float, kept: int, name: str) -> RowIndex:
    """The last share of some rows, and all others of the time at which it begins; more if there are fewer than FEWEST.

    `kept`: how many rows of the task are held out already. If all rows have one time, none of them is held out; raises
    NoRows if the task then has fewer than FEWEST.
    """
    count = max(round(share * len(rows)), min(FEWEST - kept, fewest_of(len(rows))))
    if not count:
        return rows.take(slice(0))
    begin = np.sort(times)[-count]
    if begin == times.min() and kept >= FEWEST:
        return rows.take(slice(0))
    if begin == times.min():
        raise NoRows(
            f"{name}: {int((times == begin).sum())} of {len(rows)} rows have the same time, and would all be held out",
            hint="use a field with a finer time, a smaller time_split.last, or no time_split",
        )
    return rows.take(times >= begin)


def by_hash(new: Sequence[RowIndex], kept: int) -> RowIndex:
    """The lowest tenth by hash of some rows; more if, with `kept`, there are fewer than FEWEST. Groups stay whole."""
    tenth = unique([rows.take(lowest_tenth(rows)) for rows in new])
    if kept + len(tenth) >= FEWEST:
        return tenth
    rows = unique(new)
    few = min(FEWEST - kept, fewest_of(len(rows)))
    return rows.take(np.argsort(lead(rows), kind="stable")[: max(len(tenth), few) if kept else few])


def fewest_of(rows: int) -> int:
    """How many of some rows to hold out at most, to reach FEWEST."""
    return max(rows // MOST, min(1, rows - 1), 0)


def lead(rows: RowIndex) -> NDArray[np.uint64]:
    """What decides on which side each row is: the start of its identity, or its group."""
    start = np.ascontiguousarray(rows.entries["identity"][:, :8]).view(">u8").reshape(-1)
    return np.where(rows.groups != 0, rows.groups, start).astype(np.uint64)


def lowest_tenth(rows: RowIndex) -> Mask:
    """Which rows are in the lowest tenth of the hash space."""
    alone = rows.keys <= np.bytes_(LAST_HELD_OUT.to_bytes(SIZE))
    together = rows.groups <= LAST_HELD_OUT >> 8 * (SIZE - 8)
    return np.where(rows.groups != 0, together, alone)


def dataset(
    batch: Batch,
    sides: Mapping[str, Side],
    told: RowIndex,
    learned: RowIndex,
    read: Read,
    store: Store,
    *,
    watched: Sequence[str],
) -> DatasetRef:
    """A batch's training rows and its scored rows; `told` are the conversations of preferences that score."""
    every = read(batch.source.rows)
    out, counts = np.zeros(len(every), np.bool_), Counter[str]()
    for reason, rows in not_trained(batch.task, sides, watched):
        found = every.among(rows.keys) & ~out
        counts[reason], out = int(found.sum()), out | found
    own = index(batch.heldout, store).keys if batch.heldout else every.take(out).keys
    scoring = joined([*(rows for side in sides.values() for rows in (side.scored, side.aside)), told])
    rest = every.take(~out)
    given = rest.among(told.keys) | beginning_with(rest, told.keys)
    beside = rest.grouped(scoring.groups)
    counts[IN_PREFERENCE], counts["group_held_out"] = int(given.sum()), int((beside & ~given).sum())
    whole = batch.whole_questions
    rest, leaks = safe(rest.take(~beside & ~given), scoring, batch.curation, store, whole_questions=whole)
    counts.update(leaks)
    judging = sides.get(preference_task(batch.task), NOTHING)
    judged = preference_splits.to_train(batch, judging.scored, judging.aside, scoring, read, store)
    counts["held_out"] += judged.held_out
    trainable = joined([rest, judged.rows])
    cut = window(trainable, batch, continues=bool(len(learned)))
    new = cut.take(~cut.among(learned.keys))
    counts["outside_window"], counts["learned"] = len(trainable) - len(cut), len(cut) - len(new)
    scored = sides[batch.task].scored
    return DatasetRef(
        name=batch.name,
        task=batch.task,
        train=taught(new, every, batch, store),
        heldout=commit(scored.take(scored.among(own)), store, {"stage": "split", "side": "heldout"}),
        read=batch.source.read,
        not_trained={reason: count for reason, count in sorted(counts.items()) if count},
        lineage=batch.source.lineage,
        **(
            trained_preferences(batch, new, judged, judging, store)
            if batch.trains_preferences
            else kept_apart(batch, scoring, store)
        ),
    )


def kept_apart(batch: Batch, scoring: RowIndex, store: Store) -> dict[str, Any]:
    """What a dataset says of preferences that are not trained."""
    preferences, leaking = safe_preferences(batch, scoring, store)
    judged = {"preferences": preferences.rows if preferences else 0, HELD_OUT: leaking} if leaking else {}
    return {"preferences": preferences, "dropped": {**batch.source.left_out, **judged}}


def trained_preferences(batch: Batch, new: RowIndex, judged: Judged, judging: Side, store: Store) -> dict[str, Any]:
    """What a dataset says of preferences that are trained."""
    only = not batch.source.rows.rows
    dropped = {reason: count for reason, count in batch.source.left_out.items() if reason != "preferences"}
    return {
        "dropped": {**dropped, **({HELD_OUT: judged.leaking} if judged.leaking else {})},
        "preference_task": preference_task(batch.task) if len(judging.scored) or only else None,
        "heldout_preferences": commit(judged.heldout, store, {"stage": "split", "side": "heldout"}),
        "only_preferences": only,
        **preference_splits.counted(new.take(new.among(judged.rows.keys))),
    }


def taught(rows: RowIndex, every: RowIndex, batch: Batch, store: Store) -> RowsRef:
    """Commit the training rows of a batch, in the order of its curriculum if it has one, preferences between them.

    `every` are all its rows that are no preferences.
    """
    record, curriculum = {"stage": "split", "side": "train"}, batch.curation.curriculum
    if curriculum in (None, "length"):
        return commit(rows, store, record, curriculum=curriculum)
    answers = rows.take(rows.among(every.keys))
    place = ranks(batch.source.rows, store)[np.searchsorted(every.keys, answers.keys)]
    ordered = answers.take(np.argsort(place, kind="stable"))
    return commit(rows.take(spread(rows, ordered)), store, record, curriculum="rows")


def not_trained(task: str, sides: Mapping[str, Side], watched: Sequence[str]) -> Iterator[tuple[str, RowIndex]]:
    """Why rows are not trained in a dataset of `task`, and which; the first reason counts."""
    others = [name for name in sides if name not in (task, *watched)]
    for reason, names in [("held_out", [task]), ("watched", watched), ("held_out_elsewhere", others)]:
        yield reason, joined([sides[name].scored for name in names])
    yield "set_aside", joined([side.aside for side in sides.values()])


def window(rows: RowIndex, batch: Batch, *, continues: bool) -> RowIndex:
    """The window of training rows that `skip` and `rows` select. Raises NoRows if the first run has none."""
    if not len(rows) and not continues:
        raise NoRows(f"{batch.name}: no rows to train on, all are held out", hint=HINT)
    end = None if batch.rows is None else batch.skip + batch.rows
    cut = rows.by_hash(ORDER).take(slice(batch.skip, end))
    if len(rows) and not len(cut):
        raise NoRows(f"{batch.name}: skip={batch.skip} skips all of its {len(rows)} training rows", hint="skip fewer")
    return cut
