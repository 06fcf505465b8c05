"""A base is what its config.json says: weights that it has no place for, lacks or shapes otherwise are named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backprop_core.data import batching
from backprop_core.errors import ModelLoadFailed, TokenizerMismatch
from backprop_core.evaluation.generation import answer
from backprop_core.models import base as bases
from backprop_core.models.loading import LoadedBase, load
from backprop_core.schema.specs import GenerationSpec, ModelSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano
from tests.backprop_core import tiny_models as tiny

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("kinds")
    for name in ("llama", "qwen2", "qwen3"):
        nano.build(root / name, architecture=name)
    nano.build(root / "untied", tie_word_embeddings=False)
    return lambda name: root / name


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(directory: Path, change: Callable[[Weights], Weights]) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    save_file(change(weights), directory / "model.safetensors", metadata={"format": "pt"})


AS_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
LIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "fewer layers": ("llama", {"num_hidden_layers": 1}, r"9 weights .* not describe, first model\.layers\.1\."),
    "no layer": ("llama", {"num_hidden_layers": 0}, r"18 weights .* not describe, first model\.layers\.0\."),
    "more layers": ("llama", {"num_hidden_layers": 3}, r"no weights for model\.layers\.2\."),
    "smaller vocabulary": ("llama", {"vocab_size": 200}, r"embed_tokens\.weight of shape \(267, 64\), .* \(200, 64\)"),
    "larger vocabulary": ("llama", {"vocab_size": 400}, r"embed_tokens\.weight of shape \(267, 64\), .* \(400, 64\)"),
    "hidden size": ("llama", {"hidden_size": 32}, r"embed_tokens\.weight of shape \(267, 64\), .* \(267, 32\)"),
    "intermediate size": ("llama", {"intermediate_size": 64}, r"mlp\.down_proj\.weight of shape \(64, 128\)"),
    "key heads": ("llama", {"num_key_value_heads": 1}, r"k_proj\.weight of shape \(32, 64\), .* \(16, 64\)"),
    "a head of its own": ("untied", {"tie_word_embeddings": True}, "separate output head"),
    "no head": ("llama", {"tie_word_embeddings": False}, r"no weights for lm_head\.weight"),
    "biases left out": ("qwen2", AS_LLAMA, r"6 weights .* first model\.layers\.0\.self_attn\.k_proj\.bias"),
    "norms left out": ("qwen3", AS_LLAMA, r"4 weights .* first model\.layers\.0\.self_attn\.k_norm\.weight"),
    "biases made up": ("llama", {"attention_bias": True}, r"no weights for model\.layers\.0\.self_attn\.k_proj\.bias"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_config_that_lies_is_refused(lie: str, kinds: Callable[[str], Path], tmp_path: Path) -> None:
    """A config.json that describes another model than the weights are is refused by the name of a weight."""
    kind, changes, said = LIES[lie]
    base = shutil.copytree(kinds(kind), tmp_path / "base")
    load(base, precision="fp32", device="cpu")  # the control
    edit(base, **changes)
    with pytest.raises(ModelLoadFailed, match=said) as caught:
        load(base, precision="fp32", device="cpu")
    assert caught.value.hint


def test_weights_of_something_else_are_refused(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    """A tensor that no part of the model reads is named; what every model of a kind may carry along is not."""
    base = shutil.copytree(kinds("llama"), tmp_path / "base")
    rewrite(base, lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    load(base, precision="fp32", device="cpu")
    rewrite(base, lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()})
    load(base, precision="fp32", device="cpu")
    rewrite(base, lambda w: {**w, "v_head.summary.weight": torch.zeros(1)})
    with pytest.raises(ModelLoadFailed, match=r"1 weights .* first v_head\.summary\.weight"):
        load(base, precision="fp32", device="cpu")


# What transformers would load beside, or instead of, what the digest is of


@pytest.fixture
def base(kinds: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(kinds("llama"), tmp_path / "base")


def refused(base: Path, tmp_path: Path, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        bases.resolve(ModelSpec(name=str(base)), Store(tmp_path / "store"))


def second_weights(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, base / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "other.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def test_two_sets_of_weights(base: Path, tmp_path: Path) -> None:
    """Where an index names other files than the one that transformers prefers, neither is chosen."""
    second_weights(base)
    refused(base, tmp_path, r"two sets of weights: model\.safetensors, and other\.safetensors from its index")
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert bases.resolve(ModelSpec(name=str(base)), Store(tmp_path / "store"))


def test_weights_that_the_config_names(base: Path, tmp_path: Path) -> None:
    """A file that config.json would have loaded instead of those of the digest is refused."""
    second_weights(base)
    (base / "model.safetensors.index.json").unlink()
    edit(base, transformers_weights="other.safetensors")
    refused(base, tmp_path, r"other weights: transformers_weights=other\.safetensors")


def test_an_adapter_beside_the_weights(base: Path, tmp_path: Path) -> None:
    """A base that would be loaded with an adapter on it is refused: its digest says nothing of that."""
    adapter = tiny.add_adapter(base, tmp_path / "adapter")
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, base)
    refused(base, tmp_path, "a LoRA adapter beside its weights")


# Tokens that the model does not have


@pytest.fixture
def short(base: Path) -> LoadedBase:
    """A base whose embeddings end before its tokenizer's last two tokens: `Ġus` and `user`, which come of merges."""
    size = len(nano.tokenizer()) - 2
    edit(base, vocab_size=size)
    name = "model.embed_tokens.weight"
    rewrite(base, lambda weights: {**weights, name: weights[name][:size].clone()})
    return load(base, precision="fp32", device="cpu")


def row(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "no"}]}


def test_a_token_beyond_the_embeddings_is_named(short: LoadedBase, store: Store) -> None:
    """It is found among all rows before the first step, in training, evaluation and generation alike."""
    said = r"produces token 266, 'user', but the model has only 265 embeddings"
    with pytest.raises(TokenizerMismatch, match=said):  # the template writes it
        batching.load(short, nano.commit_rows(store, [row("a")]), max_length=99, store=store)
    with pytest.raises(TokenizerMismatch, match=said):  # and the tokens that were kept are no way around it
        batching.load(short, nano.commit_rows(store, [row("a")]), max_length=99, store=store)
    with pytest.raises(TokenizerMismatch, match=said):
        answer(short, None, [row("a")["messages"][:1]], spec=GenerationSpec(max_new_tokens=2), store=store)
    with short.checking_ids(), pytest.raises(TokenizerMismatch, match=said):
        short.model(input_ids=torch.tensor([[1, 266]]))


def test_a_token_that_nothing_writes_is_no_fault(short: LoadedBase, store: Store) -> None:
    """A tokenizer may be larger than the model (Gemma 3's is); only a token that comes up is refused."""
    short.tokenizer.chat_template = short.tokenizer.chat_template.replace("m['role']", "m['role'] | upper")
    short.tokenizer.chat_template = short.tokenizer.chat_template.replace("assistant", "ASSISTANT")
    assert batching.load(short, nano.commit_rows(store, [row("a")]), max_length=99, store=store)
    rows = [row("a")] * 999 + [row("the last one is a user")]
    with pytest.raises(TokenizerMismatch, match="'user'"):
        batching.load(short, nano.commit_rows(store, rows), max_length=99, store=store)
