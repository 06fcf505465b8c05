"""How often the gate is wrong, simulated: 1,000 lines of which the truth is known."""

from typing import Any

import numpy as np
import pytest

from backprop_core.evaluation.bootstrap import SAMPLES, SEED, most_lost, spread
from backprop_core.evaluation.gate import gain
from backprop_core.evaluation.hits import Hits
from backprop_core.evaluation.power import REDRAWN, gain_shown, margin_passed, rows_like, unknown_rows
from backprop_core.schema.gate_report import Power, Question
from backprop_core.schema.specs import GateSpec

LINES = 1000
CONFIDENCE = 0.95
Matrix = np.ndarray[Any, Any]
SIZES = [5, 20, 50, 200]
MARGIN = 0.02
SPEC = GateSpec(margin=MARGIN)
ALLOWED = 0.05 + 0.02


def redrawn(
    generator: np.random.Generator, rows: int, score: float, difference: float, *, tokens: int, share: float = REDRAWN
) -> tuple[Hits, Hits]:
    """A candidate that differs from the champion by `difference` in truth: it gives a share of the answers anew."""
    of = np.full(rows, tokens)
    old = generator.binomial(of, score)
    lost, won = generator.binomial(old, share), generator.binomial(of - old, share)
    new = old - lost + generator.binomial(lost + won, score + difference / share)
    return Hits(new.astype(float), of), Hits(old.astype(float), of)


def rarely_lost(generator: np.random.Generator, rows: int, lost: float) -> tuple[Hits, Hits]:
    """A champion that has every row, and a candidate that loses whole rows, but rarely."""
    of = np.full(rows, 10)
    return Hits(np.where(generator.random(rows) < lost, 0.0, 10.0), of), Hits(of.astype(float), of)


def lows(pairs: list[tuple[Hits, Hits]], question: Question) -> Matrix:
    """The lower bound of each line: what `gain` says of one, of all at once, as it draws the same samples each time."""
    generator, rows = np.random.default_rng(SEED), pairs[0][0].rows
    own, rival = (np.array([pair[side].right_r for pair in pairs]) for side in (0, 1))
    gains, all_ = own - rival, np.array([pair[0].all_r for pair in pairs], dtype=float)
    if question == "not_worse":
        weights = generator.exponential(size=(SAMPLES, rows + 1))
        gains, all_ = np.c_[gains, -rival.mean(1)], np.c_[all_, all_.mean(1)]
        found = (weights @ gains.T) / (weights @ all_.T)
    else:
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=SAMPLES).astype(float)
        mean = gains.sum(1) / all_.sum(1)
        found = mean + spread(rows, CONFIDENCE) * ((counts @ gains.T) / (counts @ all_.T) - mean)
    made = np.quantile(found, 1 - CONFIDENCE, axis=0)
    one = [gain({"a": new}, {"a": old}, ["a"], CONFIDENCE, question).low for new, old in pairs[:3]]
    assert made[:3] == pytest.approx(one, abs=1e-9)
    return made


def released(pairs: list[tuple[Hits, Hits]], question: Question, margin: float = MARGIN) -> float:
    """The share of lines in which the gate's question is answered with yes."""
    return float(np.mean(lows(pairs, question) > (-margin if question == "not_worse" else 0)))


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("tokens", [1, 10])
def test_what_is_no_better_is_released_in_one_case_of_twenty(rows: int, tokens: int) -> None:
    """With no true difference at most 5 % (+2) of 1,000 lines get a new version."""
    generator = np.random.default_rng(rows)
    assert released([redrawn(generator, rows, 0.7, 0, tokens=tokens) for _ in range(LINES)], "better") <= ALLOWED


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("tokens", [1, 10])
def test_what_is_worse_by_the_margin_is_released_in_one_case_of_twenty(rows: int, tokens: int) -> None:
    """With a true loss of exactly the margin at most 5 % (+2) of 1,000 lines get a new version."""
    generator = np.random.default_rng(rows)
    pairs = [redrawn(generator, rows, 0.7, -MARGIN, tokens=tokens) for _ in range(LINES)]
    assert released(pairs, "not_worse") <= ALLOWED


@pytest.mark.parametrize("rows", SIZES)
def test_rare_losses_are_allowed_for(rows: int) -> None:
    """Rows that are lost whole, two in a hundred, are as rarely released; a plain bootstrap does not see them."""
    generator = np.random.default_rng(rows)
    pairs = [rarely_lost(generator, rows, MARGIN) for _ in range(LINES)]
    assert released(pairs, "not_worse") <= ALLOWED
    if rows <= 50:
        assert np.mean(lows(pairs, "better") > -MARGIN) > 0.3


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_gating_twice_would_be_wrong_more_often(share: float) -> None:
    """Choosing first and gating once keeps the error; gating, and backing off only when refused, adds to it.

    Half of the change is a candidate of its own, in which half of the changed answers are those of the champion.
    """
    generator, wholes, halves = np.random.default_rng(7), [], []
    for _ in range(LINES):
        whole, champion = redrawn(generator, 100, 0.7, 0, tokens=10, share=share)
        kept = generator.random(100) < 0.5
        half = Hits(np.where(kept, whole.right_r, champion.right_r), whole.all_r)
        wholes.append((whole, champion))
        halves.append((half, champion))
    passed = np.array([lows(pairs, "better") > 0 for pairs in (wholes, halves)])
    once = passed[generator.integers(2, size=LINES), range(LINES)]  # chosen by rows that the gate does not see
    assert once.mean() <= ALLOWED
    assert passed.any(0).mean() > once.mean() + 0.01


def test_the_bound_of_rows_right_or_wrong_is_that_of_clopper_and_pearson() -> None:
    """Of 100 rows 3 are lost and none is won: at most 7.6 %, and 5.8 % of 50 without a lost one, as tables have it."""
    for rows, lost, most in ((100, 3, 0.0757), (50, 0, 0.0582), (20, 1, 0.2161)):
        champion = Hits(np.ones(rows), np.ones(rows, dtype=np.int64))
        candidate = Hits(np.r_[np.zeros(lost), np.ones(rows - lost)], champion.all_r)
        assert most_lost({"a": candidate}, {"a": champion}, ["a"], CONFIDENCE) == pytest.approx(most, rel=0.06)


@pytest.mark.parametrize(("rows", "score", "tokens"), [(50, 0.5, 1), (200, 0.7, 1), (20, 0.7, 10), (200, 0.85, 10)])
def test_the_plan_is_right_about_what_shows(rows: int, score: float, tokens: int) -> None:
    """With the gain that the plan states about 8 of 10 lines are released, and with its margin 8 of 10 equal ones."""
    generator = np.random.default_rng(3)
    like = rows_like(redrawn(generator, 20_000, score, 0, tokens=tokens)[1], rows)
    better, margin = gain_shown([like], SPEC), margin_passed([like], SPEC)
    gained, equal = (
        [redrawn(generator, rows, score, difference, tokens=tokens) for _ in range(300)] for difference in (better, 0)
    )
    assert 0.7 <= released(gained, "better") <= 0.9
    assert 0.7 <= released(equal, "not_worse", margin) <= 0.9
    assert (
        released(gained, "better")
        > released([redrawn(generator, rows, score, better / 2, tokens=tokens) for _ in range(300)], "better") + 0.2
    )


def test_more_rows_show_less_and_unknown_rows_most() -> None:
    """Four times the rows show about half; rows without a champion's scores are taken to vary as much as they can."""
    known = redrawn(np.random.default_rng(0), 500, 0.8, 0, tokens=10)[1]
    few, many = (gain_shown([rows_like(known, rows)], SPEC) for rows in (100, 400))
    assert 1.9 < few / many < 2.2
    assert gain_shown([unknown_rows(100)], SPEC) > few
    assert margin_passed([rows_like(known, 400)], SPEC) > 3 * known.score / 400


@pytest.mark.parametrize(
    ("question", "score", "known", "said"),
    [
        ("better", 0.8, True, "200 held-out rows: a gain of about 1.9 points in exact_match shows in 8 of 10 runs"),
        (
            "better",
            0.5,
            False,
            "200 held-out rows: a gain of 1.9 points (perhaps less) in exact_match shows in 8 of 10 runs",
        ),
        ("better", 0.99, True, "leaves no room for a gain that shows in 8 of 10 runs (about 1.9 points)"),
        ("not_worse", 0.99, True, "8 of 10 runs that lose nothing pass with a gate.margin of about 0.019 (here: 0.02)"),
    ],
)
def test_the_sentence_says_the_question(question: Question, score: float, known: bool, said: str) -> None:
    """What can show depends on what is asked."""
    power = Power(
        rows=200, metric="exact_match", question=question, difference=0.0191, margin=MARGIN, score=score, known=known
    )
    assert said in power.sentence
