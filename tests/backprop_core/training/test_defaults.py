"""What we would choose: the table of the defaults, rule by rule."""

from typing import Any

import pytest

from backprop_core.schema.specs import TrainSpec
from backprop_core.training.defaults import Data, choose
from backprop_core.training.presets import PRESETS
from backprop_core.training.token_budget import SAFE
from backprop_core.training.vram_estimate import GIB, Setting, activations, memory

QWEN = PRESETS["qwen2.5-7b"].shape


def chosen(
    name: str = "qwen2.5-7b",
    *,
    examples: int = 2000,
    labels: int = 0,
    length: int = 900,
    free: float | None = 80,
    **given: Any,
) -> dict[str, Any]:
    """Field → value, each with a reason."""
    data = Data(examples=examples, tokens=labels, label_tokens=labels, length=length)
    choices = choose(PRESETS[name].shape, TrainSpec(**given), data, free and round(free * GIB)).choices
    assert all(choice.reason for choice in choices)
    return {choice.field.removeprefix("training."): choice.value for choice in choices}


@pytest.mark.parametrize(
    ("name", "rate"),
    [("llama-3.2-1b", 5e-4), ("qwen3-4b", 5e-4), ("qwen2.5-7b", 2e-4), ("gemma-2-9b", 2e-4)],
)
def test_learning_rate_by_size(name: str, rate: float) -> None:
    """Up to 4B 5e-4, up to 14B 2e-4."""
    assert chosen(name)["learning_rate"] == rate


def test_learning_rate_of_a_large_model() -> None:
    """From 27B 1e-4."""
    large = QWEN.model_copy(update={"num_hidden_layers": 112})
    rates = {choice.field: choice.value for choice in choose(large, TrainSpec(), None, None).choices}
    assert large.parameters > 27e9 and rates["training.learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("examples", "batch", "epochs"),
    [(499, 8, 3), (500, 16, 3), (999, 16, 3), (1000, 16, 2), (9999, 16, 2), (10_000, 32, 1), (50, 2, 3), (3, 1, 3)],
)
def test_batch_and_epochs_by_examples(examples: int, batch: int, epochs: int) -> None:
    """8 under 500 examples, 16 under 10,000, else 32, less where a run would have under 50 steps; 3, 2 or 1 epochs."""
    made = chosen(examples=examples)
    assert (made["batch_size"], made["epochs"]) == (batch, epochs)


@pytest.mark.parametrize(("labels", "rank"), [(0, 16), (40_370_176, 16), (40_370_177, 32), (10**8, 64), (10**12, 256)])
def test_rank_by_label_tokens(labels: int, rank: int) -> None:
    """The least power of two with a parameter for each label token, 16 at least and 256 at most."""
    assert chosen(labels=labels)["lora.rank"] == rank


@pytest.mark.parametrize(
    ("free", "precision", "checkpointing", "length"),
    [
        (80, "bf16", "auto", 2048),
        (24, "bf16", "on", 2048),
        (16, "nf4", "on", 2048),
        (9.5, "nf4", "on", 1024),
        (4, "nf4", "on", 512),
    ],
)
def test_what_memory_decides(free: float, precision: str, checkpointing: str, length: int) -> None:
    """bf16 while it is under 85 % of the free memory, else NF4; checkpointing only where it must be; length last."""
    made = chosen(length=1500, free=free)
    assert (made["precision"], made["gradient_checkpointing"], made["max_length"]) == (precision, checkpointing, length)
    assert length <= made["token_budget"] <= 4096


@pytest.mark.parametrize("free", range(8, 100))
def test_what_is_chosen_fits(free: int) -> None:
    """On any card the choice is under 85 % of it, micro-batches included, unless nothing is."""
    made = chosen(free=free)
    setting = Setting(
        precision=made["precision"], checkpointing=made["gradient_checkpointing"] == "on", lora=TrainSpec().lora
    )
    least = memory(QWEN, Setting(precision="nf4", checkpointing=True, lora=TrainSpec().lora), 512).total
    assert memory(QWEN, setting, made["token_budget"]).total < SAFE * free * GIB or least >= SAFE * free * GIB


@pytest.mark.parametrize(("tokens", "length"), [(20, 512), (513, 1024), (3000, 4096), (10**6, 32_768)])
def test_length_by_data(tokens: int, length: int) -> None:
    """A power of two that 99 % of the examples are within, as far as the model can read."""
    assert chosen(length=tokens, free=1000)["max_length"] == length


def test_what_is_given_stays() -> None:
    """A field that the user set is neither changed nor left out of what follows from it."""
    given = {"learning_rate": 1e-5, "max_length": 8192, "precision": "bf16", "lora": {"rank": 128}, "batch_size": 64}
    made = chosen(free=24, **given)
    assert {**made, "lora": {"rank": made["lora.rank"]}} == made | given
    assert made["gradient_checkpointing"] == "on" and made["token_budget"] == 8192


def test_without_data_or_gpu() -> None:
    """The defaults of a run stand, whatever the model."""
    made = {
        choice.field.removeprefix("training."): choice.value for choice in choose(QWEN, TrainSpec(), None, None).choices
    }
    spec = TrainSpec()
    assert (made.pop("lora.rank"), made.pop("lora.alpha")) == (spec.lora.rank, spec.lora.alpha)
    assert made.pop("lora.target_modules") == spec.lora.target_modules
    assert made.pop("token_budget") == 256  # a 7B on a CPU
    assert made == {name: getattr(spec, name) for name in made}


@pytest.mark.parametrize(("layers", "budget"), [(1, 4096), (5, 4096), (30, 1024), (300, 256)])
def test_a_cpu_computes_about_a_gibibyte_of_activations_at_once(layers: int, budget: int) -> None:
    """The largest power of two whose activations are within 1 GiB, at least 256 and at most 4096 tokens."""
    shape = QWEN.model_copy(update={"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": layers})
    made = choose(shape, TrainSpec(), None, None).spec
    fp32 = Setting(precision="fp32", checkpointing=False, lora=made.lora)
    assert made.token_budget == budget
    assert activations(shape, fp32, budget) <= GIB or budget == 256
    assert choose(shape, TrainSpec(token_budget=64), None, None).spec.token_budget == 64
