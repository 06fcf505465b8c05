"""The learning rate: warmup, then cosine decay."""

import itertools

import pytest

from backprop_core.schema.specs import TrainSpec
from backprop_core.training import lr_schedule


@pytest.mark.parametrize("total, warmup, expected", [(100, 0.1, 10), (1000, 0.1, 20), (5, 0.1, 1), (50, 0.0, 0)])
def test_warm_up_then_cosine(total: int, warmup: float, expected: int) -> None:
    """The rate rises in equal parts for min(warmup · steps, 20) steps, then only falls, and is never zero."""
    spec = TrainSpec(learning_rate=0.5, warmup=warmup)
    rates = [lr_schedule.learning_rate(step, total, spec) for step in range(total)]
    assert rates[:expected] == pytest.approx([0.5 * (step + 1) / expected for step in range(expected)])
    assert rates[expected] == pytest.approx(0.5)
    assert all(before > after > 0 for before, after in itertools.pairwise(rates[expected:]))
    assert rates[(total + expected) // 2] == pytest.approx(0.25, abs=0.05 if total > 20 else 0.2)
