"""The forgetting matrix: definitions of the paper, on numbers done by hand."""

import pytest

from backprop_core.matrix import evaluation
from backprop_core.refs import Scores


def cell(accuracy: float, exact: float = 0.5) -> Scores:
    return Scores(digest="0" * 64, rows=10, tokens=50, loss=1 - accuracy, token_accuracy=accuracy, exact_match=exact)


def test_three_tasks_and_a_watched_one():
    """Average, backward transfer and forgetting as defined, the watched task outside the averages."""
    rows = [
        {"a": cell(0.8), "w": cell(0.9)},
        {"a": cell(0.9), "b": cell(0.6), "w": cell(0.7)},
        {"a": cell(0.5), "b": cell(0.7), "c": cell(0.6), "w": cell(0.8)},
    ]
    base = {"a": cell(0.1), "b": cell(0.2), "c": cell(0.3), "w": cell(0.95)}
    found = evaluation(
        tasks=["a", "b", "c"], watch=["w"], trained=[["a"], ["b"], ["c"]], rows=rows, base=base, metric="token_accuracy"
    )
    assert found.tasks == ["a", "b", "c", "w"]
    assert found.matrix[0] == [0.8, None, None, 0.9]
    assert found.base == [0.1, 0.2, 0.3, 0.95]
    assert found.average == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert found.backward_transfer == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)
    assert found.forgetting == pytest.approx([0.4, 0, 0, 0.15])


def test_one_task_trained_again_and_again():
    """Windows of one task: no other task to transfer to; forgetting is the drop from the best run."""
    rows = [{"a": cell(0.4)}, {"a": cell(0.7)}, {"a": cell(0.6)}]
    found = evaluation(
        tasks=["a"], watch=[], trained=[["a"]] * 3, rows=rows, base={"a": cell(0.1)}, metric="token_accuracy"
    )
    assert found.backward_transfer is None
    assert found.average == 0.6
    assert found.forgetting == pytest.approx([0.1])


def test_the_metric_decides_what_the_averages_are_of():
    """`matrix` stays token accuracy whatever the metric."""
    found = evaluation(
        tasks=["a"],
        watch=[],
        trained=[["a"]],
        rows=[{"a": cell(0.4, 0.25)}],
        base={"a": cell(0.1)},
        metric="exact_match",
    )
    assert found.average == 0.25
    assert found.matrix == [[0.4]]
    assert found.exact_match == [[0.25]]
