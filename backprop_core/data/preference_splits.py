"""Splits preferences as other rows are split. Those that are held out score a task of their own.

Preferences with one question stay on one side, throughout a run and a line: they are a group.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from backprop_core.data.judged_answers import kinds
from backprop_core.data.preference_leaks import safe_among, spoken
from backprop_core.data.question_groups import by_question
from backprop_core.data.row_files import index
from backprop_core.data.row_index import RowIndex, joined
from backprop_core.errors import ConfigInvalid
from backprop_core.schema.refs import Batch, Curated, RowsRef, preference_task
from backprop_core.schema.refs.datasets import PREFERENCES
from backprop_core.store.artifacts import Store

Read = Callable[[RowsRef], RowIndex]  # the rows of an artifact, with what their groups are one of


class Judged(NamedTuple):
    """A batch's preferences that are trained, its own that are held out, and counts of those that are neither."""

    rows: RowIndex
    heldout: RowIndex
    held_out: int
    leaking: int


def with_groups(batch: Batch, store: Store) -> Batch:
    """The batch with its preferences grouped by question, if they are trained."""
    if not batch.trains_preferences:
        return batch
    sets = {"preferences": batch.source.preferences, "heldout_preferences": batch.heldout_preferences}
    grouped = {name: by_question(ref, store) for name, ref in sets.items() if ref}
    source = batch.source.model_copy(update={"preferences": grouped.pop("preferences")})
    return batch.model_copy(update={"source": source, **grouped})


def parts(batch: Batch) -> Iterator[Batch]:
    """The batch as it is, and its preferences as a batch of their own, if they are trained."""
    yield batch
    if batch.trains_preferences:
        assert batch.source.preferences
        yield batch.model_copy(
            update={
                "task": preference_task(batch.task),
                "source": Curated(rows=batch.source.preferences, read=batch.source.read),
                "heldout": batch.heldout_preferences,
                "last": None,
                "trains_preferences": False,
            }
        )


def check_tasks(batches: list[Batch]) -> None:
    """Raise ConfigInvalid if a dataset's task is what the preferences of another one score."""
    taken = {preference_task(batch.task) for batch in batches if batch.trains_preferences}
    for batch in batches:
        if batch.task in taken:
            raise ConfigInvalid(
                f"{batch.name}: its task {batch.task} is that of the held-out preferences of another dataset",
                hint=f"name a task that does not end in {PREFERENCES}",
            )


def answers_in(scored: Mapping[str, RowIndex], scratch: Path, files: ExitStack) -> RowIndex:
    """The conversations of the preferences that are not trained, of no group."""
    found = spoken(joined([rows for task, rows in scored.items() if task.endswith(PREFERENCES)]), scratch, files)
    found.entries["group"] = 0
    return found


def to_train(batch: Batch, scored: RowIndex, aside: RowIndex, scoring: RowIndex, read: Read, store: Store) -> Judged:
    """The preferences of a batch that are trained; `scored` and `aside` are those of its task that are not."""
    if not batch.trains_preferences:
        return Judged(joined([]), joined([]), 0, 0)
    assert batch.source.preferences
    every = read(batch.source.preferences)
    out = every.among(scored.keys) | every.among(aside.keys)
    kept = safe_among(every.take(~out), batch, scoring, store)
    own = index(batch.heldout_preferences, store).keys if batch.heldout_preferences else every.take(out).keys
    held_out = int(out.sum())
    return Judged(kept, scored.take(scored.among(own)), held_out, len(every) - held_out - len(kept))


def counted(rows: RowIndex) -> dict[str, int]:
    """How many rows are pairs and how many are ratings."""
    return kinds(json.loads(line) for line in rows.lines())
