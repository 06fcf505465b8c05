"""The rows that a line has stored, for a run on another base."""

import logging

from backprop_core.data import stages as data
from backprop_core.errors import NoRows
from backprop_core.schema.refs import DatasetRef, RowsRef, Split
from flows.steps.rows import others, with_rows
from tasks.runs.flow_run import Run

log = logging.getLogger(__name__)


def stored(run: Run) -> Split:
    """The line's datasets and held-out rows that the run's base accepts; what scores is in no dataset.

    Raises NoRows if the base accepts no training row, or no held-out row of a task.
    """
    assert run.prepared.live
    version = run.prepared.live.version
    heldout = {task: accepted(run, task, rows) for task, rows in version.heldout.items()}
    aside = {task: rest for task in heldout if (rest := set_aside(run, task, heldout[task])).rows}
    scoring = sorted({*heldout.values(), *aside.values()}, key=lambda rows: rows.digest)
    datasets = [trainable(run, dataset, scoring) for dataset in version.datasets]
    if not (some := [dataset for dataset in datasets if dataset.train.rows]):
        raise NoRows(f"{run.base.name} accepts no training row of line {run.spec.line}", hint="choose another base")
    found = Split(datasets=some, heldout={task: rows for task, rows in heldout.items() if rows.rows}, aside=aside)
    run.notes.splits(found)
    return found


def accepted(run: Run, name: str, rows: RowsRef, scoring: list[RowsRef] | None = None) -> RowsRef:
    """The rows that the base's chat template accepts, without those that score."""
    left: RowsRef = run.call(data.carried_over, rows=rows, template=run.template, without=scoring or [])
    if rows.rows > left.rows:
        why = "its template refuses them" + (", or they score" if scoring else "")
        log.warning(
            "%s: %d of %d rows are left out on %s: %s", name, rows.rows - left.rows, rows.rows, run.base.name, why
        )
    return left


def set_aside(run: Run, task: str, scored: RowsRef) -> RowsRef:
    """All rows that the line has held out for a task, without those that score."""
    assert run.prepared.live
    version = run.prepared.live.version
    before = (version.aside or {}).get(task)
    return others(run, [version.heldout[task], *([before] if before else [])], besides=[scored])


def trainable(run: Run, dataset: DatasetRef, scoring: list[RowsRef]) -> DatasetRef:
    """A dataset of the line as the run trains it."""
    return with_rows(run, dataset, accepted(run, dataset.name, dataset.train, scoring))
