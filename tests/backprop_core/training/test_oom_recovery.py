"""A run that runs out of memory: the same steps, with less of them at a time."""

import json
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from backprop_core.errors import GPUOutOfMemory, Interrupted
from backprop_core.models.loading import LoadedBase, linear_names
from backprop_core.schema.refs import RowsRef, TrainResult
from backprop_core.schema.specs import LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.loop import train
from tests.backprop_core import nano

SPEC = TrainSpec(steps=6, batch_size=8, learning_rate=1e-2, max_length=128, lora=LoraSpec(rank=4, alpha=8))
ROWS = nano.chats(24)
Metrics = list[dict[str, float]]


@pytest.fixture
def rows(store: Store) -> RowsRef:
    return nano.commit_rows(store, ROWS)


def run(
    base: LoadedBase, rows: RowsRef, store: Store, *, stop_after: int | None = None, **fields: Any
) -> tuple[TrainResult, Metrics]:
    metrics: Metrics = []
    result = train(
        base,
        rows,
        spec=SPEC.model_copy(update=fields),
        start=None,
        key="key",
        store=store,
        on_metrics=lambda step, total, values: metrics.append(values),
        should_stop=lambda: len(metrics) == stop_after,
    )
    return result, metrics


@contextmanager
def memory(base: LoadedBase, fits: Callable[[torch.Tensor], bool]) -> Iterator[list[Any]]:
    """A device on which a forward pass runs out of memory unless its input ids fit; yields what did not, weakly."""
    failed: list[Any] = []

    def check(_module: Any, _arguments: Any, named: dict[str, torch.Tensor]) -> None:
        assert all(reference() is None for reference in failed), "what had failed is still in memory"
        if not fits(named["input_ids"]):
            failed.append(weakref.ref(named["input_ids"]))
            raise torch.OutOfMemoryError("no memory left")

    hook = base.model.model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield failed
    finally:
        hook.remove()


def test_less_at_a_time_is_the_same_result(
    base: LoadedBase, rows: RowsRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Half as much until it fits: the same losses to 1e-5, the same steps, each rung said and measured."""
    whole, expected = run(base, rows, store)
    with memory(base, lambda ids: ids.numel() <= 200) as failed, caplog.at_level(logging.WARNING):
        result, found = run(base, rows, store)
    assert (result.steps, result.tokens) == (whole.steps, whole.tokens)
    for one, other in zip(found, expected, strict=True):
        assert [one["loss"], one["grad_norm"]] == pytest.approx([other["loss"], other["grad_norm"]], rel=1e-5)
    assert len(failed) == caplog.text.count("out of memory in step") >= 2
    budgets = [values["token_budget"] for values in found if "token_budget" in values]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] < 400
    assert store.record(result.adapter.digest)["limits"] == {
        "token_budget": budgets[-1],
        "gradient_checkpointing": False,
    }


def test_what_is_too_much_for_one_process_is_halved_for_both(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Where one of two runs out of memory, both take the step again: the losses of one process that has enough."""
    _, expected = run(base, rows, store)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["-m", "tests.backprop_core.two_short_of_memory", base.model.name_or_path, str(store.root / "two")]
    done = subprocess.run([*launcher, *job], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [values["loss"] for values in found] == pytest.approx([values["loss"] for values in expected], rel=1e-5)
    assert min(values.get("token_budget", SPEC.token_budget) for values in found) < SPEC.token_budget


def test_then_activations_are_not_kept(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Where one example does not fit, gradient checkpointing goes on; the result stays, and the base as it was."""
    _, expected = run(base, rows, store)
    with memory(base, lambda ids: ids.numel() < 50 or base.model.is_gradient_checkpointing):
        _, found = run(base, rows, store)
    assert not base.model.is_gradient_checkpointing
    assert [values["loss"] for values in found] == pytest.approx([values["loss"] for values in expected], rel=1e-5)
    assert [values["gradient_checkpointing"] for values in found if "token_budget" in values][-1] == 1


def test_what_cannot_fit_says_what_would(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Below the last rung there is a coded error with the step, the length and a way out; the base is left clean."""
    before = linear_names(base.model)
    with (
        memory(base, lambda ids: False),
        pytest.raises(GPUOutOfMemory, match=r"step 1 of 6 on cpu: one exam") as caught,
    ):
        run(base, rows, store)
    assert "try model.quantization=nf4, training.max_length=" in caught.value.hint
    assert linear_names(base.model) == before
    assert not base.model.is_gradient_checkpointing


@pytest.mark.parametrize(
    "fields, message",
    [({"oom_recovery": False}, "8 examples"), ({"gradient_checkpointing": "off", "batch_size": 1}, "one example")],
)
def test_no_rung_is_taken_that_was_switched_off(
    base: LoadedBase, rows: RowsRef, store: Store, fields: dict[str, Any], message: str
) -> None:
    """Without recovery the first failure ends the run, and what is off stays off."""
    with memory(base, lambda ids: False) as failed, pytest.raises(GPUOutOfMemory, match=message):
        run(base, rows, store, **fields)
    assert len(failed) == 1


def test_the_rung_is_part_of_a_checkpoint(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Stopped after it ran out of memory, and resumed where there is enough: the uninterrupted run's bits."""
    dropout = LoraSpec(rank=4, alpha=8, dropout=0.2)
    with memory(base, lambda ids: ids.numel() <= 200):
        whole, _ = run(base, rows, store, lora=dropout)
        with pytest.raises(Interrupted):
            run(base, rows, store, lora=dropout, stop_after=4)
    resumed, _ = run(base, rows, store, lora=dropout)
    assert resumed.adapter == whole.adapter
    assert run(base, rows, store, lora=dropout)[0].adapter != whole.adapter


def test_gradient_checkpointing_is_the_same_step(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Layers are computed twice, dropout drops the same, and loss and gradient are equal to 1e-6."""
    calls = []
    hook = base.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    dropout = LoraSpec(rank=4, alpha=8, dropout=0.2)
    _, kept = run(base, rows, store, lora=dropout, steps=1)
    once = len(calls)
    _, again = run(base, rows, store, lora=dropout, steps=1, gradient_checkpointing="on")
    hook.remove()
    assert len(calls) == 3 * once
    for name in ("loss", "grad_norm"):
        assert again[0][name] == pytest.approx(kept[0][name], rel=1e-6)
