"""The gate: answers the spec's question about a candidate, finds tasks that are clearly worse, and checks canaries.

The question is about the mean score over the trained tasks. `better`: it is significantly above that of the champion
and of the base. `not_worse`: it is significantly above the champion's less `margin`, and above the base's less
`margin`; a first version has no champion and must be better than the base. Clearly worse: on some task, trained or
watched, the candidate is significantly below the champion (the base, if there is no champion) by more than `max_drop`.
Bounds are those of `bootstrap.py` at the configured confidence. Tasks with fewer held-out rows than `min_rows` are
ignored; if no trained task has enough, the candidate is rejected. Canaries: it must pass each canary that the champion
passes (without a champion, all), or the share `canary_pass_rate`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from backprop_core.evaluation.bootstrap import bounds, least_gain, most_lost
from backprop_core.evaluation.hits import Hits, Row, changes_by_one, hits_of
from backprop_core.evaluation.metrics import as_expected
from backprop_core.schema.gate_report import CanaryVerdict, GateReport, Question, TaskVerdict
from backprop_core.schema.refs import Answers
from backprop_core.schema.score_text import WITHOUT_LIMIT, amount, change, level, limit
from backprop_core.schema.specs import GateSpec
from backprop_core.store.artifacts import Store

SHOWN = 60  # characters of a canary that a reason shows


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
    question = spec.question if champion else "better"
    gains = {name: gain(own, other, averaged, spec.confidence, question) for name, other in rivals.items()}
    canaries = canary_verdicts(spec, answers, champion_answers)
    unknown = too_little(sizes, watch, spec)
    reasons = [unknown] if unknown else not_shown(gains, metric, spec, question)
    reasons = [*worse(verdicts, metric, spec), *reasons, *wrong(canaries, spec)]
    least = min(gains.values(), key=lambda gain: gain.low)
    return GateReport(
        accepted=not reasons,
        reason="; ".join(
            [*(reasons or [shown(least, metric, spec, question)]), *([] if unknown else not_counted(sizes, spec))]
        ),
        question=question,
        margin=spec.margin if question == "not_worse" else None,
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


def worse(verdicts: Sequence[TaskVerdict], metric: str, spec: GateSpec) -> list[str]:
    """One reason for each task that is clearly worse."""
    moved = "rose" if metric in WITHOUT_LIMIT else "fell"
    return [
        f"{v.task} {moved} by {amount(v.difference, metric)}, at least {amount(v.high, metric)} "
        f"with {spec.confidence:.0%} confidence (allowed: {limit(spec.max_drop, metric)})"
        for v in verdicts
        if v.worse and v.high is not None
    ]


class Gain(NamedTuple):
    """The candidate's average, a rival's, and the lower bound of the difference at the configured confidence."""

    own: float
    rival: float
    low: float


def gain(
    own: Mapping[str, Hits],
    rival: Mapping[str, Hits],
    tasks: Sequence[str],
    confidence: float,
    question: Question = "better",
) -> Gain:
    """How much the average over `tasks` rose. To show that nothing was lost, the bound allows for rare losses."""
    low = least_gain(own, rival, tasks, confidence)
    if question == "not_worse":
        low = -most_lost(own, rival, tasks, confidence)
    return Gain(mean([own[task].score for task in tasks]), mean([rival[task].score for task in tasks]), low)


def not_shown(gains: Mapping[str, Gain], metric: str, spec: GateSpec, question: Question) -> list[str]:
    """One reason for each rival to which the answer to the question is no."""
    if question == "not_worse":
        return [
            f"the average {level(gain.own, metric)} may be {amount(gain.low, metric)} below the "
            f"{level(gain.rival, metric)} of {name} "
            f"({spec.confidence:.0%} confidence; allowed: {limit(spec.margin, metric)})"
            for name, gain in gains.items()
            if gain.low <= -spec.margin
        ]
    side = "below" if metric in WITHOUT_LIMIT else "above"
    return [
        f"the average {level(gain.own, metric)} is not {side} the {level(gain.rival, metric)} of {name}"
        + (f" by more than chance ({spec.confidence:.0%} confidence)" if gain.own > gain.rival else "")
        for name, gain in gains.items()
        if gain.low <= 0
    ]


def shown(least: Gain, metric: str, spec: GateSpec, question: Question) -> str:
    """What an accepted candidate has shown."""
    if question == "not_worse":
        return (
            f"not worse on average: {change(least.own - least.rival, metric)}, "
            f"at least {change(least.low, metric)} (allowed: -{limit(spec.margin, metric)}), no task clearly worse"
        )
    gained = f"{amount(least.own - least.rival, metric)}, at least {amount(least.low, metric)}"
    return f"better on average by {gained}, no task clearly worse"


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


def wrong(canaries: Sequence[CanaryVerdict], spec: GateSpec) -> list[str]:
    """One reason for each canary that counts and fails; one for all if a share of them is enough."""
    if spec.canary_pass_rate is not None:
        return [] if not canaries else too_few_passed(canaries, spec.canary_pass_rate)
    return [failed(v) for v in canaries if not v.passed and v.rival_passed is not False]


def too_few_passed(canaries: Sequence[CanaryVerdict], least: float) -> list[str]:
    """The reason, with the failed canaries, if less than this share passed; empty otherwise."""
    passed = sum(v.passed for v in canaries)
    if passed + 1e-9 >= least * len(canaries):  # 0.07 * 100 is 7.000000000000001
        return []
    failures = "; ".join(failed(v) for v in canaries if not v.passed)
    return [f"{passed} of {len(canaries)} canaries passed, at least {least:.0%} needed: {failures}"]


def failed(v: CanaryVerdict) -> str:
    return f"canary {cut(v.prompt)!r} was answered {cut(v.answer)!r}, expected {cut(v.expect)!r}"


def cut(text: str) -> str:
    """The start of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def verdict(task: str, candidate: Hits, rival: Hits, spec: GateSpec) -> TaskVerdict:
    """The difference on one task, with one-sided bounds at the configured confidence; no bounds with too few rows."""
    assert candidate.is_of_rows_of(rival), "scores of two different held-out sets"
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
    detectable = max(
        spec.max_drop + difference - low, fewest(spec) * changes_by_one(candidate, rival) / float(candidate.all_r.sum())
    )
    return TaskVerdict(
        **known,
        low=low,
        high=high,
        worse=high < -spec.max_drop,
        too_small=detectable > 2 * spec.max_drop,
        detectable=detectable,
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
