"""The scores of an adapter, and the gate's report on them."""

from collections.abc import Mapping
from functools import partial

from backprop_core.evaluation import stages as evaluation
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import AdapterRef, Answers, Cell, Harnessed, Ratings, RowsRef, Scores
from backprop_core.schema.specs import TEACHER_FORCED
from flows.steps.models import model
from tasks.runs.flow_run import Run


def champion(run: Run, scored: dict[str, RowsRef]) -> dict[str, Cell] | None:
    """The champion's scores on these rows; None without a champion."""
    live = run.prepared.live
    return score_all(run, live.version.merged, scored) if live else None


def judged(
    run: Run,
    merged: AdapterRef,
    cells: dict[str, Cell],
    base_row: dict[str, Cell],
    rivals: dict[str, Cell] | None,
    *,
    taken: float | None = None,
) -> GateReport:
    """The gate's report on a candidate, compared with the champion, if any, and the base.

    `taken` is the share of the run's change that back-off left in it.
    """
    live = run.prepared.live
    report = run.call(
        evaluation.gate,
        candidate=rows_of(cells),
        champion=rows_of(rivals) if rivals else None,
        base=rows_of(base_row),
        watch=run.prepared.watched,
        metric=run.spec.evaluation.metric,
        spec=run.spec.gate,
        answers=canaries(run, merged),
        champion_answers=canaries(run, live.version.merged) if live else None,
    )
    return report if taken is None else report.with_taken(taken)


def score(run: Run, adapter: AdapterRef | None, rows: RowsRef) -> Cell:
    """One cell of the matrix."""
    found = scores(run, adapter, rows)
    return Cell(scores=found, rating=None if found.preferences else rating(run, adapter, rows), heldout=rows.digest)


def score_all(run: Run, adapter: AdapterRef | None, heldout: Mapping[str, RowsRef]) -> dict[str, Cell]:
    """Cells of the matrix, by task."""
    run.ahead([partial(score, adapter=adapter, rows=rows) for rows in heldout.values()])
    return {task: score(run, adapter, rows) for task, rows in heldout.items()}


def scores(run: Run, adapter: AdapterRef | None, rows: RowsRef) -> Scores:
    """The teacher-forced scores of an adapter on held-out rows."""
    return run.call(evaluation.evaluate, **model(run, adapter), heldout=rows, max_length=run.scored_length)


def harness(run: Run, adapter: AdapterRef | None) -> Harnessed | None:
    """The scores of lm-evaluation-harness for an adapter or the base; None if it has no tasks."""
    spec = run.spec.evaluation.harness
    return (
        run.call(evaluation.harness, **model(run, adapter), spec=spec, own=run.prepared.tasks) if spec.tasks else None
    )


def rating(run: Run, adapter: AdapterRef | None, rows: RowsRef) -> Ratings | None:
    """Ratings of generated answers; None if the metric does not need them."""
    spec = run.spec.evaluation
    if spec.metric in TEACHER_FORCED:
        return None
    written = run.call(evaluation.generate, **model(run, adapter), heldout=rows, spec=spec.generation)
    if spec.metric == "judge":
        return run.call(evaluation.judge, generations=written, spec=spec.judge)
    return run.call(
        evaluation.rate,
        generations=written,
        metric=spec.metric,
        pattern=spec.pattern if spec.metric == "regex" else None,
    )


def rows_of(cells: dict[str, Cell]) -> dict[str, Scores | Ratings]:
    """The scores per row that the gate compares, by task."""
    return {task: cell.rows for task, cell in cells.items()}


def canaries(run: Run, adapter: AdapterRef) -> Answers | None:
    """The model's answers to the canary prompts; None if there are none."""
    asked = [[{"role": "user", "content": canary.prompt}] for canary in run.spec.gate.canaries]
    if not asked:
        return None
    return run.call(evaluation.answer, **model(run, adapter), conversations=asked, spec=run.spec.evaluation.generation)
