"""Scores one adapter on held-out preferences: whether it prefers the answers that people prefer.

Of a pair, the chosen answer must have the higher mean log-probability per token: a sum would prefer short answers,
whatever they say. A rated answer must have become more likely than under the base if it is good, and less if it is bad.
Neither needs the reference of the training, so that all versions of a line are measured alike. A row has two points:
both if the model agrees with it, one for a tie, as of the base on rated answers.
"""

import math
from collections.abc import Sequence

import torch

from backprop_core.data.batching import Item, by_budget
from backprop_core.data.log_probs import log_probs
from backprop_core.data.preference_items import Pair, Rating, load
from backprop_core.evaluation.row_score import RowScore, Scorer
from backprop_core.models.loading import LoadedBase
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import Limit
from backprop_core.store.artifacts import Store

POINTS = 2
TOKENS = 8192  # padded tokens per batch


def scorer(base: LoadedBase, heldout: RowsRef, *, max_length: int | Limit, store: Store) -> Scorer:
    """Scores the preferences that fit into `max_length`; see `scoring.scorer`. Raises NoRows.

    The loss is -log σ(margin) a point; the margin is that of the means per token.
    """
    units = load(base, heldout, pairs_as="dpo", max_length=max_length, store=store)
    pairs = [unit for unit in units if isinstance(unit, Pair)]
    ratings = [unit for unit in units if isinstance(unit, Rating)]
    sides, rated = [side for pair in pairs for side in pair.sides], [unit.answer for unit in ratings]
    before = means(base, rated)

    def measure(on_progress: OnProgress | None = None) -> list[RowScore]:
        of_sides, after = means(base, sides, on_progress), means(base, rated, on_progress)
        margins = {pair.row: of_sides[2 * place] - of_sides[2 * place + 1] for place, pair in enumerate(pairs)}
        for rating, was, now in zip(ratings, before, after, strict=True):
            margins[rating.row] = now - was if rating.good else was - now
        return [row_score(row, margins[row]) for row in sorted(margins)]

    return measure


def row_score(row: int, margin: float) -> RowScore:
    points = POINTS if margin > 0 else POINTS // 2 if margin == 0 else 0
    return RowScore(row=row, loss=POINTS * softplus(-margin), tokens=POINTS, correct=points)


def softplus(value: float) -> float:
    """log(1 + e^value)."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


@torch.no_grad()
def means(base: LoadedBase, items: Sequence[Item], on_progress: OnProgress | None = None) -> list[float]:
    """The mean log-probability of each answer's tokens."""
    found: dict[int, float] = {}
    for indices in by_budget(range(len(items)), [len(item) for item in items], TOKENS):
        sums = log_probs(base, [items[index] for index in indices]).tolist()
        found |= {index: total / len(items[index].at_n) for index, total in zip(indices, sums, strict=True)}
        if on_progress:
            on_progress(len(found), len(items))
    return [found[index] for index in range(len(items))]
