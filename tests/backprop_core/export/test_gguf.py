"""GGUF files answer as the models they were made from; transformers, PEFT and llama.cpp are the oracles."""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from backprop_core.errors import (
    AdapterMismatch,
    ArchitectureUnsupported,
    ChatTemplateMissing,
    ChatTemplateUnusable,
    GGUFExportFailed,
    ModelLoadFailed,
    TokenizerUnsupported,
)
from backprop_core.export import fidelity
from backprop_core.export.gguf import check_supported, convert, fused_weights
from backprop_core.export.gguf.fused_weights import Fused
from backprop_core.export.gguf.lora import convert_lora
from backprop_core.export.gguf.stored_tensors import stored_in
from backprop_core.export.gguf.tensor_data import finite
from backprop_core.export.gguf.tokenizer import LLAMA3, QWEN2
from tests.backprop_core import nano
from tests.backprop_core import tiny_models as tiny

# PEFT asks transformers for a property that it renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One base per architecture."""
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny.build(root / name, name) for name in tiny.ARCHITECTURES}


def fused_model(base: Path, adapter: Path | None) -> torch.nn.Module:
    """What PEFT makes of base and adapter."""
    return PeftModel.from_pretrained(tiny.load(base), adapter).merge_and_unload() if adapter else tiny.load(base)


def worst(base: Path, adapter: Path | None, file: Path) -> float:
    """Largest difference of a logit between transformers and llama.cpp over PROMPTS; the token ids must be equal."""
    model, tokenizer = fused_model(base, adapter), AutoTokenizer.from_pretrained(base)
    differences = []
    with closing(fidelity.Reader(file, length=512)) as reader:
        for text in tiny.PROMPTS:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert reader.ids(text) == ids
            with torch.inference_mode():
                expected = model(torch.tensor([ids])).logits[0]
            differences.append((expected - reader.logits(ids)).abs().max().item())
    return max(differences)


def fields(file: Path) -> dict[str, object]:
    """The metadata of a GGUF file."""
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_file_answers_as_the_fused_model(architecture: str, bases: dict[str, Path], tmp_path: Path) -> None:
    """An F32 file with an adapter fused in gives transformers' logits to 1e-3 and the same ids, per architecture."""
    base = bases[architecture]
    adapter = tiny.add_adapter(base, tmp_path / "adapter")
    convert(base, adapter, tmp_path / "model.gguf", outtype="f32")
    assert worst(base, adapter, tmp_path / "model.gguf") < 1e-3


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}, "head_dim": 32}),
        ("mistral", {"sliding_window": 256, "rms_norm_eps": 1e-3}),
    ],
    ids=["llama3-rope", "biases", "linear-rope", "window"],
)
def test_every_part_of_the_config_counts(architecture: str, config: dict[str, object], tmp_path: Path) -> None:
    """Rope scaling, biases, untied heads, head width and norm epsilon reach the file."""
    base = tiny.build(tmp_path / "base", architecture, **config)
    convert(base, None, tmp_path / "model.gguf", outtype="f32")
    assert worst(base, None, tmp_path / "model.gguf") < 1e-3


@pytest.mark.parametrize(("architecture", "lora"), [("llama", {}), ("qwen3", {"use_rslora": True})])
def test_an_adapter_alone_answers_as_pefts(
    architecture: str, lora: dict[str, object], bases: dict[str, Path], tmp_path: Path
) -> None:
    """llama.cpp puts the adapter's file on the bare base's, and gives PEFT's logits; without it, others."""
    base, file = bases[architecture], tmp_path / "base.gguf"
    adapter = tiny.add_adapter(base, tmp_path / "adapter", **lora)
    convert(base, None, file, outtype="f32")
    convert_lora(base, adapter, tmp_path / "adapter.gguf")
    expected, ids = fused_model(base, adapter), AutoTokenizer.from_pretrained(base)(tiny.PROMPTS[0]).input_ids
    with torch.inference_mode():
        logits = expected(torch.tensor([ids])).logits[0]
    with closing(fidelity.Reader(file, length=512)) as bare:
        assert (logits - bare.logits(ids)).abs().max() > 0.1
    with closing(fidelity.Reader(file, length=512, adapter=tmp_path / "adapter.gguf")) as reader:
        assert (logits - reader.logits(ids)).abs().max() < 1e-3


LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 2.1, 3.2, 4.3, 5.4, 6.5]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "factor": 4.0, **LONG}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
}


@pytest.mark.parametrize(
    ("architecture", "config", "bound"),
    [
        ("smollm3", {"num_hidden_layers": 4}, 1e-3),
        ("phi3", {"tie_word_embeddings": False}, 1e-3),
        (
            "phi3",
            {"max_position_embeddings": 2048, "original_max_position_embeddings": 512, "rope_parameters": LONGROPE},
            1e-3,
        ),
        ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 32}, 1e-2),
        (
            "gemma3_text",
            {
                "query_pre_attn_scalar": 16,
                "sliding_window": 32,
                "num_hidden_layers": 6,
                "rope_parameters": GEMMA3_ROPE,
            },
            1e-2,
        ),
    ],
    ids=["smollm3", "phi3", "phi3-longrope", "gemma2", "gemma3"],
)
def test_further_architectures(architecture: str, config: dict[str, object], bound: float, tmp_path: Path) -> None:
    """The same proof with an adapter on every linear layer; llama.cpp reads GELU from a table in half precision."""
    base = tiny.build(tmp_path / "base", architecture, **config)
    adapter = tiny.add_adapter(base, tmp_path / "adapter")
    convert(base, adapter, tmp_path / "model.gguf", outtype="f32")
    assert worst(base, adapter, tmp_path / "model.gguf") < bound


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}),
        ("gemma2", {"query_pre_attn_scalar": 99}),
        ("gemma2", {"layer_types": ["full_attention", "full_attention"]}),
        ("gemma2", {"hidden_activation": "silu"}),
        ("qwen2", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}),
    ],
)
def test_what_llama_cpp_takes_for_granted_is_checked(
    architecture: str, config: dict[str, object], bases: dict[str, Path], tmp_path: Path
) -> None:
    """Another pattern of layers, scale or activation than the one that llama.cpp has built in is refused."""
    known = {"smollm3": "SmolLM3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    usual = {"hidden_activation": "gelu_pytorch_tanh"} if architecture == "gemma2" else {}
    own = {"architectures": [known[architecture]], "head_dim": 16, **usual}
    check_supported(edited(bases["llama"], tmp_path / "usual", "config.json", **own))
    with pytest.raises(ArchitectureUnsupported):
        check_supported(edited(bases["llama"], tmp_path / "odd", "config.json", **own | config))


def test_check_sees_a_wrong_rotary_pairing(bases: dict[str, Path], tmp_path: Path) -> None:
    """Negative control: with the rows of q and k as transformers has them, the logits are far off."""
    file = tmp_path / "model.gguf"
    convert(bases["llama"], None, file, outtype="f32")
    weights = load_file(bases["llama"] / "model.safetensors")
    for tensor in GGUFReader(file, "r+").tensors:
        _, _, name, *_ = [*tensor.name.split("."), "", ""]
        if name in ("attn_q", "attn_k"):
            layer = tensor.name.split(".")[1]
            tensor.data[:] = weights[f"model.layers.{layer}.self_attn.{name[-1]}_proj.weight"].numpy()
    assert worst(bases["llama"], None, file) > 1


def test_sharded_base_gives_the_same_bytes(bases: dict[str, Path], tmp_path: Path) -> None:
    """How the base is cut into safetensors files does not show in the GGUF."""
    sharded = tmp_path / "sharded"
    shutil.copytree(bases["llama"], sharded)
    (sharded / "model.safetensors").unlink()
    tiny.load(bases["llama"]).save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for base, name in ((bases["llama"], "whole.gguf"), (sharded, "sharded.gguf")):
        convert(base, None, tmp_path / name, outtype="f16")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "sharded.gguf").read_bytes()


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True, "r": 3}])
@pytest.mark.parametrize("outtype", ["f16", "q8_0", "f32"])
def test_threads_do_not_change_the_bytes(
    outtype: Any, lora: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread or three, in slices of whole heads that come in any order: the same file; torch's threads stay."""
    base = tiny.build(tmp_path / "base", "llama", vocab_size=3000)
    adapter, before = tiny.add_adapter(base, tmp_path / "adapter", **lora), torch.get_num_threads()
    try:
        for threads, block, part in ((1, fused_weights.BLOCK, fused_weights.PART), (3, 2**12, 2**9)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(fused_weights, "BLOCK", block)
            monkeypatch.setattr(fused_weights, "PART", part)
            convert(base, adapter, tmp_path / f"{threads}.gguf", outtype=outtype)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_a_full_disk_leaves_nothing(bases: dict[str, Path], tmp_path: Path) -> None:
    """A file that may not grow to its size is the system's error, and no part of it stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            convert(bases["llama"], None, tmp_path / "model.gguf", outtype="f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True, "r": 3}, {"use_dora": True}, {"use_dora": True, "r": 3}])
def test_fusing_is_pefts_merge_bit_for_bit(lora: dict[str, object], bases: dict[str, Path], tmp_path: Path) -> None:
    """W + s·B·A by tensor equals merge_and_unload in float32, for LoRA, rsLoRA and DoRA."""
    adapter = tiny.add_adapter(bases["qwen2"], tmp_path / "adapter", **lora)
    fused = Fused(bases["qwen2"], adapter)
    expected = fused_model(bases["qwen2"], adapter).state_dict()
    changed = 0
    for name in fused.names():
        assert torch.equal(fused.tensor(name).float(), expected[name])
        changed += name in fused.lora
    assert changed == 14


def test_weights_that_are_cut_while_they_are_read_are_refused(tmp_path: Path) -> None:
    """Rows that a file no longer has are an error, not what the memory held before."""
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(8, 4)}, file)
    stored = stored_in(file)["w"]
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(ModelLoadFailed, match="is truncated"):
        stored.rows(slice(4, 8))


@pytest.mark.parametrize("content", [b"version https://git-lfs", b"\xff" * 16, b"\x09" + bytes(15), b"", b"\0"])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """However long a header its first bytes promise: no more is read than the file has."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadFailed, match="cannot be read"):
        stored_in(tmp_path / "model.safetensors")


def test_bf16_weights_are_copied_bit_for_bit(bases: dict[str, Path], tmp_path: Path) -> None:
    """A bfloat16 base without an adapter loses nothing in a bf16 file."""
    base = tmp_path / "base"
    shutil.copytree(bases["qwen3"], base)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    convert(base, None, tmp_path / "model.gguf", outtype="bf16")
    stored = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    expected = weights["model.layers.1.mlp.down_proj.weight"].view(torch.uint8).numpy()
    assert np.array_equal(stored["blk.1.ffn_down.weight"], expected)


def test_q8_0_is_the_packages_own_encoding(bases: dict[str, Path], tmp_path: Path) -> None:
    """Matrices are Q8_0 blocks, vectors float32, as gguf's codec reads them back."""
    convert(bases["qwen2"], None, tmp_path / "model.gguf", outtype="q8_0")
    weights = load_file(bases["qwen2"] / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    matrix = tensors["blk.0.ffn_up.weight"]
    read = gguf_package.quants.dequantize(matrix.data, matrix.tensor_type)
    exact = weights["model.layers.0.mlp.up_proj.weight"].numpy()
    assert np.abs(read - exact).max() <= np.abs(exact).max() / 127
    assert tensors["blk.0.attn_q.bias"].tensor_type.name == "F32"
    assert np.array_equal(tensors["blk.0.attn_q.bias"].data, weights["model.layers.0.self_attn.q_proj.bias"].numpy())


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (tiny.split_by(QWEN2), False, "qwen2"),
        (tiny.split_by(LLAMA3), True, "llama-bpe"),
        (tiny.split_by(LLAMA3), False, "dbrx"),
        (GPT2, False, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), False, "smollm"),
    ],
    ids=["qwen2", "llama-bpe", "dbrx", "gpt-2", "smollm"],
)
def test_pre_tokenizer_reads_text_alike(pre_tokenizer: object, ignore_merges: bool, name: str, tmp_path: Path) -> None:
    """Each pre-tokenizer that is mapped by its structure gives llama.cpp the ids of transformers."""
    base = nano.build(tmp_path / "base", vocab_size=512)
    tiny.use_tokenizer(base, pre_tokenizer, ignore_merges=ignore_merges, bos=True)
    convert(base, None, tmp_path / "model.gguf", outtype="f16")
    tokenizer = AutoTokenizer.from_pretrained(base)
    with closing(fidelity.Reader(tmp_path / "model.gguf", length=16)) as reader:
        for text in [*tiny.PROMPTS, "1234567 12 a1b2\r\n\r\n x", "\u3000\u00a0tab\t\ttab \u200d²½Ⅷ"]:
            assert reader.ids(text) == tokenizer(text, add_special_tokens=False).input_ids
    assert fields(tmp_path / "model.gguf")["tokenizer.ggml.pre"] == name


def test_vocabulary_ends_turns_and_is_padded(bases: dict[str, Path], tmp_path: Path) -> None:
    """EOS is what the template writes after an answer; special tokens are CONTROL, the padding UNUSED."""
    base = nano.build(tmp_path / "base", vocab_size=300)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    convert(base, None, tmp_path / "model.gguf", outtype="f16")
    found = fields(tmp_path / "model.gguf")
    types = found["tokenizer.ggml.token_type"]
    assert found["tokenizer.ggml.eos_token_id"] == 2
    assert found["tokenizer.ggml.padding_token_id"] == 0
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == nano.CHATML
    assert types[:4] == [3, 3, 3, 1]
    assert len(types) == 300 and types[-1] == 5
    assert found["tokenizer.ggml.tokens"][-1] == "[PAD299]"


def test_same_bytes_in_any_process(bases: dict[str, Path], tmp_path: Path) -> None:
    """Two processes with other hash seeds, directories and homes write the same file, which names no place."""
    adapter = tiny.add_adapter(bases["llama"], tmp_path / "adapter")
    script = (
        "import sys; from pathlib import Path; from backprop_core.export.gguf import convert; "
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), Path('out.gguf'), outtype='bf16')"
    )
    processes = []
    for seed in ("1", "2"):
        home = tmp_path / seed
        home.mkdir()
        shutil.copytree(bases["llama"], home / f"base{seed}")
        environment = {**os.environ, "PYTHONHASHSEED": seed, "HOME": str(home), "PYTHONPATH": os.getcwd()}
        argv = [sys.executable, "-c", script, str(home / f"base{seed}"), str(adapter)]
        processes.append(subprocess.Popen(argv, cwd=home, env=environment))
    assert [process.wait() for process in processes] == [0, 0]
    written = [(tmp_path / seed / "out.gguf").read_bytes() for seed in ("1", "2")]
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]
    general = {name: value for name, value in fields(tmp_path / "1" / "out.gguf").items() if name.startswith("general")}
    assert set(general.values()) == {"llama", "model", 32, 2}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "starts_anywhere"),
    [
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), False),
        (normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), True),
    ],
    ids=["prepended", "always", "never", "first", "words"],
)
def test_sentence_piece_gives_the_same_ids(
    normalizer: Any, pre_tokenizer: Any, starts_anywhere: bool, tmp_path: Path
) -> None:
    """llama.cpp reads text, unknown characters too, as the tokenizer does; "first" only after a special token."""
    base = tiny.build(tmp_path / "base", "mistral", vocab_size=600)
    tiny.use_sentence_piece(base, normalizer, pre_tokenizer)
    convert(base, None, tmp_path / "model.gguf", outtype="f16")
    tokenizer = AutoTokenizer.from_pretrained(base)
    with closing(fidelity.Reader(tmp_path / "model.gguf", length=512)) as reader:
        for text in tiny.PROMPTS:
            text = text if starts_anywhere else f"<|im_start|>{text}"
            assert reader.ids(text) == tokenizer(text, add_special_tokens=False).input_ids


def edited(base: Path, copy: Path, file: str, **changes: object) -> Path:
    """A copy of a base with fields of one of its JSON files changed."""
    shutil.copytree(base, copy)
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**content, **changes}))
    return copy


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["GemmaForCausalLM"]},
        {"hidden_act": "gelu"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_parameters": None, "rope_scaling": {"type": "longrope"}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ],
)
def test_unknown_architecture_is_refused_before_the_weights(
    changes: dict[str, object], bases: dict[str, Path], tmp_path: Path
) -> None:
    """A base that llama.cpp would compute otherwise is refused from its config alone."""
    base = edited(bases["llama"], tmp_path / "base", "config.json", **changes)
    (base / "model.safetensors").unlink()
    with pytest.raises(ArchitectureUnsupported):
        check_supported(base)
    with pytest.raises(ArchitectureUnsupported):
        convert(base, None, tmp_path / "model.gguf", outtype="f16")
    assert not list(tmp_path.glob("*model.gguf*"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}},
            "x+",
        ),
        (
            {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": False}},
            "Meta",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ({"model": {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}}, "splits by"),
        ({"added_tokens": [{"content": "<mask>", "lstrip": True, "rstrip": False}]}, "<mask>"),
    ],
)
def test_unknown_tokenizer_is_refused_by_name(
    changes: dict[str, object], named: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """A tokenizer that llama.cpp would not reproduce is refused, and the message names what it does not know."""
    base = edited(bases["llama"], tmp_path / "base", "tokenizer.json", **changes)
    with pytest.raises(TokenizerUnsupported, match=named.replace("+", r"\+")):
        check_supported(base)


def test_support_is_said_without_torch(bases: dict[str, Path]) -> None:
    """check_supported runs in a process that never loads torch, numpy or gguf."""
    script = (
        "import sys; from pathlib import Path; from backprop_core.export.gguf import check_supported; "
        "check_supported(Path(sys.argv[1])); assert not {'torch', 'numpy', 'gguf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(bases["qwen3"])], check=True)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"target_modules": ["embed_tokens"]},
    ],
    ids=str,
)
def test_other_adapters_are_refused(lora: dict[str, object], tmp_path: Path) -> None:
    """What is more than plain LoRA on linear layers is refused before anything is written."""
    base = tiny.build(tmp_path / "base", "llama", tie_word_embeddings=False)
    adapter = tiny.add_adapter(base, tmp_path / "adapter", **lora)
    with pytest.raises(AdapterMismatch):
        convert(base, adapter, tmp_path / "model.gguf", outtype="f16")
    assert not list(tmp_path.glob("*model.gguf*"))


def test_dora_has_to_be_fused(bases: dict[str, Path], tmp_path: Path) -> None:
    """llama.cpp knows B·A alone: a DoRA adapter is no GGUF adapter, and the hint says what it can be."""
    adapter = tiny.add_adapter(bases["llama"], tmp_path / "adapter", use_dora=True)
    with pytest.raises(AdapterMismatch, match="DoRA") as caught:
        convert_lora(bases["llama"], adapter, tmp_path / "adapter.gguf")
    assert "--format gguf" in caught.value.hint and not list(tmp_path.glob("*.gguf"))


def test_adapter_of_another_base_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    """Shapes that do not fit are an error with a code, not a crash."""
    adapter = tiny.add_adapter(tiny.build(tmp_path / "wide", "llama", intermediate_size=96), tmp_path / "adapter")
    with pytest.raises(AdapterMismatch, match="does not fit"):
        convert(bases["llama"], adapter, tmp_path / "model.gguf", outtype="f16")


def test_nothing_is_left_of_a_failed_write(bases: dict[str, Path], tmp_path: Path) -> None:
    """A value that float16 cannot hold fails the export, keeps the old file and leaves no part of the new one."""
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "model.gguf").write_bytes(b"old")
    with pytest.raises(GGUFExportFailed, match="F16 cannot represent"):
        convert(base, None, tmp_path / "model.gguf", outtype="f16")
    assert (tmp_path / "model.gguf").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    convert(base, None, tmp_path / "model.gguf", outtype="bf16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_finite(dtype: torch.dtype) -> None:
    """Values whose sum overflows are; one NaN or infinity among them, or two that cancel, is found."""
    block = torch.full((64, 64), torch.finfo(dtype).max, dtype=dtype)
    assert finite(block)
    for odd in ([math.nan], [math.inf], [-math.inf], [math.inf, -math.inf]):
        block[7, : len(odd)] = torch.tensor(odd)
        assert not finite(block)


@pytest.mark.parametrize(
    ("template", "error"),
    [(None, ChatTemplateMissing), ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", ChatTemplateUnusable)],
)
def test_template_must_end_turns(
    template: str | None, error: type[Exception], bases: dict[str, Path], tmp_path: Path
) -> None:
    """A tokenizer whose chat template is missing or writes no stop token is not exported."""
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    (base / "chat_template.jinja").unlink()
    if template:
        (base / "chat_template.jinja").write_text(template)
    with pytest.raises(error):
        convert(base, None, tmp_path / "model.gguf", outtype="f16")


def test_progress_reaches_the_end(bases: dict[str, Path], tmp_path: Path) -> None:
    """Progress is reported some hundred times at most, never falls, and ends at the total."""
    seen: list[tuple[int, int]] = []
    convert(
        bases["llama"], None, tmp_path / "a", outtype="f16", on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert 10 < len(seen) <= 102
