"""Whether a candidate may go live. One rule: it is better on average, on no task clearly worse, and knows its canaries.

Better: its mean score over the trained tasks is above that of the champion and that of the untouched base by more than
chance, so that doing nothing can win. Clearly worse: on some task, a watched one too, it is below the champion (the
base, where there is no champion yet) by more than `max_drop`. Chance is what a paired bootstrap over the held-out rows
says, with the asked confidence. Canaries: it answers each of them as expected that the champion does; without a
champion, each.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.metrics import as_expected
from backprop_core.refs import Answers, Ratings, Scores
from backprop_core.specs import GateSpec
from backprop_core.store import Store
from backprop_core.verdicts import CanaryVerdict, GateReport, TaskVerdict

SAMPLES = 2000
SEED = 0
SHOWN = 60  # characters of a canary in a reason
Row = Mapping[str, Scores | Ratings]


class Hits(NamedTuple):
    """Per held-out row (r): how much of it is right, and out of how much."""

    right_r: NDArray[np.float64]
    all_r: NDArray[np.int64]

    @property
    def score(self) -> float:
        return float(self.right_r.sum() / self.all_r.sum())


def gate(
    candidate: Row,
    champion: Row | None,
    base: Row,
    *,
    watch: Sequence[str],
    metric: str,
    spec: GateSpec,
    answers: Answers | None = None,
    champion_answers: Answers | None = None,
    store: Store,
) -> GateReport:
    """Compare on every held-out set of `candidate`; all of them have scores of the same sets, in `metric`.

    `answers` are the candidate's to `spec.canaries`, `champion_answers` the champion's. Same scores, same report.
    """
    rows = {"champion": champion, "base": base}
    rivals = {f"the {name}": hits_of(row, metric, store) for name, row in rows.items() if row}
    own, rival = hits_of(candidate, metric, store), next(iter(rivals.values()))
    verdicts = [verdict(task, own[task], rival[task], spec) for task in candidate]
    gains = {name: gain(own, other, watch, spec.confidence) for name, other in rivals.items()}
    canaries = canary_verdicts(spec, answers, champion_answers)
    reasons = [*worse(verdicts, spec), *no_better(gains, spec), *wrong(canaries)]
    least = min(gains.values(), key=lambda gain: gain.low)
    return GateReport(
        accepted=not reasons,
        reason="; ".join(reasons)
        or f"better on average by {least.own - least.rival:.4f}, at least {least.low:.4f}, no task clearly worse",
        against="champion" if champion else "base",
        metric=metric,
        average=least.own,
        rival_average=next(iter(gains.values())).rival,
        base_average=gains["the base"].rival,
        gain_low=least.low,
        tasks=verdicts,
        canaries=canaries,
    )


def worse(verdicts: Sequence[TaskVerdict], spec: GateSpec) -> list[str]:
    """One reason for each task that is clearly worse."""
    return [
        f"{v.task} fell by {-v.difference:.4f}, at least {-v.high:.4f} with {spec.confidence:.0%} confidence "
        f"(allowed: {spec.max_drop})"
        for v in verdicts
        if v.worse
    ]


class Gain(NamedTuple):
    """The candidate's average and a rival's; the difference is above `low` with the asked confidence."""

    own: float
    rival: float
    low: float


def gain(own: Mapping[str, Hits], rival: Mapping[str, Hits], watch: Sequence[str], confidence: float) -> Gain:
    """How much the average over the trained tasks rose; the rows of each task are drawn for themselves."""
    generator = np.random.default_rng(SEED)
    trained = [task for task in own if task not in watch]
    drawn_ts = [draws(own[task].right_r - rival[task].right_r, own[task].all_r, generator) for task in trained]
    low = float(np.quantile(np.mean(drawn_ts, axis=0), 1 - confidence))
    return Gain(mean([own[task].score for task in trained]), mean([rival[task].score for task in trained]), low)


def no_better(gains: Mapping[str, Gain], spec: GateSpec) -> list[str]:
    """The reason why the average does not speak for the candidate, if so, by rival."""
    return [
        f"the average {gain.own:.4f} is not above the {gain.rival:.4f} of {name}"
        + (f" by more than chance ({spec.confidence:.0%} confidence)" if gain.own > gain.rival else "")
        for name, gain in gains.items()
        if gain.low <= 0
    ]


def canary_verdicts(spec: GateSpec, answers: Answers | None, champion: Answers | None) -> list[CanaryVerdict]:
    """Each canary with what the candidate says, and whether the champion passes it."""
    said = answers.answers if answers else []
    rivals = [one.text for one in champion.answers] if champion else [None] * len(said)
    return [
        CanaryVerdict(
            prompt=canary.prompt,
            expect=canary.expect,
            answer=own.text,
            passed=as_expected(canary, own.text),
            rival_passed=None if rival is None else as_expected(canary, rival),
        )
        for canary, own, rival in zip(spec.canaries, said, rivals, strict=True)
    ]


def wrong(canaries: Sequence[CanaryVerdict]) -> list[str]:
    """One reason for each canary that the candidate fails and the champion, if there is one, does not."""
    return [
        f"canary {cut(v.prompt)!r} was answered {cut(v.answer)!r}, expected {cut(v.expect)!r}"
        for v in canaries
        if not v.passed and v.rival_passed is not False
    ]


def cut(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def hits_of(row: Row, metric: str, store: Store) -> dict[str, Hits]:
    return {task: hits(scores, metric, store) for task, scores in row.items()}


def hits(scores: Scores | Ratings, metric: str, store: Store) -> Hits:
    """The scores of each row: its label tokens for token_accuracy and loss (negative), else the row as a whole."""
    if scores.artifact == "ratings":
        return whole_rows([row["score"] for row in read(store.local(scores) / "ratings.jsonl")])
    rows = read(store.local(scores) / "scores.jsonl")
    if metric == "exact_match":
        return whole_rows([float(row["exact"]) for row in rows])
    right = [-row["loss"] if metric == "loss" else float(row["correct"]) for row in rows]
    return Hits(np.array(right), np.array([row["tokens"] for row in rows]))


def whole_rows(right: list[float]) -> Hits:
    return Hits(np.array(right), np.ones(len(right), dtype=np.int64))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verdict(task: str, candidate: Hits, rival: Hits, spec: GateSpec) -> TaskVerdict:
    """The difference on one task, between its one-sided bounds at the asked confidence."""
    assert (candidate.all_r == rival.all_r).all(), "scores of two different held-out sets"
    low, high = bounds(candidate.right_r - rival.right_r, candidate.all_r, spec.confidence)
    difference = candidate.score - rival.score
    return TaskVerdict(
        task=task,
        rows=len(candidate.all_r),
        candidate=candidate.score,
        rival=rival.score,
        difference=difference,
        low=low,
        high=high,
        worse=high < -spec.max_drop,
        too_small=difference - low > spec.max_drop,
    )


def bounds(gain_r: NDArray[np.float64], all_r: NDArray[np.int64], confidence: float) -> tuple[float, float]:
    """The (1 - confidence) and the `confidence` quantile of what is drawn."""
    drawn_s = draws(gain_r, all_r, np.random.default_rng(SEED))
    low, high = np.quantile(drawn_s, [1 - confidence, confidence])
    return float(low), float(high)


def draws(gain_r: NDArray[np.float64], all_r: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Σ gain / Σ all over rows drawn with replacement, SAMPLES times."""
    rows = len(all_r)
    counts_sr = generator.multinomial(rows, np.full(rows, 1 / rows), size=SAMPLES)
    drawn_s: NDArray[np.float64] = (counts_sr @ gain_r) / (counts_sr @ all_r)
    return drawn_s


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
