"""The stages `train` and `reference_log_probs`, and the function that other training processes run."""

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from backprop_core.errors import Interrupted
from backprop_core.schema.field_types import Precision
from backprop_core.schema.refs import AdapterRef, BaseRef, ReferenceLogProbs, RowsRef, Start, TrainResult
from backprop_core.schema.specs import Limit, PreferenceLoss, TrainSpec
from backprop_core.stages import WorkerPlace, stage

if TYPE_CHECKING:
    from backprop_core.models.loading import LoadedBase


@stage(version=2, runs_in="worker")
def train(
    base: BaseRef,
    rows: RowsRef,
    spec: TrainSpec,
    start: Start | None,
    reference: ReferenceLogProbs | None = None,
    heldout: RowsRef | None = None,
    *,
    at: WorkerPlace,
) -> TrainResult:
    """Rows → a tuned adapter; with early stopping, the best on `heldout`."""
    from backprop_core.training import gpu_guard, loop, peak_memory

    asked = train.job(base=base, rows=rows, spec=spec, start=start, reference=reference, heldout=heldout)
    at.ranks.told([at.key, asked.model_dump(mode="json")])
    loaded = base_to_train(base, spec, at)
    peak = peak_memory.of(loaded.device)
    made = loop.train(
        loaded,
        rows,
        spec=spec,
        start=start,
        heldout=heldout,
        key=at.key,
        store=at.store,
        on_metrics=lambda step, total, values: at.emit({"done": step, "total": total, "values": values}),
        should_stop=at.should_stop,
        guard=gpu_guard.of(loaded.device, spec.guard),
        on_wait=lambda: at.emit({"level": logging.DEBUG, "log": "waiting for another run"}),
        keep_checkpoints=True,
        ranks=at.ranks,
        reference=reference,
    )
    return made.model_copy(update={"peak_memory_gib": peak()})


@stage(version=1, runs_in="worker")
def reference_log_probs(
    base: BaseRef,
    adapter: AdapterRef | None,
    rows: RowsRef,
    loss: PreferenceLoss,
    max_length: int | Limit,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> ReferenceLogProbs:
    """The champion and rows with preferences → log-probabilities to compare with in training."""
    from backprop_core.training import reference

    return reference.reference_log_probs(
        at.base(base, precision, device),
        adapter,
        rows,
        loss=loss,
        max_length=max_length,
        store=at.store,
        on_progress=at.progress,
    )


def follow(at: WorkerPlace) -> None:
    """Take part in the leader's next training, in a process that is not the leader."""
    from backprop_core.training import loop

    key, told = at.ranks.told(None)
    job: Any = train.job.model_validate(told)
    with suppress(Interrupted):
        loop.fit(
            base_to_train(job.base, job.spec, at),
            job.rows,
            spec=job.spec,
            start=job.start,
            heldout=job.heldout,
            key=key,
            store=at.store,
            on_metrics=lambda step, total, values: None,
            should_stop=lambda: False,
            guard=None,
            ranks=at.ranks,
            reference=job.reference,
        )


def base_to_train(base: BaseRef, spec: TrainSpec, at: WorkerPlace) -> "LoadedBase":
    """Load the base with the training's backend; a base loaded by Unsloth is used for one training only."""
    from backprop_core.models.base import local
    from backprop_core.training import unsloth

    assert spec.precision != "auto", "resolved before the key was made"
    if spec.backend == "unsloth":
        return unsloth.load(local(base, at.store), precision=spec.precision, max_length=spec.max_length)
    return at.base(base, spec.precision, spec.device)
