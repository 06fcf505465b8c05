"""The gate: better on average and clearly worse nowhere, or nothing goes live."""

import json
import random

import pytest

from backprop_core.gate import bounds, gate, hits
from backprop_core.refs import GateReport, Scores
from backprop_core.specs import GateSpec
from backprop_core.store import Store

TOKENS = 10


class Bench:
    """Scores as the stage `evaluate` commits them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def scores(self, correct: list[int]) -> Scores:
        lines = [
            {"row": row, "loss": 1.0, "tokens": TOKENS, "correct": value, "exact": value == TOKENS}
            for row, value in enumerate(correct)
        ]
        with self.store.begin("scores") as directory:
            (directory / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            return self.store.commit(
                directory,
                Scores,
                record={},
                rows=len(correct),
                tokens=TOKENS * len(correct),
                loss=1.0,
                token_accuracy=sum(correct) / (TOKENS * len(correct)),
                exact_match=sum(value == TOKENS for value in correct) / len(correct),
            )

    def gate(self, candidate, champion, base, *, watch=(), metric="token_accuracy", **spec) -> GateReport:
        rows = [
            row and {task: self.scores(correct) for task, correct in row.items()} for row in (candidate, champion, base)
        ]
        return gate(*rows, watch=watch, metric=metric, spec=GateSpec(**spec), store=self.store)


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(Store(tmp_path))


def flat(value: int, rows: int = 100) -> list[int]:
    return [value] * rows


def test_better_everywhere_is_accepted(bench):
    """A candidate that is above champion and base on every task goes live."""
    report = bench.gate({"a": flat(8), "b": flat(7)}, {"a": flat(7), "b": flat(6)}, {"a": flat(2), "b": flat(2)})
    assert report.accepted and report.against == "champion"
    assert (report.average, report.rival_average, report.base_average) == pytest.approx((0.75, 0.65, 0.2))


def test_nothing_learned_is_rejected(bench):
    """The champion's own scores do not replace it: doing nothing wins a draw."""
    report = bench.gate({"a": flat(7)}, {"a": flat(7)}, {"a": flat(2)})
    assert not report.accepted and "not above the 0.7000 of the champion" in report.reason


def test_the_base_can_win(bench):
    """A candidate above the champion, but not above the untouched base, is rejected."""
    report = bench.gate({"a": flat(5)}, {"a": flat(4)}, {"a": flat(6)})
    assert not report.accepted and "of the base" in report.reason


def test_one_task_clearly_worse_is_rejected(bench):
    """However much the average gains, no task may clearly lose more than allowed; the report says which."""
    report = bench.gate({"a": flat(6), "b": flat(9)}, {"a": flat(7), "b": flat(1)}, {"a": flat(2), "b": flat(1)})
    assert not report.accepted and report.reason.startswith("a fell by 0.1000")
    assert [verdict.worse for verdict in report.tasks] == [True, False]
    assert bench.gate(
        {"a": flat(6), "b": flat(9)}, {"a": flat(7), "b": flat(1)}, {"a": flat(2), "b": flat(1)}, max_drop=0.1
    ).accepted


def test_a_watched_task_counts_for_the_rule_but_not_for_the_average(bench):
    """General skills may not be lost; gaining them is no reason to go live."""
    lost = bench.gate({"a": flat(9), "w": flat(4)}, None, {"a": flat(1), "w": flat(8)}, watch=["w"])
    assert not lost.accepted and lost.reason.startswith("w fell") and lost.against == "base"
    gained = bench.gate({"a": flat(5), "w": flat(9)}, None, {"a": flat(5), "w": flat(1)}, watch=["w"])
    assert not gained.accepted


def test_too_few_rows_are_said(bench):
    """A drop that so few rows cannot show does not reject, and the verdict says that they are too few."""
    noisy, other = [9, 1, 8, 2, 9, 3], [8, 9, 2, 9, 1, 4]
    report = bench.gate({"a": noisy, "b": flat(9)}, {"a": other, "b": flat(1)}, {"a": flat(1, 6), "b": flat(1)})
    assert report.accepted and [verdict.too_small for verdict in report.tasks] == [True, False]


def test_exact_match_counts_rows(bench):
    """In exact_match a row is right or wrong, however many of its tokens are right."""
    scores = bench.scores([TOKENS, TOKENS - 1, 0])
    assert hits(scores, "exact_match", bench.store).score == pytest.approx(1 / 3)
    assert hits(scores, "token_accuracy", bench.store).score == pytest.approx((2 * TOKENS - 1) / (3 * TOKENS))


def test_bounds_against_a_plain_bootstrap():
    """The bounds are those of drawing rows with replacement, one by one."""
    import numpy as np

    rng = random.Random(3)
    gain, tokens = [rng.randint(-4, 4) for _ in range(80)], [rng.randint(4, 12) for _ in range(80)]
    draws = sorted(ratio(rng.choices(range(80), k=80), gain, tokens) for _ in range(4000))
    low, high = bounds(np.array(gain), np.array(tokens), 0.95)
    assert (low, high) == pytest.approx((draws[200], draws[3800]), abs=0.006)
    assert low < sum(gain) / sum(tokens) < high
    assert bounds(np.array(gain), np.array(tokens), 0.95) == (low, high)


def ratio(chosen: list[int], gain: list[int], tokens: list[int]) -> float:
    return sum(gain[row] for row in chosen) / sum(tokens[row] for row in chosen)
