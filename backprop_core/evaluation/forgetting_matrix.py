"""The forgetting matrix, average, backward transfer and forgetting. [arXiv 2512.23017, section on metrics]"""

from collections.abc import Sequence

from backprop_core.schema.refs import Cell, Evaluation

Row = dict[str, Cell]  # task -> its cell


def evaluation(
    *,
    tasks: Sequence[str],
    watch: Sequence[str],
    trained: Sequence[Sequence[str]],
    rows: Sequence[Row],
    base: Row,
    metric: str,
) -> Evaluation:
    """The matrix of `rows` (one per run) over `tasks` then `watch`, and its averages in `metric` (higher is better).

    `trained[i]` are the tasks that run i trained. average: mean over tasks of a[T,t]. backward_transfer: mean, over the
    tasks last trained before run T, of a[T,t] - a[i,t] with i the run that last trained t; None if there is none.
    forgetting of t: max over i of a[i,t] - a[T,t]; for watched tasks the base counts as a run. Differences compare
    scores on the same held-out rows only: run i counts only if it was scored on the rows of run T. If earlier runs
    scored t, but none on the same rows, the forgetting of t is None.
    """
    columns = [*tasks, *watch]
    scores = [in_metric(row, columns, metric) for row in rows]
    base_scores = [number(score) for score in in_metric(base, columns, metric)]
    last = [number(score) for score in scores[-1]]
    same = [comparable(row, rows[-1], columns, metric) for row in rows]
    return Evaluation(
        tasks=columns,
        watch=list(watch),
        metric=metric,
        matrix=[in_metric(row, columns, "token_accuracy") for row in rows],
        loss=[[row[task].scores.loss if task in row else None for task in columns] for row in rows],
        exact_match=[in_metric(row, columns, "exact_match") for row in rows],
        base=[base[task].scores.token_accuracy for task in columns],
        base_exact_match=[number(score) for score in in_metric(base, columns, "exact_match")],
        scores=scores,
        base_scores=base_scores,
        average=mean(last[: len(tasks)]),
        backward_transfer=transfer(same, [last_trained(trained, task) for task in tasks]),
        forgetting=[
            lost(column(scores, t), column(same, t), base_scores[t] if task in watch else None)
            for t, task in enumerate(columns)
        ],
    )


def comparable(row: Row, last: Row, columns: Sequence[str], metric: str) -> list[float | None]:
    """The scores of one run, only on the same held-out rows as the last run."""
    same = {task: cell for task, cell in row.items() if task in last and cell.heldout == last[task].heldout}
    return in_metric(same, columns, metric)


def column(scores: Sequence[Sequence[float | None]], t: int) -> list[float | None]:
    return [row[t] for row in scores]


def lost(scores: Sequence[float | None], same: Sequence[float | None], start: float | None) -> float | None:
    """How far the last score of a column is below the best; None if all earlier scores are on other rows.

    `same` are the scores on the same rows as the last one; `start` is the base's score, if it counts.
    """
    earlier, end = known([start, *same[:-1]]), number(same[-1])
    if known(scores[:-1]) and not earlier:
        return None
    return max([*earlier, end]) - end


def transfer(scores: Sequence[Sequence[float | None]], since: Sequence[int]) -> float | None:
    """Mean gain of each task from the run that last trained it to the last run; None if there is no such task.

    Ignores earlier runs without a score in this metric.
    """
    gains = [
        number(scores[-1][t]) - before
        for t, i in enumerate(since)
        if i < len(scores) - 1 and (before := scores[i][t]) is not None
    ]
    return mean(gains) if gains else None


def last_trained(trained: Sequence[Sequence[str]], task: str) -> int:
    """Index of the run that trained `task` last."""
    return max(i for i, names in enumerate(trained) if task in names)


def in_metric(row: Row, columns: Sequence[str], metric: str) -> list[float | None]:
    """The scores of one run; None if the task came later, or was not rated in this metric."""
    return [row[task].score(metric) if task in row else None for task in columns]


def known(scores: Sequence[float | None]) -> list[float]:
    return [score for score in scores if score is not None]


def number(score: float | None) -> float:
    """A score that must exist: the last run scores every task."""
    assert score is not None
    return score


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
