"""The gate: accepts a candidate that is better on average, clearly worse on no task, and passes its canaries.

Better: its mean score over the trained tasks is significantly above that of the champion and of the base. Clearly
worse: on some task, trained or watched, it is significantly below the champion (the base, if there is no champion) by
more than `max_drop`. Significance comes from a paired bootstrap over the held-out rows at the configured confidence,
widened by the ratio of Student's t to the normal distribution, so few rows widen the bounds. Tasks with fewer held-out
rows than `min_rows` are ignored; if no trained task has enough, the candidate is rejected. Canaries: it must pass each
canary that the champion passes; without a champion, all.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.evaluation.metrics import as_expected
from backprop_core.schema.gate_report import CanaryVerdict, GateReport, TaskVerdict
from backprop_core.schema.refs import Answers, Ratings, Scores
from backprop_core.schema.specs import GateSpec
from backprop_core.store.artifacts import Store

SAMPLES = 2000
SEED = 0
SHOWN = 60  # characters of a canary that a reason shows
Row = Mapping[str, Scores | Ratings]


class Hits(NamedTuple):
    """Per held-out row (r): how many points it got, and out of how many."""

    right_r: NDArray[np.float64]
    all_r: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.all_r)

    @property
    def score(self) -> float:
        return float(self.right_r.sum() / self.all_r.sum()) if self.rows else 0.0


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
    """Compare candidate, champion and base on every held-out set of `candidate`, in `metric`. Deterministic.

    All must have scores on the same sets. `answers` are the candidate's answers to `spec.canaries`,
    `champion_answers` the champion's.
    """
    rows = {"champion": champion, "base": base}
    rivals = {f"the {name}": hits_of(row, metric, store) for name, row in rows.items() if row}
    own, rival = hits_of(candidate, metric, store), next(iter(rivals.values()))
    sizes = {task: hits.rows for task, hits in own.items()}
    verdicts = [verdict(task, own[task], rival[task], spec) for task in candidate]
    averaged = counted(sizes, watch, spec) or trained(sizes, watch) or list(sizes)
    gains = {name: gain(own, other, averaged, spec.confidence) for name, other in rivals.items()}
    canaries = canary_verdicts(spec, answers, champion_answers)
    unknown = too_little(sizes, watch, spec)
    reasons = [unknown] if unknown else no_better(gains, spec)
    reasons = [*worse(verdicts, spec), *reasons, *wrong(canaries)]
    least = min(gains.values(), key=lambda gain: gain.low)
    better = f"better on average by {least.own - least.rival:.4f}, at least {least.low:.4f}, no task clearly worse"
    return GateReport(
        accepted=not reasons,
        reason="; ".join([*(reasons or [better]), *([] if unknown else not_counted(sizes, spec))]),
        against="champion" if champion else "base",
        metric=metric,
        average=least.own,
        rival_average=next(iter(gains.values())).rival,
        base_average=gains["the base"].rival,
        gain_low=None if unknown else least.low,
        tasks=verdicts,
        canaries=canaries,
    )


def fewest(spec: GateSpec) -> int:
    """The minimum number of held-out rows with which a task counts.

    Without a true difference each row is as likely to gain as to lose, so n rows all gain by chance with 2⁻ⁿ.
    """
    return max(spec.min_rows.task, math.ceil(-math.log2(1 - spec.confidence)))


def trained(sizes: Mapping[str, int], watch: Sequence[str]) -> list[str]:
    """The tasks that are trained, not only watched."""
    return [task for task in sizes if task not in watch]


def counted(sizes: Mapping[str, int], watch: Sequence[str], spec: GateSpec) -> list[str]:
    """The trained tasks with enough held-out rows for the average; `sizes` has the rows by task."""
    return [task for task in trained(sizes, watch) if sizes[task] >= fewest(spec)]


def too_little(sizes: Mapping[str, int], watch: Sequence[str], spec: GateSpec) -> str | None:
    """Why there are too few held-out rows to show a gain, or None. `sizes` has the rows by task."""
    enough, all_ = counted(sizes, watch, spec), trained(sizes, watch)
    if not enough:
        most = max((sizes[task] for task in all_), default=0)
        return f"too little to tell: {in_words(most)}, at least {fewest(spec)} needed" + " in a task" * (len(all_) > 1)
    together = sum(sizes[task] for task in enough)
    if together < spec.min_rows.overall:
        return f"too little to tell: {in_words(together)}, at least {spec.min_rows.overall} needed"
    return None


def not_counted(sizes: Mapping[str, int], spec: GateSpec) -> list[str]:
    """The tasks with too few rows, as one part of the reason; empty if there are none."""
    few = [f"{task} ({in_words(rows)})" for task, rows in sizes.items() if rows < fewest(spec)]
    return [f"not counted, at least {fewest(spec)} needed: {', '.join(few)}"] if few else []


def in_words(rows: int) -> str:
    return f"{rows} held-out row{'' if rows == 1 else 's'}"


def worse(verdicts: Sequence[TaskVerdict], spec: GateSpec) -> list[str]:
    """One reason for each task that is clearly worse."""
    return [
        f"{v.task} fell by {-v.difference:.4f}, at least {-v.high:.4f} with {spec.confidence:.0%} confidence "
        f"(allowed: {spec.max_drop})"
        for v in verdicts
        if v.worse and v.high is not None
    ]


class Gain(NamedTuple):
    """The candidate's average, a rival's, and the lower bound of the difference at the configured confidence."""

    own: float
    rival: float
    low: float


def gain(own: Mapping[str, Hits], rival: Mapping[str, Hits], tasks: Sequence[str], confidence: float) -> Gain:
    """How much the average over `tasks` rose; the bootstrap resamples each task's rows separately."""
    generator = np.random.default_rng(SEED)
    drawn_ts = [
        draws(own[task].right_r - rival[task].right_r, own[task].all_r, generator, confidence) for task in tasks
    ]
    low = float(np.quantile(np.mean(drawn_ts, axis=0), 1 - confidence))
    return Gain(mean([own[task].score for task in tasks]), mean([rival[task].score for task in tasks]), low)


def no_better(gains: Mapping[str, Gain], spec: GateSpec) -> list[str]:
    """One reason for each rival whose average is not significantly lower."""
    return [
        f"the average {gain.own:.4f} is not above the {gain.rival:.4f} of {name}"
        + (f" by more than chance ({spec.confidence:.0%} confidence)" if gain.own > gain.rival else "")
        for name, gain in gains.items()
        if gain.low <= 0
    ]


def canary_verdicts(spec: GateSpec, answers: Answers | None, champion: Answers | None) -> list[CanaryVerdict]:
    """Each canary with the candidate's answer, and whether the champion passes it."""
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
    """The start of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def hits_of(row: Row, metric: str, store: Store) -> dict[str, Hits]:
    return {task: hits(scores, metric, store) for task, scores in row.items()}


def hits(scores: Scores | Ratings, metric: str, store: Store) -> Hits:
    """The score of each row: per label token for token_accuracy and (negated) loss, else for the row as a whole.

    Rows without a label token are left out.
    """
    if scores.artifact == "ratings":
        return whole_rows([row["score"] for row in read_scores(store.local(scores) / "ratings.jsonl")])
    rows = [row for row in read_scores(store.local(scores) / "scores.jsonl") if row["tokens"]]
    if metric == "exact_match":
        return whole_rows([float(row["exact"]) for row in rows])
    right = [-row["loss"] if metric == "loss" else float(row["correct"]) for row in rows]
    return Hits(np.array(right), np.array([row["tokens"] for row in rows], dtype=np.int64))


def whole_rows(right: list[float]) -> Hits:
    return Hits(np.array(right), np.ones(len(right), dtype=np.int64))


def read_scores(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verdict(task: str, candidate: Hits, rival: Hits, spec: GateSpec) -> TaskVerdict:
    """The difference on one task, with one-sided bounds at the configured confidence; no bounds with too few rows."""
    assert (candidate.all_r == rival.all_r).all(), "scores of two different held-out sets"
    difference = candidate.score - rival.score
    known = {
        "task": task,
        "rows": candidate.rows,
        "candidate": candidate.score,
        "rival": rival.score,
        "difference": difference,
    }
    if candidate.rows < fewest(spec):
        return TaskVerdict(**known, worse=False, too_small=True)
    low, high = bounds(candidate.right_r - rival.right_r, candidate.all_r, spec.confidence)
    shown = max(spec.max_drop + difference - low, fewest(spec) * step(candidate, rival) / float(candidate.all_r.sum()))
    return TaskVerdict(
        **known,
        low=low,
        high=high,
        worse=high < -spec.max_drop,
        too_small=shown > 2 * spec.max_drop,
        detectable=shown,
    )


def step(candidate: Hits, rival: Hits) -> float:
    """The smallest possible change of a row: 1 if rows or tokens are counted, else 0."""
    values_r = np.concatenate([candidate.right_r, rival.right_r])
    return float((values_r == np.rint(values_r)).all())


def bounds(gain_r: NDArray[np.float64], all_r: NDArray[np.int64], confidence: float) -> tuple[float, float]:
    """The (1 - confidence) and `confidence` quantiles of the bootstrap samples."""
    drawn_s = draws(gain_r, all_r, np.random.default_rng(SEED), confidence)
    low, high = np.quantile(drawn_s, [1 - confidence, confidence])
    return float(low), float(high)


def draws(
    gain_r: NDArray[np.float64], all_r: NDArray[np.int64], generator: np.random.Generator, confidence: float
) -> NDArray[np.float64]:
    """SAMPLES bootstrap samples of Σ gain / Σ all over rows, stretched around the mean by `spread`."""
    rows = len(all_r)
    if not rows:
        return np.zeros(SAMPLES)
    counts_sr = generator.multinomial(rows, np.full(rows, 1 / rows), size=SAMPLES)
    drawn_s: NDArray[np.float64] = (counts_sr @ gain_r) / (counts_sr @ all_r)
    found = float(gain_r.sum() / all_r.sum())
    return found + spread(rows, confidence) * (drawn_s - found)


def spread(rows: int, confidence: float) -> float:
    """Correction of bootstrap bounds for few rows: √(n/(n-1)) · t/z, with n-1 degrees of freedom.

    The bootstrap's variance is too small by (n-1)/n, and its quantiles follow the normal z instead of Student's t
    [Hesterberg 2015, arXiv 1411.5279, "expanded percentile"]; t/z by Cornish and Fisher's series [Abramowitz and Stegun
    26.7.5].
    """
    v, z = max(rows - 1, 1), NormalDist().inv_cdf(confidence)
    terms = (
        (z**2 + 1) / (4 * v),
        (5 * z**4 + 16 * z**2 + 3) / (96 * v**2),
        (3 * z**6 + 19 * z**4 + 17 * z**2 - 15) / (384 * v**3),
    )
    return math.sqrt((v + 1) / v) * (1 + sum(terms))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
