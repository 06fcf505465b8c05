"""Early stopping: evaluates on held-out rows during training, keeps the best step's adapter, and says when to stop."""

import gc
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from backprop_core.data.batching import Items, by_budget, collate
from backprop_core.errors import LossNotFinite
from backprop_core.models.adapter_tensors import Tensors
from backprop_core.models.loading import LoadedBase, taken
from backprop_core.schema.refs import KeptStep
from backprop_core.schema.specs import TrainSpec
from backprop_core.training import batch_plan, oom_recovery
from backprop_core.training.distributed import Ranks
from backprop_core.training.loss import loss_sum
from backprop_core.training.oom_recovery import Limits

log = logging.getLogger(__name__)


class BestStep:
    """The best of the steps evaluated so far, and its adapter. Every process evaluates its share of the examples.

    Evaluating leaves the training as it is: no dropout, so no random number is drawn, and its own limits of memory.
    Without `heldout` nothing is evaluated.
    """

    def __init__(
        self, base: LoadedBase, model: Any, heldout: Items | None, spec: TrainSpec, total: int, ranks: Ranks
    ) -> None:
        self._base, self._model, self._items, self._spec, self._ranks = base, model, heldout or Items(), spec, ranks
        self._lengths = [len(item) for item in self._items]
        self._total = total
        self._steps = batch_plan.evaluation_steps(total, spec) if heldout else set()
        # no activations are kept without gradients, so all that can shrink is the batch
        self._limits = Limits(spec.token_budget, gradient_checkpointing=True)
        self._step, self._loss, self._worse = 0, math.inf, 0
        self._adapter: Tensors = {}

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` evaluations found no lower loss."""
        asked = self._spec.early_stopping
        return asked is not None and self._worse >= asked.patience

    @property
    def kept(self) -> KeptStep | None:
        """What the result says; None if nothing was evaluated."""
        return KeptStep(step=self._step, loss=self._loss, planned=self._total) if self._adapter else None

    @property
    def adapter(self) -> Tensors:
        """The best step's adapter, or the present one if nothing was evaluated."""
        return self._adapter or taken(self._model)

    def after(self, step: int) -> dict[str, float]:
        """Evaluate if it is due after this step; returns the metric. Raises LossNotFinite, GPUOutOfMemory."""
        if step not in self._steps:
            return {}
        with self._evaluating():
            loss = self._evaluate(step)
        if not math.isfinite(loss):
            raise LossNotFinite(
                f"the loss on held-out rows is {loss} after step {step} of {self._total}",
                hint="lower training.learning_rate",
            )
        self._worse += 1
        if loss < self._loss:
            self._step, self._loss, self._worse, self._adapter = step, loss, 0, taken(self._model)
        return {"heldout_loss": loss}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._model.train()

    def _evaluate(self, step: int) -> float:
        """Mean loss per label token of the held-out examples, in nats; with smaller batches once memory runs out."""
        while True:
            share = self._ranks.share(range(len(self._items)), self._lengths)
            loss, too_large = self._sum(share)
            extent = [len(too_large), max(self._lengths[index] for index in too_large)] if too_large else []
            failed = [one for one in self._ranks.everyone(extent) if one]
            if not failed:
                return math.fsum(self._ranks.everyone(loss)) / sum(len(item.at_n) for item in self._items)
            gc.collect()
            torch.cuda.empty_cache()
            examples, longest = min(failed)
            self._limits = oom_recovery.below(self._limits, examples, longest, self._spec)
            log.warning("out of memory in the evaluation after step %d; repeating it with %s", step, self._limits)

    def _sum(self, share: list[int]) -> tuple[float, list[int]]:
        """The summed loss of examples, and the batch that ran out of memory, if any."""
        loss = 0.0
        for indices in by_budget(share, self._lengths, self._limits.token_budget):
            try:
                batch = collate([self._items[index] for index in indices], self._base.device)
                states_nh = self._base.states(batch.ids_bt, batch.lengths_b, batch.at_n)
                loss += loss_sum(self._base, states_nh, batch.labels_n).item()
            except torch.OutOfMemoryError:  # its traceback keeps tensors alive: recover only after it is freed
                return loss, indices
        return loss, []

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves beside the adapter; empty if nothing was evaluated."""
        if not self._adapter:
            return {}
        return {"step": self._step, "loss": self._loss, "worse": self._worse, "limits": asdict(self._limits)}

    def restore(self, state: dict[str, Any], adapter: Tensors) -> None:
        """Continue from a checkpoint."""
        if state:
            self._step, self._loss, self._worse = state["step"], state["loss"], state["worse"]
            self._limits, self._adapter = Limits(**state["limits"]), adapter
