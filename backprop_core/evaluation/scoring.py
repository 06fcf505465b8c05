"""Scores one adapter on one held-out set by teacher forcing: loss, token accuracy, exact match."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from backprop_core.data.batching import Batch, Item, by_budget, collate, load
from backprop_core.data.judged_answers import are_preferences
from backprop_core.errors import LossNotFinite
from backprop_core.evaluation import preference_scoring
from backprop_core.evaluation.row_score import RowScore, Scorer, commit
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.refs import AdapterRef, RowsRef, Scores
from backprop_core.schema.specs import Limit
from backprop_core.store.artifacts import Store

TOKENS = 8192  # padded tokens per batch
POSITIONS = 1024  # label tokens whose logits are in memory at once


def evaluate(
    base: LoadedBase,
    adapter: AdapterRef | None,
    heldout: RowsRef,
    *,
    max_length: int | Limit,
    store: Store,
    on_progress: OnProgress | None = None,
) -> Scores:
    """Score the base with `adapter`, or alone, on every row, and commit the scores.

    A row is an exact match if argmax predicts every label token: then greedy decoding produces the reference.
    Preferences are scored as `preference_scoring` does. Raises NoRows, AdapterMismatch, LossNotFinite.
    """
    measure = scorer(base, heldout, max_length=max_length, store=store)
    with adapted(base, adapter, store):
        scores = measure(on_progress)
    if not math.isfinite(sum(row.loss for row in scores)):
        raise LossNotFinite(
            f"the loss of {f'adapter {adapter.digest[:12]}' if adapter else 'the base'} is not finite",
            hint="a weight is NaN or infinite: download the base's files again, or train with a smaller learning rate",
        )
    record = {"stage": "evaluate", "adapter": adapter and adapter.digest, "heldout": heldout.digest}
    return commit(scores, record, preferences=are_preferences(store.local(heldout)), store=store)


def scorer(base: LoadedBase, heldout: RowsRef, *, max_length: int | Limit, store: Store) -> Scorer:
    """Scores rows, or preferences, with whatever adapter the base has when it is called. It has none now.

    Raises NoRows.
    """
    if are_preferences(store.local(heldout)):
        return preference_scoring.scorer(base, heldout, max_length=max_length, store=store)
    items = load(base, heldout, max_length=max_length, store=store)
    return lambda on_progress=None: score(base, items, on_progress)


@torch.no_grad()
def score(base: LoadedBase, items: list[Item], on_progress: OnProgress | None = None) -> list[RowScore]:
    """One score per row, in row order; sums the examples of a row.

    `on_progress` gets (done, total) examples.
    """
    lengths = [len(item) for item in items]
    sums: dict[int, tuple[float, int]] = {}
    for indices in by_budget(range(len(items)), lengths, TOKENS):
        batch = collate([items[index] for index in indices], base.device)
        for index, loss, correct in zip(indices, *sums_of(base, batch), strict=True):
            sums[index] = loss, correct
        if on_progress:
            on_progress(len(sums), len(items))
    return [
        RowScore(
            row=row,
            loss=sum(sums[index][0] for index in indices),
            tokens=sum(len(items[index].at_n) for index in indices),
            correct=sum(sums[index][1] for index in indices),
        )
        for row, indices in examples_of(items).items()
    ]


def examples_of(items: list[Item]) -> dict[int, list[int]]:
    """Row -> indices of its examples."""
    rows: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        rows.setdefault(item.row, []).append(index)
    return rows


def sums_of(base: LoadedBase, batch: Batch) -> tuple[list[float], list[int]]:
    """Per example of a batch: summed loss of its label tokens in nats, and how many of them argmax predicts."""
    states_nh = base.states(batch.ids_bt, batch.lengths_b, batch.at_n)
    parts = [
        token_scores(base.logits(states), labels)
        for states, labels in zip(
            torch.split(states_nh, POSITIONS), torch.split(batch.labels_n, POSITIONS), strict=True
        )
    ]
    loss_n, hit_n = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    row_n, rows = batch.row_n.cpu(), len(batch.lengths_b)
    loss_b = torch.zeros(rows, dtype=torch.float64).index_add_(0, row_n, loss_n.double())
    return loss_b.tolist(), torch.zeros(rows, dtype=torch.int64).index_add_(0, row_n, hit_n.long()).tolist()


def token_scores(logits_nv: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each label token, and whether argmax predicts it."""
    return F.cross_entropy(logits_nv, labels_n, reduction="none"), logits_nv.argmax(-1) == labels_n
