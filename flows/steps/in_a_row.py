"""Datasets trained one after another and merged, or all at once: what `bench` and the benchmark compare."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from backprop_core.data import stages as data
from backprop_core.schema.refs import AdapterRef, DatasetRef, RowsRef, TrainResult
from flows.steps.rows import part
from flows.steps.scores import score
from flows.steps.training import backed_off, merge, trained
from tasks.runs.flow_run import Run


class Scoring(NamedTuple):
    """By what results are compared: held-out rows by task, those of them that score, and the metric."""

    heldout: dict[str, RowsRef]
    scored: dict[str, RowsRef]
    metric: str


class Measured(NamedTuple):
    """Scores by run, in the order of training, and the seconds of all trainings."""

    then: list[float]
    last: list[float]
    seconds: float


def in_a_row(run: Run, datasets: Sequence[DatasetRef], by: Scoring) -> Measured:
    """Train on one dataset after another, merge after each; score each task right after its run and at the end."""
    to_choose_by = part(run, by.heldout, datasets, to_choose_by=True)
    tuned: list[TrainResult] = []
    merged: list[AdapterRef] = []
    for index, dataset in enumerate(datasets):
        history, old = [one.adapter for one in tuned], merged[-1] if merged else None
        made = trained(run, dataset, list(datasets[:index]), history[-1] if history else None, by.heldout, old)
        seen = {task for one in datasets[: index + 1] for task in one.tasks}
        likes = [rows for task, rows in to_choose_by.items() if task in seen]
        candidate, _ = backed_off(run, old, merge(run, old, made, history, index + 1, likes), likes)
        merged.append(candidate)
        tuned.append(made)
    tasks = [dataset.tasks[0] for dataset in datasets]
    return Measured(
        then=[value(run, adapter, task, by) for adapter, task in zip(merged, tasks, strict=True)],
        last=[value(run, merged[-1], task, by) for task in tasks],
        seconds=sum(one.seconds for one in tuned),
    )


def at_once(run: Run, datasets: Sequence[DatasetRef], by: Scoring) -> Measured:
    """One run on the rows of all datasets: what training them in a row can reach."""
    rows = run.call(
        data.replay,
        rows=datasets[0].train,
        earlier=[one.train for one in datasets[1:]],
        heldout=list(by.heldout.values()),
        share=1.0,
        passes=1,
        seed=0,
    )
    made = trained(run, together(run, datasets, rows), [], None, by.heldout, None)
    last = [value(run, made.adapter, dataset.tasks[0], by) for dataset in datasets]
    return Measured(then=last, last=last, seconds=made.seconds)


def together(run: Run, datasets: Sequence[DatasetRef], rows: RowsRef) -> DatasetRef:
    """The rows of all datasets as one dataset, which judges answers if one of them does."""
    counts = run.call(data.judgments, rows=rows).model_dump() if any(one.judges for one in datasets) else {}
    return datasets[0].model_copy(update={"train": rows, **counts})


def value(run: Run, adapter: AdapterRef | None, task: str, by: Scoring) -> float:
    """The score of an adapter, or of the base, on a task; higher is better. In a plan, which has none, 0."""
    return score(run, adapter, by.scored[task]).score(by.metric) or 0.0


def under(run: Run, **changes: object) -> Run:
    """The same run with other fields of `training`, or another `merge`."""
    spec = run.spec
    merging = changes.pop("merge", spec.merge)
    spec = spec.model_copy(update={"training": spec.training.model_copy(update=changes), "merge": merging})
    return replace(run, prepared=run.prepared.model_copy(update={"spec": spec}))


def replay_fields(replay: float) -> dict[str, object]:
    """The fields of `training` for rows of each earlier task, or below 1 for a share of each earlier dataset."""
    share, rows = (replay, 0) if replay < 1 else (0.0, round(replay))
    return {"replay": share, "replay_rows": rows}
