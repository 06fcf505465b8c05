"""What a run takes: the formula against figures from elsewhere, sizes against transformers and PEFT themselves."""

from typing import Any
from weakref import WeakSet

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from backprop_core.errors import AdapterMismatch, ArchitectureUnsupported, InputNotFound, ModelLoadFailed
from backprop_core.models.loading import PLAIN_HEAD
from backprop_core.schema.specs import LoraSpec, ModelSpec, TrainSpec
from backprop_core.training import loss
from backprop_core.training.presets import PRESETS, find, shape_for
from backprop_core.training.vram_estimate import (
    ARCHITECTURES,
    CHUNK,
    GIB,
    Setting,
    Shape,
    activations,
    longest,
    memory,
    micro_batch,
    shape_of,
)
from tests.backprop_core import nano

# Parameters of the released weights, as their safetensors files count them.
PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "phi-4-mini": 3_836_021_760,
    "smollm3-3b": 3_075_098_624,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
}
LLAMA_2_7B = Shape(
    model_type="llama",
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    vocab_size=32_000,
    max_position_embeddings=4096,
)
QWEN = PRESETS["qwen2.5-7b"].shape
QLORA = Setting(precision="nf4", checkpointing=True, lora=LoraSpec())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_size(name: str) -> None:
    """Transformers' model of a preset's shape has the released weights' parameters; ours lacks norms and biases."""
    shape = PRESETS[name].shape
    config = AutoConfig.for_model(**shape.model_dump(), pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    assert shape.parameters == pytest.approx(PUBLISHED[name], rel=2e-4)


@pytest.mark.parametrize(
    ("tokens", "chunked", "whole"),
    [(512, 7.5, 7.9), (1024, 7.8, 8.9), (2048, 8.4, 11.0), (4096, 9.6, 15.3), (8192, 11.9, 23.7)],
)
def test_reference_points(tokens: int, chunked: float, whole: float) -> None:
    """QLoRA of a Qwen2.5-7B with checkpointing takes what was worked out for it, with either loss."""
    own_loss = QWEN.model_copy(update={"model_type": "smollm3"})  # the same matrices, no loss in chunks
    assert memory(QWEN, QLORA, tokens).total / GIB == pytest.approx(chunked, rel=0.03)
    assert memory(own_loss, QLORA, tokens).total / GIB == pytest.approx(whole, rel=0.03)


def test_published_lora_sizes() -> None:
    """Rank 16 on all linear layers: 39,976,960 parameters for a Llama 2 7B, 40.4M for a Qwen2.5-7B."""
    assert LLAMA_2_7B.lora_parameters(LoraSpec()) == 39_976_960
    assert QWEN.lora_parameters(LoraSpec()) == 40_370_176


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_dora_keeps(precision: str) -> None:
    """What autograd itself keeps a token for DoRA, above LoRA, is what the formula adds for it."""
    sizes = {**nano.SHAPE, "vocab_size": 300, "pad_token_id": 0, "hidden_size": 256, "intermediate_size": 512}
    shape = shape_of("nano", {**sizes, "model_type": "llama"})

    def formula(variant: str, tokens: int) -> int:
        setting = Setting.model_validate({"precision": precision, "checkpointing": False, "lora": {"variant": variant}})
        return activations(shape, setting, tokens)

    def real(variant: str, tokens: int) -> int:
        return kept(AutoConfig.for_model("llama", **sizes), precision, tokens, use_dora=variant == "dora")

    more = [of("dora", 384) - of("dora", 128) - of("lora", 384) + of("lora", 128) for of in (formula, real)]
    assert more[0] == pytest.approx(more[1], rel=0.05) and more[1] > 0


def kept(config: Any, precision: str, tokens: int, **lora: bool) -> int:
    """Bytes that the backward pass of a model's blocks waits for: of every storage that is not a parameter's."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **lora))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: WeakSet[torch.UntypedStorage] = WeakSet()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.add(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model.model.model(torch.zeros(1, tokens, dtype=torch.long))
    sizes = {storage.data_ptr(): storage.nbytes() for storage in saved}
    del output
    return sum(size for pointer, size in sizes.items() if pointer not in own)


@pytest.mark.parametrize(("kind", "variant"), [*((kind, "lora") for kind in ARCHITECTURES), ("llama", "dora")])
def test_sizes_are_those_of_the_real_model(kind: str, variant: str) -> None:
    """Transformers' own layers and PEFT's own adapter have as many parameters as the formula says."""
    sizes = {**nano.SHAPE, "vocab_size": 300, "pad_token_id": 0}
    del sizes["tie_word_embeddings"]  # each architecture's own default
    config = AutoConfig.for_model(kind, **sizes)
    shape = shape_of("nano", {**sizes, "model_type": kind})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", use_dora=variant == "dora"))
    assert shape.parameters == matrices
    assert shape.lora_parameters(LoraSpec(rank=4, variant=variant)) == adapted.get_nb_trainable_parameters()[0]


def test_what_the_formula_shares_with_the_engine() -> None:
    """Which models have their loss computed in chunks, and how large a chunk is."""
    assert {kind for kind, known in ARCHITECTURES.items() if known.plain_head} == PLAIN_HEAD
    assert CHUNK == loss.LOGITS


def test_what_saves_memory_saves_memory() -> None:
    """Checkpointing, NF4, fewer tokens and fewer targets take less; dropout, rank, DoRA and PiSSA take more."""

    def total(tokens: int = 4096, precision: str = "bf16", checkpointing: bool = False, **lora: object) -> int:
        setting = Setting.model_validate({"precision": precision, "checkpointing": checkpointing, "lora": lora})
        return memory(QWEN, setting, tokens).total

    less = [total(checkpointing=True), total(precision="nf4"), total(2048), total(target_modules=["q_proj"])]
    more = [total(dropout=0.1), total(rank=64), total(precision="fp32"), total(8192)]
    more += [total(variant="dora"), total(variant="pissa")]
    assert max(less) < total() < min(more)


def test_longest_is_the_edge() -> None:
    """One token more than the longest sequence does not fit; what never fits is 0; no model reads past its limit."""
    most = longest(QWEN, QLORA, 10 * GIB)
    assert memory(QWEN, QLORA, most).total <= 10 * GIB < memory(QWEN, QLORA, most + 1).total
    assert longest(QWEN, QLORA, 4 * GIB) == 0
    assert longest(QWEN, QLORA, 1000 * GIB) == QWEN.max_position_embeddings


def test_micro_batches() -> None:
    """A micro-batch holds one sequence at least and the examples of one step at most."""
    assert micro_batch(TrainSpec(max_length=8192)) == 8192
    assert micro_batch(TrainSpec(max_length=512, batch_size=2)) == 1024
    assert micro_batch(TrainSpec()) == 4096


def test_targets_that_the_model_lacks() -> None:
    """A target is a layer of this model, or an error that names those it has."""
    with pytest.raises(AdapterMismatch, match="query") as caught:
        QWEN.lora_parameters(LoraSpec(target_modules=["query", "q_proj"]))
    assert "q_proj" in caught.value.hint


def test_where_a_shape_comes_from(tmp_path) -> None:
    """A directory's config.json, weights or not; a preset by name or hub id; what is neither is a coded error."""
    (nano.build(tmp_path / "base") / "model.safetensors").unlink()
    built = shape_for(ModelSpec(name=str(tmp_path / "base")))
    assert (built.hidden_size, built.tie_word_embeddings) == (64, True)
    assert shape_for(ModelSpec()) is shape_for(ModelSpec(name="Qwen2.5-7B")) is QWEN
    assert find("Qwen/Qwen2.5-70B") is None
    for name, error in {
        "nothing": InputNotFound,
        "nobody/nothing": ModelLoadFailed,
        str(tmp_path): ModelLoadFailed,
    }.items():
        with pytest.raises(error):
            shape_for(ModelSpec(name=name))


def test_configs_that_cannot_be_used() -> None:
    """A model of another kind, or a config without a size, is refused by name."""
    with pytest.raises(ArchitectureUnsupported, match="mixtral"):
        shape_of("x", {"model_type": "mixtral"})
    with pytest.raises(ModelLoadFailed, match="hidden_size"):
        shape_of("x", {"model_type": "llama", "hidden_size": "wide"})
