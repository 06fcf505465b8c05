"""The forgetting matrix: definitions of the paper, on numbers done by hand."""

import pytest

from backprop_core.evaluation.forgetting_matrix import evaluation
from backprop_core.schema.refs import Cell, Ratings, Scores


def cell(accuracy: float, exact: float = 0.5, f1: float | None = None, on: str = "2") -> Cell:
    scores = Scores(digest="0" * 64, rows=10, tokens=50, loss=1 - accuracy, token_accuracy=accuracy, exact_match=exact)
    rating = None if f1 is None else Ratings(digest="1" * 64, metric="token_f1", rows=10, score=f1)
    return Cell(scores=scores, rating=rating, heldout=on * 64)


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
    assert (found.scores, found.base_scores) == ([[0.25]], [0.5])


def test_of_loss_less_is_more():
    """Averages in loss are of its negative, so that forgetting is what was lost there too."""
    rows = [{"a": cell(0.8)}, {"a": cell(0.5), "b": cell(0.5)}]
    base = {"a": cell(0.1), "b": cell(0.1)}
    found = evaluation(tasks=["a", "b"], watch=[], trained=[["a"], ["b"]], rows=rows, base=base, metric="loss")
    assert found.average == -0.5 and found.loss[0] == [pytest.approx(0.2), None]
    assert found.backward_transfer == pytest.approx(-0.3) and found.forgetting == pytest.approx([0.3, 0])


def test_a_version_of_before_the_metric_counts_for_nothing():
    """Where the line changed its metric, what was not rated in it has no cell and no part in the averages."""
    rows = [{"a": cell(0.8)}, {"a": cell(0.8, f1=0.7)}, {"a": cell(0.8, f1=0.6), "b": cell(0.8, f1=0.9)}]
    base = {"a": cell(0.1, f1=0.2), "b": cell(0.1, f1=0.2)}
    found = evaluation(
        tasks=["a", "b"], watch=[], trained=[["a"], ["a"], ["b"]], rows=rows, base=base, metric="token_f1"
    )
    assert found.scores == [[None, None], [0.7, None], [0.6, 0.9]] and found.average == 0.75
    assert found.backward_transfer == pytest.approx(-0.1) and found.forgetting == pytest.approx([0.1, 0])
    first = evaluation(
        tasks=["a", "b"], watch=[], trained=[["a"], ["b"]], rows=[rows[0], rows[2]], base=base, metric="token_f1"
    )
    assert first.backward_transfer is None


def test_a_difference_is_between_scores_on_the_same_rows():
    """Forgetting and backward transfer count no run that was scored on other rows; without one they are None."""
    rows = [{"a": cell(0.9, on="5")}, {"a": cell(0.6), "b": cell(0.7, on="6")}, {"a": cell(0.5), "b": cell(0.4)}]
    base = {"a": cell(0.1), "b": cell(0.2)}
    common = {"tasks": ["a", "b"], "watch": [], "base": base, "metric": "token_accuracy"}
    found = evaluation(trained=[["a"], ["b"], ["b"]], rows=rows, **common)
    assert found.forgetting == [pytest.approx(0.1), None] and found.backward_transfer is None
    again = evaluation(trained=[["a"], ["a"], ["b"]], rows=rows, **common)
    assert again.backward_transfer == pytest.approx(-0.1)
    assert found.matrix == [[0.9, None], [0.6, 0.7], [0.5, 0.4]]
    new = evaluation(trained=[["a"], ["b"]], rows=[{"a": cell(0.9)}, {"a": cell(0.9), "b": cell(0.4)}], **common)
    assert new.forgetting == [0, 0]


def test_the_base_is_scored_on_the_rows_of_the_last_run():
    """A watched task has always something to compare with: the untouched base, on the present rows."""
    rows = [{"a": cell(0.9), "w": cell(0.99, on="5")}, {"a": cell(0.9), "w": cell(0.6)}]
    base = {"a": cell(0.1), "w": cell(0.8)}
    found = evaluation(tasks=["a"], watch=["w"], trained=[["a"]] * 2, rows=rows, base=base, metric="token_accuracy")
    assert found.forgetting == [0, pytest.approx(0.2)]
