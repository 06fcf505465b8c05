"""The forgetting matrix and what is read off it. Pure arithmetic [arXiv 2512.23017, section on metrics]."""

from collections.abc import Sequence

from backprop_core.refs import Cell, Evaluation

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
    forgetting of t: max over i of a[i,t] - a[T,t]; for watched tasks the base counts as a run.
    """
    columns = [*tasks, *watch]
    scores = [in_metric(row, columns, metric) for row in rows]
    base_scores = [number(score) for score in in_metric(base, columns, metric)]
    last = [number(score) for score in scores[-1]]
    return Evaluation(
        tasks=columns,
        watch=list(watch),
        metric=metric,
        matrix=[in_metric(row, columns, "token_accuracy") for row in rows],
        loss=[[row[task].scores.loss if task in row else None for task in columns] for row in rows],
        exact_match=[in_metric(row, columns, "exact_match") for row in rows],
        base=[base[task].scores.token_accuracy for task in columns],
        base_exact_match=[base[task].scores.exact_match for task in columns],
        scores=scores,
        base_scores=base_scores,
        average=mean(last[: len(tasks)]),
        backward_transfer=transfer(scores, [last_trained(trained, task) for task in tasks]),
        forgetting=[
            max(known(column) + ([start] if task in watch else [])) - end
            for task, start, column, end in zip(columns, base_scores, zip(*scores, strict=True), last, strict=True)
        ],
    )


def transfer(scores: Sequence[Sequence[float | None]], since: Sequence[int]) -> float | None:
    """Mean of what each task gained from the run that last trained it to the last one; None if that is no task.

    An earlier run that was not rated in this metric counts for nothing.
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
    """A row's scores; None where the task came later, or nobody rated it in this metric."""
    return [row[task].score(metric) if task in row else None for task in columns]


def known(scores: Sequence[float | None]) -> list[float]:
    return [score for score in scores if score is not None]


def number(score: float | None) -> float:
    """A score that must be there: the last row holds every task."""
    assert score is not None
    return score


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
