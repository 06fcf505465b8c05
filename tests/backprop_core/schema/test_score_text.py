"""Scores as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backprop_core.schema.score_text import amount, change, gain, level, limit

METRICS = st.sampled_from(["token_accuracy", "judge", "loss", "bits_per_byte"])


def test_shares_are_in_percent_and_their_differences_in_points() -> None:
    """One digit; a limit has all of its digits."""
    assert (level(0.9792, "token_accuracy"), level(None, "token_f1")) == ("97.9 %", "–")
    assert (change(0.0186, "exact_match"), change(-0.1, "judge")) == ("+1.9 points", "-10.0 points")
    assert (amount(-0.1, "exact_match"), limit(0.0025, "exact_match")) == ("10.0 points", "0.25 points")


def test_losses_and_bits_have_no_percent() -> None:
    """They are negated where they are scores, and written as people know them: a loss that is lower is better."""
    for metric in ("loss", "bits_per_byte"):
        assert (level(-0.5, metric), change(0.25, metric), limit(0.02, metric)) == ("0.500", "-0.250", "0.02")
        assert (gain(0.25, metric), amount(0.25, metric), change(0.0, metric)) == ("+0.250", "0.250", "+0.000")


@given(st.floats(0, 9), st.floats(0, 9), METRICS)
def test_a_change_is_that_of_the_levels_beside_it(before: float, after: float, metric: str) -> None:
    """Whatever the metric, level and change add up to the next level, as far as their digits go."""
    if metric in ("loss", "bits_per_byte"):
        before, after = -before, -after
    first, second, moved = (
        float(text.split()[0]) for text in (level(before, metric), level(after, metric), change(after - before, metric))
    )
    assert second - first == pytest.approx(moved, abs=0.0016 if "%" not in level(0.5, metric) else 0.16)


@given(st.floats(-1, 1).filter(lambda value: abs(value) > 1e-6), METRICS)
def test_a_difference_never_reads_as_none(difference: float, metric: str) -> None:
    """However small, it has a digit other than 0 and its sign; what only rounding makes has neither."""
    said = gain(difference, metric)
    assert float(said.split()[0]) * difference > 0
    assert gain(-1e-17, metric).startswith("+0.0") and change(1e-17, metric).startswith("+0.0")
