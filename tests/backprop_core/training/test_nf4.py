"""QLoRA: the base in 4 bits while it trains, the adapter in float32."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from backprop_core.errors import ExtraMissing, Interrupted
from backprop_core.evaluation.scoring import evaluate
from backprop_core.evaluation.stages import evaluate as evaluate_stage
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models import base as bases
from backprop_core.models.loading import LoadedBase, load
from backprop_core.schema.refs import RowsRef, TrainResult
from backprop_core.schema.specs import LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store, file_digest
from backprop_core.training.loop import train
from backprop_core.training.stages import train as train_stage
from backprop_core.worker.client import Worker
from tests.backprop_core import nano

Job = dict[str, Any]
SPEC = TrainSpec(steps=8, batch_size=8, learning_rate=1e-2, max_length=128, lora=LoraSpec(rank=4, alpha=8, dropout=0.1))


@pytest.fixture(scope="module")
def base(path: Path) -> LoadedBase:
    return load(path, precision="nf4", device="cpu")


@pytest.fixture
def rows(store: Store) -> RowsRef:
    return nano.commit_rows(store, nano.chats(24))


def run(
    base: LoadedBase, rows: RowsRef, store: Store, *, losses: list[float] | None = None, stop_after: int | None = None
) -> TrainResult:
    seen: list[float] = [] if losses is None else losses
    return train(
        base,
        rows,
        spec=SPEC,
        start=None,
        key="key",
        store=store,
        on_metrics=lambda step, total, values: seen.append(values["loss"]),
        should_stop=lambda: len(seen) == stop_after,
    )


def weights(base: LoadedBase) -> int:
    """Bytes of the linear layers but the head."""
    layers: Any = base.model.model.layers
    return sum(module.weight.nbytes for module in layers.modules() if isinstance(module, torch.nn.Linear))


def test_it_learns_and_never_writes_the_base(path: Path, base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """The loss falls as on the full weights with an eighth of them in memory; the adapter is float32."""
    files = {file.name: file_digest(file) for file in path.iterdir()}
    full = load(path, precision="fp32", device="cpu")
    assert weights(base) * 8 == weights(full)
    losses: list[float] = []
    result = run(base, rows, store, losses=losses)
    plain = run(full, rows, store)
    assert losses[-1] < losses[0] - 0.1
    assert result.train_loss == pytest.approx(plain.train_loss, rel=0.05)
    assert result.adapter != plain.adapter
    tensors = adapters.read_adapter(store.local(result.adapter)).tensors.values()
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in tensors)
    assert {file.name: file_digest(file) for file in path.iterdir()} == files


def test_stopped_and_run_again_is_the_same(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Resumed from a checkpoint it ends at the uninterrupted run's bits."""
    whole = run(base, rows, store)
    with pytest.raises(Interrupted):
        run(base, rows, store, stop_after=3)
    assert run(base, rows, store).adapter == whole.adapter


def test_an_evaluation_leaves_the_weights_as_they_are(path: Path, rows: RowsRef, store: Store) -> None:
    """A base that has been evaluated, bare and adapted, scores and trains as a fresh one."""
    fresh = load(path, precision="nf4", device="cpu")
    first = run(fresh, rows, store)
    scores = evaluate(fresh, first.adapter, rows, max_length=128, store=store)
    assert scores.loss < evaluate(fresh, None, rows, max_length=128, store=store).loss
    assert run(fresh, rows, store).adapter == first.adapter
    again = load(path, precision="nf4", device="cpu")
    assert evaluate(again, first.adapter, rows, max_length=128, store=store) == scores


def test_in_the_worker(path: Path, rows: RowsRef, store: Store) -> None:
    """The worker, which imports PEFT before it knows what it needs, trains and scores a 4-bit base, and a full one."""
    base = bases.resolve(ModelSpec(name=str(path)), store)
    worker = Worker(store, slots=[store.root / "locks" / "cpu.lock"])
    job: Job = {"base": base, "on_event": lambda event: None}
    try:
        spec = SPEC.model_copy(update={"precision": "nf4", "device": "cpu"})
        tuned = worker.call(train_stage, key="a", rows=rows, spec=spec, start=None, **job)
        assert tuned.adapter == run(load(path, precision="nf4", device="cpu"), rows, store).adapter
        score: Job = {**job, "adapter": tuned.adapter, "heldout": rows, "max_length": 128, "device": "cpu"}
        small, full = (worker.call(evaluate_stage, key="b", precision=p, **score) for p in ("nf4", "fp32"))
        assert small.loss != full.loss == pytest.approx(small.loss, rel=0.02)
    finally:
        worker.close()


def test_without_bitsandbytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named, with the command that installs it."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ExtraMissing, match="bitsandbytes") as caught:
        load(path, precision="nf4", device="cpu")
    assert "[qlora]" in caught.value.hint
