"""The gate between a champion and a candidate on another base."""

from backprop_core.evaluation import stages as evaluation
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import AdapterRef, ByteScores, Cell, Ratings, RowsRef, Scores
from backprop_core.schema.specs import TEACHER_FORCED
from flows.steps.scores import canaries, score
from tasks.runs.flow_run import Run
from tasks.runs.rebase import compared_in
from tasks.runs.two_bases import on_champions_base, tokens_alike, whole_rows_only

Compared = dict[str, Scores | Ratings | ByteScores]


def judged_on_two_bases(run: Run, merged: AdapterRef, scored: dict[str, RowsRef]) -> GateReport:
    """The gate's report on a candidate, compared with the champion on its own base and with the untouched new base.

    If the two tokenizers differ, token accuracy and loss do not compare: then bits per byte decide.
    """
    assert run.prepared.live
    live = run.prepared.live.version
    alike = tokens_alike(run)
    own = run if alike else whole_rows_only(run)
    old = on_champions_base(own)
    rival = {task: score(old, live.merged, rows) for task, rows in scored.items()}
    old_answers = canaries(old, live.merged)
    row = {task: score(own, merged, rows) for task, rows in scored.items()}
    base_row = {task: score(own, None, rows) for task, rows in scored.items()}
    metric = run.spec.evaluation.metric
    by_bytes = not alike and metric in TEACHER_FORCED
    return run.call(
        evaluation.gate,
        candidate=compared(run, row, rival, scored, by_bytes=by_bytes),
        champion=compared(run, rival, row, scored, by_bytes=by_bytes),
        base=compared(run, base_row, rival, scored, by_bytes=by_bytes),
        watch=run.prepared.watched,
        metric=compared_in(metric, same_tokens=alike),
        spec=run.spec.gate,
        answers=canaries(run, merged),
        champion_answers=old_answers,
    )


def compared(
    run: Run, row: dict[str, Cell], other: dict[str, Cell], scored: dict[str, RowsRef], *, by_bytes: bool
) -> Compared:
    """The scores per row that the gate compares, by task. A preference counts as a whole, in any tokens."""
    return {
        task: run.call(evaluation.per_byte, scores=cell.scores, other=other[task].scores, rows=scored[task])
        if by_bytes and not cell.scores.preferences
        else cell.rows
        for task, cell in row.items()
    }
