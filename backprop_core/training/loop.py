"""The training loop of one LoRA run: optimizer steps, checkpoints, out-of-memory recovery, bit-exact resume."""

import gc
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from backprop_core.data import batching
from backprop_core.data.batching import Items, Passes, by_pass
from backprop_core.data.preference_items import Units
from backprop_core.errors import BackpropError, GPUOutOfMemory, GPUTooHot, Interrupted, LossNotFinite
from backprop_core.merging import slao
from backprop_core.merging.strategies import check_same_shape
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.adapter_tensors import Adapter, Tensors
from backprop_core.models.loading import LoadedBase, injected, linear_names, put, taken
from backprop_core.schema.refs import AdapterRef, ReferenceLogProbs, RowsRef, Start, TrainResult
from backprop_core.schema.specs import TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import held, nothing
from backprop_core.training import (
    batch_plan,
    checkpoint,
    lora_init,
    lora_layers,
    lora_variants,
    lr_schedule,
    oom_recovery,
    optimizer,
    rng_state,
    unsloth,
)
from backprop_core.training.checkpoint import Checkpoint
from backprop_core.training.distributed import ALONE, Ranks
from backprop_core.training.early_stopping import BestStep
from backprop_core.training.gpu_guard import Guard
from backprop_core.training.objective import Objective, load
from backprop_core.training.oom_recovery import Limits

OnMetrics = Callable[[int, int, dict[str, float]], None]
log = logging.getLogger(__name__)


def train(
    base: LoadedBase,
    rows: RowsRef,
    *,
    spec: TrainSpec,
    start: Start | None,
    key: str,
    store: Store,
    on_metrics: OnMetrics,
    should_stop: Callable[[], bool],
    guard: Guard | None = None,
    on_wait: Callable[[], None] = nothing,
    keep_checkpoints: bool = False,
    ranks: Ranks = ALONE,
    reference: ReferenceLogProbs | None = None,
    heldout: RowsRef | None = None,
) -> TrainResult:
    """Train one adapter and commit it. Resumes bit-exactly from the newest checkpoint under `key`, if there is one.

    `on_metrics(step, total steps, values)` is called after each step with loss (nats per label token), learning_rate,
    grad_norm (before clipping), tokens (of the step, without padding); token_budget and gradient_checkpointing if
    running out of memory changed them; inexact_resume=1 in the first step after an inexact resume; and the `guard`'s
    GPU readings. `should_stop()` is checked at each step boundary, and every second, with a call of `on_wait()`, while
    another process trains under the same key. With `keep_checkpoints`, the caller removes the checkpoints once it has
    stored the result, so that a crash before that loses no training. `ranks`: this process among those training.
    `reference`: log-probabilities that preferences are compared with.
    `heldout`: rows for `spec.early_stopping`; evaluations add the metric heldout_loss (nats per label token).

    Raises VariantUnsupported, NoRows, LossNotFinite, DiskFull, RankMismatch, AdapterMismatch, RankTooLarge,
    GPUOutOfMemory, CheckpointInvalid, WorkerDied if another training process is gone, and, with a checkpoint saved,
    GPUTooHot and Interrupted.
    """
    lora_variants.check(spec.lora, precision=base.precision, continues=start is not None, backend=spec.backend)

    def beat() -> None:
        on_wait()
        if should_stop():
            raise Interrupted("stopped while waiting for another run of the same training", hint="run it again")

    with held(store.lock(key), "another run does the same training", beat=beat):
        run, adapter = fit(
            base,
            rows,
            spec=spec,
            start=start,
            key=key,
            store=store,
            on_metrics=on_metrics,
            should_stop=should_stop,
            guard=guard,
            ranks=ranks,
            reference=reference,
            heldout=heldout,
        )
        ref = committed(run, adapter, rows, key, store)
        if not keep_checkpoints:
            shutil.rmtree(store.layout.checkpoints(key), ignore_errors=True)
        return run.result(ref)


def fit(
    base: LoadedBase,
    rows: RowsRef,
    *,
    spec: TrainSpec,
    start: Start | None,
    key: str,
    store: Store,
    on_metrics: OnMetrics,
    should_stop: Callable[[], bool],
    guard: Guard | None,
    ranks: Ranks,
    reference: ReferenceLogProbs | None = None,
    heldout: RowsRef | None = None,
) -> tuple["Run", Adapter]:
    """Train from the start or the newest checkpoint; returns the run and its adapter.

    All training processes call this and compute the same adapter, but only the leader saves anything.
    """
    items, objective = load(base, rows, spec, reference, store)
    unseen = batching.load(base, heldout, max_length=spec.limit, store=store) if heldout else None
    config, tensors = starting_point(base, spec, start, store)
    torch.manual_seed(spec.seed)  # before the adapter is created: its initialization is random
    with injected(base, config, tensors) as model, lora_layers.faster(base, model, spec):
        first = lora_init.begin(base, model, spec.lora) if start is None else {}
        if spec.backend == "unsloth":
            unsloth.speed_up(model)
        if not ranks.leads:
            torch.manual_seed(spec.seed + ranks.rank)  # each process draws its own dropout
        identity = fingerprint(base, rows, spec, ranks)
        passes = by_pass(items, rows, store)
        run = Run(
            *(base, model, first, items, objective, unseen, passes, spec, identity),
            *(store.layout.checkpoints(key), guard, ranks),
        )
        try:
            run.train(on_metrics, should_stop)
        except torch.OutOfMemoryError as error:
            raise GPUOutOfMemory(
                f"no memory left for the optimizer in step {run.step + 1} on {base.device}",
                hint="lower training.lora.rank, or use a smaller base or a GPU with more memory",
            ) from error
        return run, lora_init.learned(config, run.best.adapter, run.first)


def committed(run: "Run", adapter: Adapter, rows: RowsRef, key: str, store: Store) -> AdapterRef:
    """Commit the adapter that a run has trained."""
    record = {
        "stage": "train",
        "key": key,
        "rows": rows.digest,
        "spec": run.spec.model_dump(mode="json"),
        "limits": asdict(run.limits),
        "inexact_resume": run.inexact,
    }
    with store.begin("adapter") as directory:
        adapters.write_adapter(adapter, directory)
        return store.commit(directory, AdapterRef, kind="tuned", record=record)


def starting_point(
    base: LoadedBase, spec: TrainSpec, start: Start | None, store: Store
) -> tuple[dict[str, Any], Tensors | None]:
    """The adapter's config, and the tensors to start from; None: PEFT's random initialization."""
    config = adapters.config_of(spec.lora, linear_names(base.model))
    if start is None:
        return config, None
    tuned = adapters.read_adapter(store.local(start.tuned))
    check_same_shape(tuned.config, config)
    return config, slao.start_from(tuned.tensors, keep=start.keep) if start.orthonormal else tuned.tensors


def fingerprint(base: LoadedBase, rows: RowsRef, spec: TrainSpec, ranks: Ranks) -> dict[str, Any]:
    """Everything, besides its start, that a run's exact bits depend on."""
    cuda = base.device.type == "cuda"
    return {
        **{name: version(name) for name in ("torch", "transformers", "peft")},
        **optimizer.fingerprint(spec),
        "device": torch.cuda.get_device_name(base.device) if cuda else torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "processes": ranks.size,
        "precision": base.precision,
        "attention": base.model.config._attn_implementation,
        "gradient_checkpointing": spec.gradient_checkpointing,
        **({"unsloth": version("unsloth")} if spec.backend == "unsloth" else {}),
        "seed": spec.seed,
        "rows": rows.digest,
    }


class Run:
    """State of a training run: everything that a checkpoint saves."""

    def __init__(
        self,
        base: LoadedBase,
        model: Any,
        first: Tensors,
        items: Items | Units,
        objective: Objective,
        heldout: Items | None,
        passes: Passes,
        spec: TrainSpec,
        fingerprint: dict[str, Any],
        folder: Path,
        guard: Guard | None,
        ranks: Ranks,
    ) -> None:
        self.base, self.model, self.first, self.items, self.spec = base, model, first, items, spec
        self.objective, self.passes = objective, passes
        self.fingerprint, self.folder, self.guard, self.ranks = fingerprint, folder, guard, ranks
        self.lengths = [len(item) for item in items]
        self.total = batch_plan.total_steps(len(passes[0]), spec)
        self.best = BestStep(base, model, heldout, spec, self.total, ranks)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer.made(model, spec)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.losses: deque[tuple[float, int]] = deque(maxlen=math.ceil(self.total / 10))
        self.inexact: list[str] = []  # differences to the fingerprints of checkpoints it resumed from
        self.adopt(oom_recovery.top(spec))

    def train(self, on_metrics: OnMetrics, should_stop: Callable[[], bool]) -> None:
        """Run the remaining steps."""
        news = self.resume()
        self.model.train()
        began = saved_at = time.monotonic()
        before = self.seconds
        ordered = self.passes.ordered
        for batch in batch_plan.batches_from(self.step, self.lengths, self.spec, self.passes, ordered=ordered):
            if self.best.is_over:
                return
            metrics = self.do_step(batch)
            self.step += 1
            metrics |= self.best.after(self.step)
            self.seconds = before + time.monotonic() - began
            on_metrics(self.step, self.total, {**metrics, **news, **(self.guard.readings() if self.guard else {})})
            news = {}
            ending = self.ending(should_stop)
            stop, save = self.ranks.told([ending is not None, self.is_due(time.monotonic() - saved_at)])
            if stop or save:
                self.save()
                saved_at = time.monotonic()
            if stop:
                raise ending or self.interrupted()

    def ending(self, should_stop: Callable[[], bool]) -> BackpropError | None:
        """Why training must stop before its last step: the GPU stays too hot, or `should_stop`; None to continue."""
        try:
            if self.guard:
                self.guard.cool_down(should_stop)
        except GPUTooHot as error:
            return error
        return self.interrupted() if should_stop() and not self.is_done else None

    @property
    def is_done(self) -> bool:
        """Whether no step is left: all are trained, or the held-out loss no longer improves."""
        return self.step == self.total or self.best.is_over

    def interrupted(self) -> Interrupted:
        return Interrupted(
            f"stopped after step {self.step} of {self.total}", hint="run it again to continue from there"
        )

    def save(self) -> None:
        """Save a checkpoint, with the random generator states of all processes."""
        states = self.ranks.everyone({name: state.tolist() for name, state in rng_state.states().items()})
        if self.ranks.leads:
            checkpoint.save(self.snapshot(states), self.folder, keep=self.spec.checkpoints_kept)

    def is_due(self, seconds: float) -> bool:
        """Whether a checkpoint is due, `seconds` after the last one: by time, by steps, or because training is done."""
        every = self.spec.checkpoint_steps
        by_steps = every is not None and self.step % every == 0
        return by_steps or seconds >= self.spec.checkpoint_seconds or self.is_done

    def do_step(self, batch: list[int]) -> dict[str, float]:
        """One optimizer step on a fixed set of examples; the loss is the objective's, a mean over all of them."""
        weight, limits = self.objective.begin(batch), self.limits
        loss = self.gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.max_grad_norm, foreach=True)
        metrics = {"loss": loss.item(), "grad_norm": norm.item()}
        self.check_finite(metrics)
        rate = lr_schedule.learning_rate(self.step, self.total, self.spec)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = sum(self.lengths[index] for index in batch)
        self.tokens += tokens
        self.losses.append((metrics["loss"], weight))
        changed = self.limits.metrics() if self.limits != limits else {}
        return {**metrics, "learning_rate": rate, "tokens": tokens, **changed}

    def gradients(self, batch: list[int]) -> torch.Tensor:
        """Compute the step's loss and gradients; after running out of memory, again with lower limits."""
        before = rng_state.states()
        while True:
            loss, too_large = self.accumulate(self.ranks.share(batch, self.lengths))
            failed = [extent for extent in self.ranks.everyone(self.extent(too_large)) if extent]
            if not failed:
                self.add_up(loss)
                return loss
            self.optimizer.zero_grad()
            rng_state.put(before)
            gc.collect()  # tensors of the failed step can be in reference cycles
            torch.cuda.empty_cache()
            self.step_down(*min(failed))

    def add_up(self, loss: torch.Tensor) -> None:
        """Sum the loss and the gradients over all processes."""
        if self.ranks.size == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:  # this process had no example
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.add_up([loss, *(parameter.grad for parameter in self.parameters if parameter.grad is not None)])

    def extent(self, indices: list[int]) -> list[int]:
        """[number of examples, tokens of the longest]; empty if there are none."""
        return [len(indices), max(self.objective.widths[index] for index in indices)] if indices else []

    def accumulate(self, batch: list[int]) -> tuple[torch.Tensor, list[int]]:
        """The examples' part of the step's loss, and the micro-batch that ran out of memory, if any."""
        loss, budget = torch.zeros((), device=self.base.device), self.limits.token_budget
        if too_large := self.objective.look(batch, budget, self.ranks):
            return loss, too_large
        for indices in self.objective.micro_batches(batch, budget):
            try:
                part = self.objective.part(indices)
                part.backward()  # type: ignore[no-untyped-call]
            except torch.OutOfMemoryError:  # its traceback keeps tensors alive: recover only after it is freed
                return loss, indices
            loss += part.detach()
        return loss, []

    def step_down(self, examples: int, longest: int) -> None:
        """Lower the limits and log it. Raises GPUOutOfMemory if they cannot be lowered."""
        try:
            self.adopt(oom_recovery.below(self.limits, examples, longest, self.spec))
        except GPUOutOfMemory as error:
            where = f"step {self.step + 1} of {self.total} on {self.base.device}"
            raise GPUOutOfMemory(f"{where}: {error.message}", hint=error.hint) from None
        log.warning("out of memory in step %d; repeating the step with %s", self.step + 1, self.limits)

    def adopt(self, limits: Limits) -> None:
        self.limits = limits
        self.base.keep_activations(not limits.gradient_checkpointing)

    def check_finite(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise LossNotFinite(
                    f"{name} is {value} in step {self.step + 1} of {self.total}",
                    hint="lower training.learning_rate, or check the rows of this step",
                )

    def snapshot(self, everyones: list[dict[str, list[int]]]) -> Checkpoint:
        state = {
            "fingerprint": self.fingerprint,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "losses": list(self.losses),
            "limits": asdict(self.limits),
            "inexact": self.inexact,
            "best": self.best.state(),
        }
        rng = {
            rng_state.group(rank): {name: torch.tensor(values, dtype=torch.uint8) for name, values in states.items()}
            for rank, states in enumerate(everyones)
        }
        tensors = {"adapter": taken(self.model), "optimizer": optimizer.state(self.optimizer), **rng}
        tensors |= {"best": self.best.adapter} if self.best.kept else {}
        return Checkpoint(self.step, state, tensors | ({"start": self.first} if self.first else {}))

    def resume(self) -> dict[str, float]:
        """Resume from the newest checkpoint, if there is one; returns extra metrics if the resume is inexact."""
        newest = checkpoint.newest(self.folder) if self.ranks.leads else None
        step = self.ranks.told(newest and newest.step)
        if step is None:
            return {}
        saved = newest or checkpoint.read_checkpoint(checkpoint.place(self.folder, step))
        different = self.ranks.told(self.differences(saved) if self.ranks.leads else [])
        self.restore(saved)
        self.adopt(oom_recovery.top(self.spec) if different else Limits(**saved.state["limits"]))
        self.inexact = saved.state["inexact"] + different
        if different:
            log.warning("inexact resume after step %d: %s", self.step, "; ".join(different))
        return {"inexact_resume": 1.0} if different else {}

    def differences(self, saved: Checkpoint) -> list[str]:
        """The fields in which a checkpoint's fingerprint differs. Raises CheckpointInvalid unless that is allowed."""
        inexact = self.spec.inexact_resume
        return checkpoint.check_exact(saved.state["fingerprint"], self.fingerprint, inexact=inexact)

    def restore(self, saved: Checkpoint) -> None:
        self.step, self.tokens, self.seconds = saved.step, saved.state["tokens"], saved.state["seconds"]
        self.losses.extend((loss, weight) for loss, weight in saved.state["losses"])
        put(self.model, saved.tensors["adapter"])
        self.first = saved.tensors.get("start", {})
        lora_init.again(self.model, self.first)
        self.best.restore(saved.state.get("best", {}), saved.tensors.get("best", {}))
        optimizer.restore(self.optimizer, saved.tensors["optimizer"])
        rng_state.put(saved.tensors.get(rng_state.group(self.ranks.rank), saved.tensors["rng"]))

    def result(self, adapter: AdapterRef) -> TrainResult:
        return TrainResult(
            adapter=adapter,
            steps=self.step,
            tokens=self.tokens,
            train_loss=sum(loss * weight for loss, weight in self.losses) / sum(weight for _, weight in self.losses),
            seconds=self.seconds,
            cut=self.items.cut,
            left_out=self.items.left_out,
            kept=self.best.kept,
        )
