"""Searches λ, the weight of the newest run in a merge: tries ten values and takes the one with the lowest loss."""

from collections.abc import Sequence
from statistics import mean

from backprop_core.evaluation.row_score import Scorer
from backprop_core.evaluation.scoring import scorer
from backprop_core.merging.strategies import STRATEGIES, runs_of
from backprop_core.models import adapter_tensors
from backprop_core.models.loading import LoadedBase, injected, put
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.refs import AdapterRef, RowsRef, Searched
from backprop_core.schema.specs import Limit, MergeSpec
from backprop_core.store.artifacts import Store

WEIGHTS = [tenth / 10 for tenth in range(1, 11)]


def search(
    base: LoadedBase,
    merged: AdapterRef,
    tuned: AdapterRef,
    *,
    count: int,
    spec: MergeSpec,
    heldout: Sequence[RowsRef],
    max_length: int | Limit,
    store: Store,
    on_progress: OnProgress | None = None,
) -> Searched:
    """Of ten λ, the one with the lowest loss per label token, averaged over the tasks (one held-out set each).

    `on_progress` gets (done, total) λ. Raises NoRows, RankMismatch, AdapterMismatch.
    """
    tasks = [scorer(base, rows, max_length=max_length, store=store) for rows in heldout]
    new = adapter_tensors.read_adapter(store.local(tuned))
    runs = runs_of(merged, new, count=count, store=store)
    tried: dict[float, float] = {}
    with injected(base, new.config, new.tensors) as model:
        for weight in WEIGHTS:
            put(model, STRATEGIES[spec.strategy](runs, spec.model_copy(update={"weight": weight})))
            tried[weight] = mean(map(loss, tasks))
            if on_progress:
                on_progress(len(tried), len(WEIGHTS))
    best = min(tried, key=tried.__getitem__)
    return Searched(weight=best, tried={str(weight): value for weight, value in tried.items()})


def loss(measure: Scorer) -> float:
    """Mean negative log-likelihood per label token, in nats; of preferences, their own loss."""
    scores = measure()
    return sum(row.loss for row in scores) / sum(row.tokens for row in scores)
