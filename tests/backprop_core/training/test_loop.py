"""One LoRA run on a real two-layer model."""

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from backprop_core.data import chat_encoding
from backprop_core.data.batching import collate
from backprop_core.data.batching import load as load_items
from backprop_core.data.row_files import commit, index
from backprop_core.data.row_sets import replay
from backprop_core.errors import (
    AdapterMismatch,
    BackpropError,
    CheckpointInvalid,
    GPUTooHot,
    Interrupted,
    LossNotFinite,
    ModelLoadFailed,
    NoRows,
    RankMismatch,
)
from backprop_core.merging import slao
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.loading import LoadedBase, adapted, injected, load, put
from backprop_core.schema.refs import RowsRef, Start, TrainResult
from backprop_core.schema.specs import LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.gpu_guard import Guard
from backprop_core.training.loop import train
from tests.backprop_core import nano

ROWS = nano.chats(24)
SPEC = TrainSpec(
    steps=6, batch_size=8, learning_rate=1e-2, max_length=128, checkpoint_seconds=60, lora=LoraSpec(rank=4, alpha=8)
)
Metrics = list[tuple[int, dict[str, float]]]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's


@pytest.fixture
def rows(store: Store) -> RowsRef:
    return nano.commit_rows(store, ROWS)


def run(
    base: LoadedBase,
    rows: RowsRef,
    store: Store,
    *,
    start: Start | None = None,
    metrics: Metrics | None = None,
    stop_after: int | None = None,
    key: str = "key",
    guard: Guard | None = None,
    **fields: Any,
) -> TrainResult:
    seen: Metrics = [] if metrics is None else metrics
    return train(
        base,
        rows,
        spec=SPEC.model_copy(update=fields),
        start=start,
        key=key,
        store=store,
        on_metrics=lambda step, total, values: seen.append((step, values)),
        should_stop=lambda: len(seen) == stop_after,
        guard=guard,
    )


def tensors(store: Store, result: TrainResult) -> adapters.Tensors:
    return adapters.read_adapter(store.local(result.adapter)).tensors


def test_it_learns_and_reports_every_step(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Each step is reported once, in order; the loss falls; the tokens are those of the examples without padding."""
    metrics: Metrics = []
    result = run(base, rows, store, metrics=metrics, steps=30)
    assert [step for step, _ in metrics] == list(range(1, 31))
    assert all(set(values) == {"loss", "learning_rate", "grad_norm", "tokens"} for _, values in metrics)
    assert metrics[-1][1]["loss"] < metrics[0][1]["loss"] - 0.3
    lengths = [len(item) for item in load_items(base, rows, max_length=128, store=store)]
    assert result.tokens == sum(values["tokens"] for _, values in metrics) == 10 * sum(lengths)
    assert result.train_loss == pytest.approx(sum(values["loss"] for _, values in metrics[-3:]) / 3, rel=0.05)
    assert not store.layout.checkpoints("key").exists()


def test_a_gpu_that_stays_hot_stops_the_run_with_a_checkpoint(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Readings are metrics; too hot for too long is a coded stop after a checkpoint, and then the same bits."""
    degrees, clock = iter([70.0, 90.0] + [80.0] * 99), itertools.count(0, 10)
    guard = Guard(lambda: {"gpu_temperature": next(degrees)}, clock=lambda: next(clock), sleep=lambda seconds: None)
    metrics: Metrics = []
    with pytest.raises(GPUTooHot):
        run(base, rows, store, metrics=metrics, guard=guard)
    assert [values["gpu_temperature"] for _, values in metrics] == [70.0, 90.0]
    assert [path.name for path in store.layout.checkpoints("key").glob("step-*")] == ["step-000002"]
    assert run(base, rows, store).adapter == run(base, rows, store, key="other").adapter


def test_fresh_and_used_bases_give_the_same_bits(path: Path, rows: RowsRef, store: Store, base: LoadedBase) -> None:
    """A run after other runs, in a process with another random state, makes the same adapter as the first ever run."""
    used = run(base, rows, store, seed=5)
    torch.manual_seed(123)
    first = run(load(path, precision="fp32", device="cpu"), rows, store)
    assert run(base, rows, store).adapter == first.adapter != used.adapter


def test_steps_equal_a_plain_loop(path: Path, base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Three steps are those of transformers' own loss over padded batches, PEFT's adapter and torch's AdamW."""
    result = run(base, rows, store, steps=3, batch_size=24, warmup=1.0, token_budget=500)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    torch.manual_seed(SPEC.seed)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=sorted(names), task_type="CAUSAL_LM"))
    examples = chat_encoding.encode(base.tokenizer, ROWS, max_length=128)
    width = max(len(example.ids) for example in examples)
    ids, mask, labels = (torch.full((24, width), value) for value in (0, 0, -100))
    for row, example in enumerate(examples):
        size = len(example.ids)
        ids[row, :size], mask[row, :size] = torch.tensor(example.ids), 1
        labels[row, :size] = torch.where(torch.tensor(example.labels), torch.tensor(example.ids), -100)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=SPEC.weight_decay)
    for step in range(3):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, SPEC.max_grad_norm)
        optimizer.param_groups[0]["lr"] = SPEC.learning_rate * (step + 1) / 3
        optimizer.step()
        optimizer.zero_grad()
    found = tensors(store, result)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert torch.allclose(found[name.replace(".default", "")], parameter, atol=2e-4), name


def test_micro_batches_do_not_change_the_step(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """One example a micro-batch or all at once: the loss of a step is the same mean over its label tokens."""
    small, large = [], []  # type: ignore[var-annotated]
    run(base, rows, store, metrics=small, token_budget=16)
    run(base, rows, store, metrics=large, token_budget=100_000)
    for (_, one), (_, all_at_once) in zip(small, large, strict=True):
        assert one["loss"] == pytest.approx(all_at_once["loss"], rel=1e-4)


@pytest.mark.parametrize("orthonormal", [True, False])
def test_a_run_starts_from_the_tuned_adapter(base: LoadedBase, rows: RowsRef, store: Store, orthonormal: bool) -> None:
    """With a vanishing rate the next adapter is its start: SLAO's, or the last tuned one as it is."""
    first = run(base, rows, store)
    start = Start(tuned=first.adapter, orthonormal=orthonormal)
    second = run(base, rows, store, start=start, learning_rate=1e-30, steps=1)
    before = tensors(store, first)
    expected = slao.start_from(before) if orthonormal else before
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors(store, second).items())


@pytest.mark.parametrize(
    "lora, error",
    [
        (LoraSpec(rank=8, alpha=8), RankMismatch),
        (LoraSpec(rank=4, alpha=16), AdapterMismatch),
        (LoraSpec(rank=4, alpha=8, target_modules=["q_proj"]), AdapterMismatch),
    ],
)
def test_a_start_of_another_shape_is_refused(
    base: LoadedBase, rows: RowsRef, store: Store, lora: LoraSpec, error: type[BackpropError]
) -> None:
    """The shape of an adapter is constant along a line."""
    start = Start(tuned=run(base, rows, store, steps=1).adapter, orthonormal=False)
    with pytest.raises(error):
        run(base, rows, store, start=start, lora=lora)


def test_named_targets(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Only the named layers get an adapter; a name that the model does not have is a coded error."""
    lora = LoraSpec(rank=4, alpha=8, target_modules=["v_proj", "q_proj"])
    keys = tensors(store, run(base, rows, store, steps=1, lora=lora))
    assert {key.split(".")[-3] for key in keys} == {"q_proj", "v_proj"}
    with pytest.raises(AdapterMismatch):
        run(base, rows, store, lora=LoraSpec(target_modules=["nonsense"]))


@pytest.mark.parametrize("in_order", [False, True])
def test_stopped_and_run_again_is_the_same(base: LoadedBase, rows: RowsRef, store: Store, in_order: bool) -> None:
    """Asked to stop, a run saves, says how far it got, and run again it ends at the uninterrupted run's adapter."""
    if in_order:  # a curriculum, in which some rows are trained twice
        every = index(rows, store)
        every.entries["repeats"][::5] = 1
        rows = commit(every, store, {}, curriculum="rows")
    straight, again = [], []  # type: ignore[var-annotated]
    dropout = LoraSpec(rank=4, alpha=8, dropout=0.2)
    whole = run(base, rows, store, metrics=straight, lora=dropout)
    with pytest.raises(Interrupted, match="after step 2 of 6"):
        run(base, rows, store, lora=dropout, stop_after=2)
    assert [path.name for path in store.layout.checkpoints("key").iterdir()] == ["step-000002"]
    resumed = run(base, rows, store, metrics=again, lora=dropout)
    assert again == straight[2:]
    assert resumed.model_copy(update={"seconds": whole.seconds}) == whole
    assert not store.layout.checkpoints("key").exists()


def test_each_epoch_replays_its_own_rows(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Of replayed rows each epoch trains its pass alone, beside all new rows; stopped in between, it is the same."""
    turns = [("user", "Say lamp"), ("assistant", "lamp!")]
    known = [{"messages": [{"role": role, "content": text * n} for role, text in turns]} for n in range(1, 13)]
    old = nano.commit_rows(store, known)
    mixed = replay(rows, [old], heldout=[], share=0.3, passes=3, seed=0, store=store)
    metrics: Metrics = []
    spec: dict[str, Any] = {"steps": None, "epochs": 3, "batch_size": 5}
    whole = run(base, mixed, store, metrics=metrics, **spec)
    lengths = [len(item) for item in load_items(base, mixed, max_length=128, store=store)]
    named = json.loads((store.local(mixed) / "passes.json").read_text())
    new = set(range(len(lengths))) - set(itertools.chain(*named))
    steps = -(-(len(new) + 4) // 5)
    for epoch, numbers in enumerate(named):
        tokens = [values["tokens"] for _, values in metrics[epoch * steps : (epoch + 1) * steps]]
        assert len(numbers) == 4 and sum(tokens) == sum(lengths[number] for number in new.union(numbers))
    with pytest.raises(Interrupted):
        run(base, mixed, store, stop_after=steps + 1, key="other", **spec)
    assert run(base, mixed, store, key="other", **spec).adapter == whole.adapter


def test_checkpoints_by_steps_and_at_the_end(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Every second step, as many as are to be kept, and the last step: what fails after it trains nothing again."""
    seen: list[list[str]] = []
    artifacts, aside = store.root / "artifacts", store.root / "aside"

    def look(step: int, total: int, _: dict[str, float]) -> None:
        seen.append(sorted(path.name for path in store.layout.checkpoints("key").glob("*")))
        if step == total:  # and from now on nothing can be committed
            artifacts.rename(aside)
            artifacts.touch()

    spec = SPEC.model_copy(update={"checkpoint_steps": 2, "checkpoints_kept": 1})
    whole = run(base, rows, store, key="other")
    with pytest.raises(OSError):
        train(
            *(base, rows),
            **{"spec": spec, "start": None, "key": "key", "store": store},
            on_metrics=look,
            should_stop=lambda: False,
        )
    assert seen == [[], [], ["step-000002"], ["step-000002"], ["step-000004"], ["step-000004"]]
    artifacts.unlink()
    aside.rename(artifacts)
    metrics: Metrics = []
    assert run(base, rows, store, metrics=metrics).adapter == whole.adapter
    assert metrics == []


def test_another_fingerprint(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Resumed with another number of threads: refused by name, or inexact, in the same order of rows, and on record."""
    straight, again = [], []  # type: ignore[var-annotated]
    with pytest.raises(Interrupted):
        run(base, rows, store, stop_after=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(CheckpointInvalid, match=f"threads was {threads}, is {threads + 1}"):
            run(base, rows, store)
        with pytest.raises(Interrupted):
            run(base, rows, store, metrics=again, stop_after=2, inexact_resume=True)
        assert [step for step, _ in again] == [3, 4]
        result = run(base, rows, store, metrics=again)
    finally:
        torch.set_num_threads(threads)
    run(base, rows, store, metrics=straight, key="other")  # last: an equal adapter keeps the record that it has
    assert [values["tokens"] for _, values in again] == [values["tokens"] for _, values in straight[2:]]
    assert [values.get("inexact_resume") for _, values in again] == [1, None, None, None]
    assert store.record(result.adapter.digest)["inexact_resume"] == [f"threads was {threads}, is {threads + 1}"]


def test_a_loss_that_is_not_finite_saves_nothing(path: Path, rows: RowsRef, store: Store) -> None:
    """NaN in the loss ends the run with a code, before an adapter or a checkpoint is written."""
    broken = load(path, precision="fp32", device="cpu")
    broken.model.model.norm.weight[0] = float("nan")
    with pytest.raises(LossNotFinite, match="step 1 of 6"):
        run(broken, rows, store, checkpoint_seconds=0)
    assert store.count() == 2  # the rows and their tokens
    assert not store.layout.checkpoints("key").exists()


def test_no_rows_is_refused(base: LoadedBase, store: Store) -> None:
    """There is nothing to train on."""
    with pytest.raises(NoRows):
        run(base, nano.commit_rows(store, []), store)


def test_one_key_is_trained_by_one_at_a_time(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """While another holds the key's lock a run waits, and works once it is free."""
    metrics: Metrics = []
    other = threading.Thread(target=run, args=(base, rows, store), kwargs={"metrics": metrics})
    with store.lock("key"):
        other.start()
        other.join(timeout=0.5)
        assert metrics == []
    other.join()
    assert len(metrics) == 6


def test_the_adapter_is_float32_on_a_bf16_base(path: Path, rows: RowsRef, store: Store) -> None:
    """A bf16 base trains float32 factors, and afterwards holds the bits it was loaded with."""
    base = load(path, precision="bf16", device="cpu")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    found = tensors(store, run(base, rows, store))
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in found.values())
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_logits_at_labels_are_the_models_own(tmp_path: Path, store: Store, architecture: str) -> None:
    """Taking only the label positions of a padded batch through the head gives what the whole model says of each row.

    Gemma 2 caps its logits after the head, so it must go through its own forward.
    """
    base = load(nano.build(tmp_path / "base", architecture=architecture), precision="fp32", device="cpu")
    assert base.plain_head == (architecture != "gemma2")
    items = load_items(base, nano.commit_rows(store, ROWS[:5]), max_length=128, store=store)
    batch = collate(items, base.device)
    with torch.no_grad():
        found = base.logits(base.states(batch.ids_bt, batch.lengths_b, batch.at_n))
        whole = torch.cat([base.model(item.ids_t[None]).logits[0, item.at_n - 1] for item in items])
    assert torch.allclose(found, whole, atol=1e-5)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Tensors that the model has no place for, or that are missing, are an error and not a silent difference."""
    narrow = load(nano.build(tmp_path / "narrow", intermediate_size=96), precision="fp32", device="cpu")
    short = load(nano.build(tmp_path / "short", num_hidden_layers=1), precision="fp32", device="cpu")
    ref = run(base, rows, store, steps=1).adapter
    for other in (narrow, short):
        with pytest.raises(AdapterMismatch), adapted(other, ref, store):
            pass
    found = adapters.read_adapter(store.local(ref))
    del found.tensors[next(iter(found.tensors))]
    with pytest.raises(AdapterMismatch), injected(base, found.config, None) as model:
        put(model, found.tensors)


def test_an_incomplete_base_is_refused(tmp_path: Path) -> None:
    """A base without weights, with damaged ones, or without one tensor does not load."""
    directory = nano.build(tmp_path / "base")
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadFailed):
        load(directory, precision="fp32", device="cpu")
    weights.unlink()
    with pytest.raises(ModelLoadFailed):
        load(directory, precision="fp32", device="cpu")
