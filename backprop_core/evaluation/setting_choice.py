"""Compares combinations of settings on the same rows, and tells differences from noise.

Each combination is compared with the best by the gate's paired bootstrap over rows. The best is chosen by the same
rows, so the error probability is divided by the number of ordered pairs (Bonferroni): if all are equally good, one is
called worse with a probability of at most 1 - confidence.
"""

import math
from collections.abc import Sequence

from backprop_core.evaluation.bootstrap import bounds
from backprop_core.evaluation.hits import Hits, hits
from backprop_core.schema.refs import Contrast, Ratings, Scores, Standing
from backprop_core.store.artifacts import Store


def contrast(scores: Sequence[Scores | Ratings], *, metric: str, confidence: float, store: Store) -> Contrast:
    """Each score with its bounds, and its difference to the best; all have scored the same rows."""
    cells = [hits(one, metric, store) for one in scores]
    best = max(range(len(cells)), key=lambda place: cells[place].score)
    pairs = max(len(cells) * (len(cells) - 1), 1)
    sure = 1 - (1 - confidence) / pairs
    return Contrast(best=best, cells=[standing(cell, cells[best], confidence, sure) for cell in cells])


def standing(cell: Hits, best: Hits, confidence: float, sure: float) -> Standing:
    """One combination beside the best. `sure`: confidence of each comparison, one-sided."""
    assert cell.is_of_rows_of(best), "scores of two different sets of rows"
    low, high = bounds(cell.right_r, cell.all_r, (1 + confidence) / 2)
    down, up = bounds(cell.right_r - best.right_r, cell.all_r, sure)
    enough = cell.rows >= math.ceil(-math.log2(1 - sure))  # with fewer, chance alone can move every row
    return Standing(
        score=cell.score,
        low=low,
        high=high,
        difference=cell.score - best.score,
        difference_low=down,
        difference_high=up,
        as_good=up >= 0 or not enough,
    )
