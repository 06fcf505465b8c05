"""Intervals of paired differences: Student's t, exact, and as often right as they say."""

import numpy as np
import pytest

from backprop_core.evaluation.paired_differences import paired, student

TABLE = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 8: 2.30600, 9: 2.26216, 29: 2.04523, 100: 1.98397}


@pytest.mark.parametrize(("freedom", "value"), TABLE.items())
def test_quantiles_are_those_of_the_printed_table(freedom: int, value: float) -> None:
    """Student's two-sided 95 % quantile has five right digits from one degree of freedom on."""
    assert student(freedom) == pytest.approx(value, rel=2e-6)


@pytest.mark.parametrize("cells", [2, 3, 9])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(cells: int) -> None:
    """Of 4,000 drawn comparisons about 95 % hold the true difference; half as wide an interval holds it less often."""
    ours, theirs = np.random.default_rng(0).normal([[[0.7]], [[0.6]]], 0.02, (2, 4000, cells))
    found = [paired(list(one), list(other)) for one, other in zip(ours, theirs, strict=True)]
    inside = np.mean([one.low <= 0.1 <= one.high for one in found])
    half = np.mean([abs(one.mean - 0.1) <= (one.high - one.low) / 4 for one in found])
    assert 0.938 < inside < 0.962 and half < 0.93


def test_several_intervals_hold_together() -> None:
    """Of 2,000 comparisons of seven settings that change nothing, one in twenty calls any of them better or worse."""
    drawn = np.random.default_rng(1).normal(0.6, 0.02, (2000, 8, 5))
    wrong = 0
    for present, *others in drawn:
        found = [paired(list(one), list(present), among=7) for one in others]
        wrong += any(one.low > 0 or one.high < 0 for one in found)
    assert 0.01 < wrong / 2000 < 0.06
    alone = [any(not p.low <= 0 <= p.high for p in (paired(list(o), list(d[0])) for o in d[1:])) for d in drawn[:300]]
    assert np.mean(alone) > 0.1  # what it is without


def test_one_cell_has_no_interval_and_no_gain() -> None:
    """However large it is, one difference is no gain above noise."""
    found = paired([0.9], [0.1])
    assert (found.mean, found.cells, found.won, found.is_known, found.is_gain) == (0.8, 1, 1, False, False)
