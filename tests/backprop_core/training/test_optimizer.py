"""The optimizers: 8-bit moments of bitsandbytes against torch's AdamW, and their state over an interruption."""

from typing import Any

import pytest
import torch
from safetensors.torch import load as tensors_in
from safetensors.torch import save

from backprop_core.errors import CheckpointInvalid, ConfigInvalid, Interrupted
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import RowsRef, TrainResult
from backprop_core.schema.specs import LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import part
from backprop_core.training import optimizer
from backprop_core.training.loop import train
from backprop_core.training.vram_estimate import Setting, Shape, memory
from tasks.runs.preflight_checks import check_optimizer
from tests.backprop_core import nano

SPEC = TrainSpec(
    steps=6, batch_size=8, learning_rate=3e-3, max_length=128, optimizer="adamw_8bit", lora=LoraSpec(rank=64, alpha=64)
)


class OneLayer(torch.nn.Module):
    """A trained matrix that is large enough for 8-bit moments, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = torch.nn.Parameter(torch.randn(64, 128))
        self.small = torch.nn.Parameter(torch.randn(8))


def step(model: OneLayer, made: Any, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    made.step()
    made.zero_grad()


def values(model: OneLayer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_restored_optimizer_takes_the_same_steps(name: Any) -> None:
    """Three steps, saved as a file and restored into a new optimizer, then three more: the bits of six steps."""
    spec = SPEC.model_copy(update={"optimizer": name})
    model, other = OneLayer(), OneLayer()
    whole, first = optimizer.made(model, spec), optimizer.made(other, spec)
    for number in range(3):
        step(model, whole, number)
        step(other, first, number)
    second = optimizer.made(other, spec)
    optimizer.restore(second, tensors_in(save(optimizer.state(first))))
    for number in range(3, 6):
        step(model, whole, number)
        step(other, second, number)
    assert all(torch.equal(one, two) for one, two in zip(values(model), values(other), strict=True))
    assert {tensor.dtype for tensor in optimizer.state(second).values()} >= (
        {torch.uint8} if name == "adamw_8bit" else {torch.float32}
    )


def test_a_fresh_optimizer_would_take_others() -> None:
    """The negative control: without its state the steps differ."""
    model, other = OneLayer(), OneLayer()
    whole = optimizer.made(model, SPEC)
    for number in range(2):
        step(model, whole, number)
        step(other, optimizer.made(other, SPEC), number)
    assert not torch.equal(model.large, other.large)


def test_moments_take_a_quarter_of_the_memory() -> None:
    """One byte a moment instead of four, and one scale for 256 of them."""
    sizes = {}
    for name in ("adamw", "adamw_8bit"):
        model = OneLayer()
        made = optimizer.made(model, SPEC.model_copy(update={"optimizer": name}))
        step(model, made, 0)
        sizes[name] = sum(tensor.nbytes for key, tensor in optimizer.state(made).items() if key.startswith("0."))
    assert sizes["adamw_8bit"] < 0.27 * sizes["adamw"]


def run(base: LoadedBase, rows: RowsRef, store: Store, *, stop_after: int | None = None, **fields: Any) -> TrainResult:
    seen: list[int] = []
    return train(
        base,
        rows,
        spec=SPEC.model_copy(update=fields),
        start=None,
        key="key",
        store=store,
        on_metrics=lambda step, total, values: seen.append(step),
        should_stop=lambda: len(seen) == stop_after,
    )


def test_it_trains_nearly_as_adamw_does(base: LoadedBase, store: Store) -> None:
    """The adapter moves as far as AdamW's to a tenth, and its loss is the same to 2 %."""
    rows = nano.commit_rows(store, nano.chats(24))
    results = [run(base, rows, store, optimizer=name) for name in ("adamw", "adamw_8bit")]
    exact, eight = (adapters.read_adapter(store.local(result.adapter)).tensors for result in results)
    for name in (name for name in exact if "lora_B" in name):
        assert 0 < (exact[name] - eight[name]).norm() < 0.1 * exact[name].norm()
    assert results[1].train_loss == pytest.approx(results[0].train_loss, rel=0.02)


def test_stopped_and_run_again_is_the_same(base: LoadedBase, store: Store) -> None:
    """A checkpoint of 8-bit moments resumes bit for bit; with another optimizer it is refused."""
    rows = nano.commit_rows(store, nano.chats(24))
    whole = run(base, rows, store)
    with pytest.raises(Interrupted):
        run(base, rows, store, stop_after=3)
    with pytest.raises(CheckpointInvalid, match="optimizer was adamw_8bit"):
        run(base, rows, store, optimizer="adamw")
    assert run(base, rows, store).adapter == whole.adapter


def test_paging_needs_a_gpu() -> None:
    """On a CPU a paged optimizer is refused before anything is loaded; the others are not."""
    with pytest.raises(ConfigInvalid, match="paged_adamw_8bit"):
        check_optimizer(SPEC.model_copy(update={"device": "cpu", "optimizer": "paged_adamw_8bit"}))
    for device, name in (("cuda", "paged_adamw_8bit"), ("cpu", "adamw_8bit"), ("cpu", "adamw")):
        check_optimizer(SPEC.model_copy(update={"device": device, "optimizer": name}))


def test_what_does_not_decide_the_result_is_in_no_key() -> None:
    """The guard's marks are in no key, and the optimizer only where it is not AdamW."""
    plain = part(TrainSpec())
    assert part(TrainSpec.model_validate({"guard": {"pause_at": 70, "continue_at": 60}})) == plain
    assert part(TrainSpec(optimizer="adamw")) == plain != part(TrainSpec(optimizer="adamw_8bit"))


def test_the_estimate_knows_them() -> None:
    """AdamW keeps 8 bytes of moments for a parameter, 8-bit AdamW 2, and a paged one none on a full GPU."""
    sizes = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "vocab_size": 1000, "max_position_embeddings": 512}
    shape = Shape.model_validate(sizes)

    def of(name: Any) -> int:
        return memory(
            shape, Setting(precision="bf16", checkpointing=False, lora=SPEC.lora, optimizer=name), 512
        ).adapter

    count = shape.lora_parameters(SPEC.lora)
    assert of("adamw") - of("adamw_8bit") == 6 * count
    assert of("adamw") - of("paged_adamw_8bit") == 8 * count


def test_the_adapter_stays_float32(base: LoadedBase, store: Store) -> None:
    """bitsandbytes changes nothing in what is committed: float32 factors."""
    rows = nano.commit_rows(store, nano.chats(24))
    found = adapters.read_adapter(store.local(run(base, rows, store, steps=1).adapter)).tensors
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
