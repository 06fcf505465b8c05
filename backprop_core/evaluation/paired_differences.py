"""Paired differences of two methods over cells, with Student's interval."""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from statistics import fmean, stdev

from backprop_core.schema.refs import PairedDifference

CONFIDENCE = 0.95


def paired(ours: Sequence[float], theirs: Sequence[float], *, among: int = 1) -> PairedDifference:
    """The mean of ours - theirs, cell by cell, and its two-sided 95 % interval by Student's t.

    Of `among` differences the intervals are so wide that all hold together with 95 % (Bonferroni).
    """
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean, cells = fmean(differences), len(differences)
    won = sum(difference > 0 for difference in differences)
    if cells == 1:
        return PairedDifference(mean=mean, low=mean, high=mean, cells=1, won=won)
    sure = 1 - (1 - CONFIDENCE) / among
    half = student(cells - 1, sure) * stdev(differences) / math.sqrt(cells)
    return PairedDifference(mean=mean, low=mean - half, high=mean + half, cells=cells, won=won)


def student(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| < t) = confidence, by bisection."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < confidence else (low, middle)
    return high


def within(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's t with whole degrees of freedom. [Abramowitz and Stegun 26.7.3, 26.7.4]"""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    ratios = [(k - 1) / k * cosine**2 for k in range(2 + odd, freedom - 1, 2)]
    terms = math.fsum(accumulate([1.0, *ratios], mul)) if freedom > 1 else 0.0
    return 2 / math.pi * (angle + sine * cosine * terms) if odd else sine * terms
