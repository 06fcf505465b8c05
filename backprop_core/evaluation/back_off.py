"""Backs off from a candidate towards the champion: takes as much of a run's change as scores best on rows kept for it.

The rows are a part of the held-out rows that the gate never sees. So the gate still looks once, at one candidate, and
its error stays what its confidence says.
"""

from collections.abc import Sequence
from statistics import mean

from backprop_core.data.judged_answers import are_preferences
from backprop_core.evaluation.row_score import Scorer
from backprop_core.evaluation.scoring import scorer
from backprop_core.merging.strategies import between, check_same
from backprop_core.models import adapter_tensors
from backprop_core.models.adapter_tensors import Adapter
from backprop_core.models.loading import LoadedBase, injected, put
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.refs import AdapterRef, BackedOff, RowsRef
from backprop_core.schema.specs import Limit
from backprop_core.store.artifacts import Store

SHARES = (1.0, 0.75, 0.5, 0.25)  # of ΔW_candidate - ΔW_champion


def back_off(
    base: LoadedBase,
    champion: AdapterRef,
    candidate: AdapterRef,
    *,
    heldout: Sequence[RowsRef],
    metric: str,
    max_length: int | Limit,
    store: Store,
    on_progress: OnProgress | None = None,
) -> BackedOff:
    """Of ΔW_champion + s·(ΔW_candidate - ΔW_champion), the one with the best mean score over the held-out sets.

    `metric` is exact_match, loss, or token_accuracy, which also stands for all others and for preferences. Of equal
    scores the largest share wins; s = 1 is the candidate itself. `on_progress` gets (done, total) shares. Raises
    NoRows, RankMismatch, AdapterMismatch.
    """
    tasks = [scorer(base, rows, max_length=max_length, store=store) for rows in heldout]
    metrics = ["token_accuracy" if are_preferences(store.local(rows)) else metric for rows in heldout]
    old, new = (adapter_tensors.read_adapter(store.local(ref)) for ref in (champion, candidate))
    check_same(old, new)
    tried: dict[float, float] = {}
    with injected(base, new.config, new.tensors) as model:
        for share in SHARES:
            put(model, between(old.tensors, new.tensors, share))
            tried[share] = mean(map(score_of, tasks, metrics))
            if on_progress:
                on_progress(len(tried), len(SHARES))
    best = max(SHARES, key=tried.__getitem__)
    adapter = candidate
    if best < 1:
        record = {"stage": "back_off", "champion": champion.digest, "candidate": candidate.digest, "share": best}
        with store.begin("adapter") as directory:
            adapter_tensors.write_adapter(Adapter(new.config, between(old.tensors, new.tensors, best)), directory)
            adapter = store.commit(directory, AdapterRef, kind="merged", record=record)
    return BackedOff(adapter=adapter, share=best, tried={str(share): value for share, value in tried.items()})


def score_of(task: Scorer, metric: str) -> float:
    """The score of the model on a held-out set; loss is negated."""
    rows = task()
    if metric == "exact_match":
        return mean(row.exact for row in rows)
    tokens = sum(row.tokens for row in rows)
    return (-sum(row.loss for row in rows) if metric == "loss" else sum(row.correct for row in rows)) / tokens
