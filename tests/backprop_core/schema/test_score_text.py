"""Scores as people read them."""

from backprop_core.schema.score_text import amount, change, level, limit


def test_shares_are_in_percent_and_their_differences_in_points() -> None:
    """One digit; a limit has all of its digits."""
    assert (level(0.9792, "token_accuracy"), level(None, "token_f1")) == ("97.9 %", "–")
    assert (change(0.0186, "exact_match"), change(-0.1, "judge")) == ("+1.9 points", "-10.0 points")
    assert (amount(-0.1, "exact_match"), limit(0.0025, "exact_match")) == ("10.0 points", "0.25 points")


def test_losses_and_bits_have_no_percent() -> None:
    """They are negated where they are scores, and written as people know them."""
    for metric in ("loss", "bits_per_byte"):
        assert (level(-0.5, metric), change(0.25, metric), limit(0.02, metric)) == ("0.500", "+0.250", "0.02")
