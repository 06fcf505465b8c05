"""What the held-out rows of a retrain can show, from the champion's scores as they are in its version."""

from backprop_core.evaluation.gate import counted
from backprop_core.evaluation.hits import hits
from backprop_core.evaluation.power import Rows, power, rows_like, unknown_rows
from backprop_core.lines.versions import LineVersion
from backprop_core.schema.gate_report import Power
from backprop_core.schema.refs import Ratings, RowsRef, Scores
from backprop_core.schema.specs import TEACHER_FORCED
from backprop_core.store.artifacts import Store
from tasks.runs.prepared_run import Prepared


def power_of(prepared: Prepared, scored: dict[str, RowsRef], store: Store) -> Power | None:
    """What these rows can show about the next version; None for a loss without scores, which has no largest value."""
    spec, version = prepared.spec.gate, prepared.live.version if prepared.live else None
    metric = prepared.spec.evaluation.metric
    sizes = {task: rows.rows for task, rows in scored.items()}
    known = {task: earlier(version, task, metric, rows, store) for task, rows in sizes.items()}
    tasks = {task: known[task] for task in counted(sizes, prepared.watched, spec)}
    if metric == "loss" and None in tasks.values():
        return None
    return power(
        {task: rows or unknown_rows(sizes[task]) for task, rows in tasks.items()},
        metric=metric,
        question=spec.question if version else "better",
        known=None not in tasks.values(),
        spec=spec,
    )


def earlier(version: LineVersion | None, task: str, metric: str, rows: int, store: Store) -> Rows | None:
    """That many rows like those of a version; None if it has no scores of this task in this metric."""
    scores: dict[str, Scores] | dict[str, Ratings] = {}
    if version:
        scores = version.scores if metric in TEACHER_FORCED else version.ratings
    if (cell := scores.get(task)) is None:
        return None
    found = hits(cell, metric, store)
    return rows_like(found, rows) if found.rows else None
