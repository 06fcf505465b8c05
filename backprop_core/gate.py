"""Whether a candidate may go live. One rule: it is better on average, and on no task is it clearly worse.

Better: its mean score over the trained tasks is above that of the champion and that of the untouched base, so that
doing nothing can win. Clearly worse: on some task, a watched one too, it is below the champion (the base, where there
is no champion yet) by more than `max_drop`, with the asked confidence, by a paired bootstrap over the held-out rows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.refs import GateReport, Scores, TaskVerdict
from backprop_core.specs import GateSpec
from backprop_core.store import Store

SAMPLES = 2000
SEED = 0
Row = Mapping[str, Scores]


class Hits(NamedTuple):
    """Per held-out row (r): how much of it is right, and out of how much."""

    right_r: NDArray[np.int64]
    all_r: NDArray[np.int64]

    @property
    def score(self) -> float:
        return float(self.right_r.sum() / self.all_r.sum())


def gate(
    candidate: Row, champion: Row | None, base: Row, *, watch: Sequence[str], metric: str, spec: GateSpec, store: Store
) -> GateReport:
    """Compare on every held-out set of `candidate`; all of them have scores of the same sets.

    `metric` is token_accuracy or exact_match. Same scores, same report.
    """
    rival = champion or base
    verdicts = [
        verdict(task, hits(candidate[task], metric, store), hits(rival[task], metric, store), spec)
        for task in candidate
    ]
    trained = [task for task in candidate if task not in watch]
    averages = [mean([float(getattr(row[task], metric)) for task in trained]) for row in (candidate, rival, base)]
    reasons = [*worse(verdicts, spec), *no_better(averages, "the champion" if champion else "the base")]
    return GateReport(
        accepted=not reasons,
        reason="; ".join(reasons)
        or f"better on average by {averages[0] - max(averages[1:]):.4f}, no task clearly worse",
        against="champion" if champion else "base",
        metric=metric,
        average=averages[0],
        rival_average=averages[1],
        base_average=averages[2],
        tasks=verdicts,
    )


def worse(verdicts: Sequence[TaskVerdict], spec: GateSpec) -> list[str]:
    """One reason for each task that is clearly worse."""
    return [
        f"{v.task} fell by {-v.difference:.4f}, at least {-v.high:.4f} with {spec.confidence:.0%} confidence "
        f"(allowed: {spec.max_drop})"
        for v in verdicts
        if v.worse
    ]


def no_better(averages: Sequence[float], rival: str) -> list[str]:
    """The reason why the average does not speak for the candidate, if so: its own, the rival's and the base's."""
    own, others = averages[0], dict(zip((rival, "the base"), averages[1:], strict=True))
    return [
        f"the average {own:.4f} is not above the {value:.4f} of {name}"
        for name, value in others.items()
        if own <= value
    ]


def hits(scores: Scores, metric: str, store: Store) -> Hits:
    """The scores of each row: its label tokens for token_accuracy, the row as a whole for exact_match."""
    rows = [json.loads(line) for line in read_lines(store.local(scores) / "scores.jsonl")]
    if metric == "exact_match":
        return Hits(np.array([int(row["exact"]) for row in rows]), np.ones(len(rows), dtype=np.int64))
    return Hits(np.array([row["correct"] for row in rows]), np.array([row["tokens"] for row in rows]))


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


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


def bounds(gain_r: NDArray[np.int64], all_r: NDArray[np.int64], confidence: float) -> tuple[float, float]:
    """The (1 - confidence) and the `confidence` quantile of Σ gain / Σ all over rows drawn with replacement."""
    rows = len(all_r)
    counts_sr = np.random.default_rng(SEED).multinomial(rows, np.full(rows, 1 / rows), size=SAMPLES)
    differences_s = (counts_sr @ gain_r) / (counts_sr @ all_r)
    low, high = np.quantile(differences_s, [1 - confidence, confidence])
    return float(low), float(high)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
