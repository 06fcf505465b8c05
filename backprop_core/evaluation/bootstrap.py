"""Bounds of a mean difference over held-out rows, by resampling the rows of two versions in pairs."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from backprop_core.evaluation.hits import Hits

SAMPLES = 2000
SEED = 0

# r = rows, s = bootstrap samples, t = tasks


def least_gain(own: Mapping[str, Hits], rival: Mapping[str, Hits], tasks: Sequence[str], confidence: float) -> float:
    """Lower bound of how much the average over `tasks` rose; each task's rows are resampled separately."""
    generator = np.random.default_rng(SEED)
    drawn_ts = [
        draws(own[task].right_r - rival[task].right_r, own[task].all_r, generator, confidence) for task in tasks
    ]
    return float(np.quantile(np.mean(drawn_ts, axis=0), 1 - confidence))


def most_lost(own: Mapping[str, Hits], rival: Mapping[str, Hits], tasks: Sequence[str], confidence: float) -> float:
    """Upper bound of how much the average over `tasks` fell; holds for rare losses, too.

    Rows that did not change say little about rare losses: if one row in a hundred is lost, fifty rows often show none.
    So each task gets one row more, which lost what the rival's rows have on average, and the weights of the rows are
    drawn from a flat Dirichlet distribution: the bound of Learned-Miller and Thomas [arXiv 1905.06208], and for rows
    that are right or wrong, that of Clopper and Pearson.
    """
    generator = np.random.default_rng(SEED)
    drawn_ts = [losses(own[task], rival[task], generator) for task in tasks]
    return float(np.quantile(np.mean(drawn_ts, axis=0), confidence))


def losses(own: Hits, rival: Hits, generator: np.random.Generator) -> NDArray[np.float64]:
    """SAMPLES weighted means of what the rows lost, one lost row added."""
    if not rival.rows:
        return np.zeros(SAMPLES)
    lost_r = np.append(rival.right_r - own.right_r, lost_row(own, rival))
    all_r = np.append(rival.all_r, rival.all_r.mean())
    weights_sr = generator.exponential(size=(SAMPLES, len(all_r)))
    drawn_s: NDArray[np.float64] = (weights_sr @ lost_r) / (weights_sr @ all_r)
    return drawn_s


def lost_row(own: Hits, rival: Hits) -> float:
    """What a row can lose: the rival's mean; for loss, which has no worst value, the largest change of a row.

    That is too little where large losses are rare, so `preflight_checks.check_gate` refuses such a metric.
    """
    if (rival.right_r < 0).any():
        return float(np.abs(own.right_r - rival.right_r).max())
    return float(rival.right_r.mean())


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
