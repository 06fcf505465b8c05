"""The gate between a champion and a candidate on another base."""

from backprop_core.evaluation import stages as evaluation
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import AdapterRef, ByteScores, Cell, Ratings, RowsRef, Scores
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
    return run.call(
        evaluation.gate,
        candidate=compared(run, row, rival, scored, alike=alike),
        champion=compared(run, rival, row, scored, alike=alike),
        base=compared(run, base_row, rival, scored, alike=alike),
        watch=run.prepared.watched,
        metric=compared_in(metric, same_tokens=alike),
        spec=run.spec.gate,
        answers=canaries(run, merged),
        champion_answers=old_answers,
    )


def compared(
    run: Run, row: dict[str, Cell], other: dict[str, Cell], scored: dict[str, RowsRef], *, alike: bool
) -> Compared:
    """The scores per row that the gate compares, by task, of the rows that both models have scored.

    A generated answer and a preference count as a whole, in any tokens.
    """
    return {task: cell.rows if alike else in_both(run, cell, other[task], scored[task]) for task, cell in row.items()}


def in_both(run: Run, cell: Cell, other: Cell, rows: RowsRef) -> Scores | Ratings | ByteScores:
    """One cell of two tokenizers; a row that is too long for one of them is in neither."""
    own, rival = cell.scores, other.scores
    if cell.rating:
        return cell.rating
    if own.preferences:
        return run.call(evaluation.scored_by_both, scores=own, other=rival)
    return run.call(evaluation.per_byte, scores=own, other=rival, rows=rows)
