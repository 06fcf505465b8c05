"""The forgetting matrix and what is read off it. Pure arithmetic [arXiv 2512.23017, section on metrics]."""

from collections.abc import Sequence

from backprop_core.refs import Evaluation, Scores

Row = dict[str, Scores]  # task -> its cell


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
    chosen = [[value(row, task, metric) for task in columns] for row in rows]
    last = chosen[-1]
    since = [(t, last_trained(trained, task)) for t, task in enumerate(tasks)]
    transfers = [number(last[t]) - number(chosen[i][t]) for t, i in since if i < len(rows) - 1]
    return Evaluation(
        tasks=columns,
        watch=list(watch),
        metric=metric,
        matrix=[[value(row, task, "token_accuracy") for task in columns] for row in rows],
        loss=[[value(row, task, "loss") for task in columns] for row in rows],
        exact_match=[[value(row, task, "exact_match") for task in columns] for row in rows],
        base=[base[task].token_accuracy for task in columns],
        base_exact_match=[base[task].exact_match for task in columns],
        average=mean([number(last[columns.index(task)]) for task in tasks]),
        backward_transfer=mean(transfers) if transfers else None,
        forgetting=[
            max(number(score) for score in [*(row[t] for row in chosen), *extra] if score is not None) - number(last[t])
            for t, task in enumerate(columns)
            for extra in [[value(base, task, metric)] if task in watch else []]
        ],
    )


def last_trained(trained: Sequence[Sequence[str]], task: str) -> int:
    """Index of the run that trained `task` last."""
    return max(i for i, names in enumerate(trained) if task in names)


def value(row: Row, task: str, metric: str) -> float | None:
    """A cell's score; None where the task came later."""
    return float(getattr(row[task], metric)) if task in row else None


def number(score: float | None) -> float:
    """A score that must be there: the last row holds every task."""
    assert score is not None
    return score


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
