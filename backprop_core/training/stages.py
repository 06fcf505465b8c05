"""The stage `train`, and the function that other training processes run."""

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from backprop_core.errors import Interrupted
from backprop_core.schema.refs import BaseRef, RowsRef, Start, TrainResult
from backprop_core.schema.specs import TrainSpec
from backprop_core.stages import WorkerPlace, stage

if TYPE_CHECKING:
    from backprop_core.models.loading import LoadedBase


@stage(version=2, runs_in="worker")
def train(base: BaseRef, rows: RowsRef, spec: TrainSpec, start: Start | None, *, at: WorkerPlace) -> TrainResult:
    """Rows → a tuned adapter."""
    from backprop_core.training import gpu_guard, loop

    asked = train.job(base=base, rows=rows, spec=spec, start=start)
    at.ranks.told([at.key, asked.model_dump(mode="json")])
    loaded = base_to_train(base, spec, at)
    return loop.train(
        loaded,
        rows,
        spec=spec,
        start=start,
        key=at.key,
        store=at.store,
        on_metrics=lambda step, total, values: at.emit({"done": step, "total": total, "values": values}),
        should_stop=at.should_stop,
        guard=gpu_guard.of(loaded.device),
        on_wait=lambda: at.emit({"level": logging.DEBUG, "log": "waiting for another run"}),
        keep_checkpoints=True,
        ranks=at.ranks,
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
            key=key,
            store=at.store,
            on_metrics=lambda step, total, values: None,
            should_stop=lambda: False,
            guard=None,
            ranks=at.ranks,
        )


def base_to_train(base: BaseRef, spec: TrainSpec, at: WorkerPlace) -> "LoadedBase":
    """Load the base with the training's backend; a base loaded by Unsloth is used for one training only."""
    from backprop_core.models.base import local
    from backprop_core.training import unsloth

    assert spec.precision != "auto", "resolved before the key was made"
    if spec.backend == "unsloth":
        return unsloth.load(local(base, at.store), precision=spec.precision, max_length=spec.max_length)
    return at.base(base, spec.precision, spec.device)
