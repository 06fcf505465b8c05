"""Merging stages: merge adapters, and measure the change."""

from backprop_core.schema.refs import AdapterRef, Drift
from backprop_core.schema.specs import MergeSpec
from backprop_core.stages import Workplace, stage


@stage(version=2, runs_in="worker")
def merge(
    merged: AdapterRef | None,
    tuned: AdapterRef,
    earlier: list[AdapterRef],
    count: int,
    spec: MergeSpec,
    *,
    at: Workplace,
) -> AdapterRef:
    """Merged adapter and tuned adapter → the next merged adapter."""
    from backprop_core.merging import strategies

    return strategies.merge(merged, tuned, earlier=earlier, count=count, spec=spec, store=at.store)


@stage(version=1, runs_in="worker")
def drift(before: AdapterRef, tuned: AdapterRef, after: AdapterRef, *, at: Workplace) -> Drift:
    """Adapters before and after a merge → how much it changed A and B."""
    from backprop_core.merging import merge_stats

    return merge_stats.drift(before, tuned, after, store=at.store)
