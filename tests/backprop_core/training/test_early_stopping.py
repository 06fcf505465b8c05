"""Early stopping: which step is kept, on a real two-layer model, and what evaluating must not change."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from backprop_core.errors import GPUOutOfMemory, Interrupted, LossNotFinite
from backprop_core.evaluation.scoring import evaluate
from backprop_core.models.adapter_tensors import read_adapter
from backprop_core.models.loading import LoadedBase, load
from backprop_core.schema.refs import KeptStep, RowsRef, TrainResult
from backprop_core.schema.specs import EarlyStopping, LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.batch_plan import evaluation_steps
from backprop_core.training.loop import train
from tests.backprop_core import nano

SPEC = TrainSpec(
    steps=30,
    batch_size=8,
    learning_rate=2e-2,
    max_length=128,
    checkpoint_seconds=60,
    lora=LoraSpec(rank=4, alpha=8, dropout=0.2),
    early_stopping=EarlyStopping(eval_steps=2, patience=2),
)
PATIENT = EarlyStopping(eval_steps=2, patience=100)
Metrics = list[dict[str, float]]


def other_answers() -> list[dict[str, Any]]:
    """Rows like those of the training, with another answer: learning the right ones soon makes these less likely."""
    rows = nano.chats(12, seed=1)
    for row in rows:
        row["messages"][1]["content"] = "no!"
    return rows


@pytest.fixture
def rows(store: Store) -> RowsRef:
    return nano.commit_rows(store, nano.chats(24))


@pytest.fixture
def heldout(store: Store) -> RowsRef:
    return nano.commit_rows(store, other_answers())


def run(
    base: LoadedBase,
    rows: RowsRef,
    store: Store,
    heldout: RowsRef | None,
    *,
    metrics: Metrics | None = None,
    stop_after: int | None = None,
    key: str = "key",
    keep_checkpoints: bool = False,
    **fields: Any,
) -> TrainResult:
    seen: Metrics = [] if metrics is None else metrics
    return train(
        base,
        rows,
        spec=SPEC.model_copy(update=fields),
        start=None,
        key=key,
        store=store,
        on_metrics=lambda step, total, values: seen.append({"step": step, **values}),
        should_stop=lambda: len(seen) == stop_after,
        keep_checkpoints=keep_checkpoints,
        heldout=heldout,
    )


def curve(metrics: Metrics) -> dict[int, float]:
    return {int(values["step"]): values["heldout_loss"] for values in metrics if "heldout_loss" in values}


def test_when_it_evaluates() -> None:
    """Every so many steps, or every such share of the run, at least one; and always after the last step."""

    def steps(total: int, **fields: float) -> set[int]:
        return evaluation_steps(total, TrainSpec(early_stopping=EarlyStopping.model_validate(fields)))

    assert steps(12, eval_steps=5) == {5, 10, 12}
    assert steps(12, eval_steps=0.25) == {3, 6, 9, 12}
    assert steps(6) == {1, 2, 3, 4, 5, 6}
    assert steps(6, eval_steps=50) == {6}
    assert evaluation_steps(6, TrainSpec()) == set()


def test_the_best_step_is_kept(base: LoadedBase, rows: RowsRef, store: Store, heldout: RowsRef) -> None:
    """The adapter is that of the step with the lowest loss, as evaluation measures it, and training ends early."""
    metrics: Metrics = []
    spec = {"checkpoint_seconds": 0, "checkpoints_kept": 100}
    result = run(base, rows, store, heldout, metrics=metrics, keep_checkpoints=True, **spec)
    losses = curve(metrics)
    best = min(losses, key=losses.__getitem__)
    assert result.kept == KeptStep(step=best, loss=losses[best], planned=30)
    assert result.steps == len(metrics) == best + 4 < 30
    assert list(losses) == list(range(2, result.steps + 1, 2))
    assert result.kept.after(result.steps) == f"stopped at step {best + 4} of 30, best step {best}"
    kept = read_adapter(store.local(result.adapter)).tensors
    there = safetensors.torch.load_file(store.layout.checkpoints("key") / f"step-{best:06d}" / "adapter.safetensors")
    assert all(torch.equal(tensor, there[name]) for name, tensor in kept.items())
    assert evaluate(base, result.adapter, heldout, max_length=128, store=store).loss == pytest.approx(losses[best])


def test_evaluating_leaves_the_training_as_it_is(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """With dropout, every step is bit for bit that of a run without evaluations, and so is the last step's adapter."""
    plain, evaluated = [], []  # type: ignore[var-annotated]
    without = run(base, rows, store, None, metrics=plain, early_stopping=None)
    result = run(base, rows, store, rows, metrics=evaluated, key="other", early_stopping=PATIENT)
    assert len(curve(evaluated)) == 15
    assert [{name: one[name] for name in plain[0]} for one in evaluated] == plain
    assert result.kept and (result.kept.step, without.kept) == (30, None)
    assert result.adapter == without.adapter
    assert result.kept.after(30) == "best step 30 of 30"


@pytest.mark.parametrize("after", [3, 12, 14])
def test_stopped_by_hand_and_run_again(
    base: LoadedBase, rows: RowsRef, store: Store, heldout: RowsRef, after: int
) -> None:
    """Interrupted before, at and after the best step, a run ends at the same step, with the same adapter."""
    whole = run(base, rows, store, heldout, key="other")
    with pytest.raises(Interrupted, match=f"after step {after} of 30"):
        run(base, rows, store, heldout, stop_after=after)
    again = run(base, rows, store, heldout)
    assert again.model_copy(update={"seconds": whole.seconds}) == whole


def test_a_run_that_has_stopped_early_is_done(base: LoadedBase, rows: RowsRef, store: Store, heldout: RowsRef) -> None:
    """Its last checkpoint stands for the whole run: run again, it trains and evaluates nothing."""
    again: Metrics = []
    whole = run(base, rows, store, heldout, keep_checkpoints=True)
    assert run(base, rows, store, heldout, metrics=again).kept == whole.kept
    assert again == []


@contextmanager
def little_memory(base: LoadedBase, tokens: int) -> Iterator[None]:
    """A device on which an evaluation runs out of memory with more than so many padded tokens at once."""

    def check(_module: Any, _arguments: Any, named: dict[str, torch.Tensor]) -> None:
        if not torch.is_grad_enabled() and named["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("no memory left")

    hook = base.model.model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def test_an_evaluation_that_runs_out_of_memory(
    base: LoadedBase, rows: RowsRef, store: Store, heldout: RowsRef, caplog: pytest.LogCaptureFixture
) -> None:
    """It is repeated with smaller batches: the same losses to 1e-5, the same best step, and the training's own bits."""
    expected, found = [], []  # type: ignore[var-annotated]
    whole = run(base, rows, store, heldout, metrics=expected, key="other")
    with little_memory(base, 150):
        result = run(base, rows, store, heldout, metrics=found)
    assert "out of memory in the evaluation after step 2" in caplog.text
    assert curve(found) == pytest.approx(curve(expected), rel=1e-5)
    assert [one["loss"] for one in found] == [one["loss"] for one in expected]
    assert result.adapter == whole.adapter
    with little_memory(base, 8), pytest.raises(GPUOutOfMemory, match="one example"):
        run(base, rows, store, heldout)


def test_a_loss_that_is_not_finite(path: Path, rows: RowsRef, store: Store, heldout: RowsRef) -> None:
    """NaN on held-out rows ends the run with a code."""
    broken = load(path, precision="fp32", device="cpu")
    poison = torch.tensor(math.nan)

    def spoil(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output if torch.is_grad_enabled() else output * poison

    hook = broken.model.model.norm.register_forward_hook(spoil)
    with pytest.raises(LossNotFinite, match="held-out rows is nan after step 2 of 30"):
        run(broken, rows, store, heldout)
    hook.remove()
