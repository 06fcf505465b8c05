"""What difference a number of held-out rows can show, before anything is trained.

How much two versions differ row by row is not known before the second one exists. Assumed is that it gives REDRAWN of
the champion's answers anew, as good as before or better, so that a paired difference of a row has the variance of a
mixture: 2·REDRAWN·σ² without a gain, where σ² is that of the champion's rows.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist, fmean
from typing import NamedTuple

from backprop_core.evaluation.bootstrap import spread
from backprop_core.evaluation.gate import fewest
from backprop_core.evaluation.hits import Hits, changes_by_one
from backprop_core.schema.gate_report import Power, Question
from backprop_core.schema.specs import GateSpec

REDRAWN = 0.3  # share of the answers (or of their tokens) that a run changes
SHARE = 0.8  # of such runs in which the difference shows
Z = NormalDist().inv_cdf(SHARE)
ROUNDS = 20  # until gain and variance agree


class Rows(NamedTuple):
    """The rows of a task: how many, and the champion's mean score, standard deviation and least change of a row."""

    rows: int
    score: float
    deviation: float
    least: float

    def variance(self, gain: float = 0) -> float:
        """Of the mean of the paired differences, if the new answers raise the score by `gain`.

        The new answers have the score p' = p + gain / REDRAWN, and vary as p'·(1 - p') does to p·(1 - p).
        """
        unit, p = self.deviation**2 / self.rows, self.score
        if gain == 0 or not 0 < p < 1:
            return 2 * REDRAWN * unit
        new = min(1, p + gain / REDRAWN)
        varies = new * (1 - new) / (p * (1 - p))
        return REDRAWN * (1 + varies) * unit + gain**2 * (1 / REDRAWN - 1) * unit / (p * (1 - p))


def rows_like(known: Hits, rows: int) -> Rows:
    """That many rows like those that the champion was scored on."""
    size = float(known.all_r.mean())
    own_r = (known.right_r - known.score * known.all_r) / size
    return Rows(rows, known.score, float(own_r.std()), changes_by_one(known, known) / size)


def unknown_rows(rows: int) -> Rows:
    """Rows right or wrong, half of them right: no score from 0 to 1 varies more."""
    return Rows(rows, 0.5, 0.5, 1.0)


def power(tasks: Mapping[str, Rows], *, metric: str, question: Question, known: bool, spec: GateSpec) -> Power:
    """The smallest gain that shows in SHARE of all runs, or the smallest margin that such a share of equal runs passes.

    `tasks` are those that count for the average; `known` says whether a champion's scores are behind all of them.
    """
    shown = margin_passed if question == "not_worse" else gain_shown
    return Power(
        rows=sum(task.rows for task in tasks.values()),
        metric=metric,
        question=question,
        difference=shown(list(tasks.values()), spec),
        margin=spec.margin,
        score=fmean(task.score for task in tasks.values()),
        known=known,
    )


def gain_shown(tasks: list[Rows], spec: GateSpec) -> float:
    """The true gain of the average that the gate finds in SHARE of all runs."""
    z, found = NormalDist().inv_cdf(spec.confidence), 0.0
    for _ in range(ROUNDS):
        variances = [task.variance(found) for task in tasks]
        widened = [spread(task.rows, spec.confidence) ** 2 * v for task, v in zip(tasks, variances, strict=True)]
        found = (z * math.sqrt(sum(widened)) + Z * math.sqrt(sum(variances))) / len(tasks)
    return max(found, fewest(spec) * fmean(task.least / task.rows for task in tasks) / len(tasks))


def margin_passed(tasks: list[Rows], spec: GateSpec) -> float:
    """The margin that SHARE of all runs pass that neither gain nor lose; with one lost row a task, as in the bound."""
    z = NormalDist().inv_cdf(spec.confidence)
    variances = [task.variance() for task in tasks]
    lost = [(task.score if task.score > 0 else 3 * task.deviation) / (task.rows + 1) for task in tasks]
    spreads = [v + each**2 for v, each in zip(variances, lost, strict=True)]
    return (sum(lost) + z * math.sqrt(sum(spreads)) + Z * math.sqrt(sum(variances))) / len(tasks)
