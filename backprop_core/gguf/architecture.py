"""What a model of a supported architecture is called in GGUF: hyperparameters and tensor names."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from backprop_core.base import read_json
from backprop_core.errors import ArchitectureUnsupported
from backprop_core.gguf.vocabulary import check_tokenizer

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}
HINT = "export with --format merged and convert it with llama.cpp's own converter"


def check_supported(base: Path) -> None:
    """Say before any work whether `convert` can write this base. Reads its config and tokenizer, no weights; no torch.

    Raises ArchitectureUnsupported or TokenizerUnsupported.
    """
    config = read_json(base / "config.json")
    name = (config.get("architectures") or ["unnamed"])[0]
    if name not in ARCHITECTURES:
        raise ArchitectureUnsupported(f"no GGUF writer for {name}, only for {', '.join(ARCHITECTURES)}", hint=HINT)
    if "quantization_config" in config:
        raise ArchitectureUnsupported(
            f"{base} holds quantized weights; an adapter is not fused into those",
            hint="use the full-precision model as the base",
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ArchitectureUnsupported(f"no GGUF writer for {name} with {config['hidden_act']}", hint=HINT)
    check_rope(ARCHITECTURES[name], config.get("rope_parameters") or config.get("rope_scaling") or {})
    check_tokenizer(base / "tokenizer.json")


def check_rope(architecture: gguf.MODEL_ARCH, rope: Mapping[str, Any]) -> None:
    """Raise ArchitectureUnsupported for a rotary embedding that llama.cpp would compute otherwise."""
    kind = rope_type(rope)
    known = {"default", "linear", "llama3"} if architecture == gguf.MODEL_ARCH.LLAMA else {"default", "linear"}
    if kind not in known or rope.get("partial_rotary_factor", 1) != 1:
        raise ArchitectureUnsupported(f"no GGUF writer for {kind} rotary scaling in {architecture.name}", hint=HINT)


def rope_type(rope: Mapping[str, Any]) -> str:
    """The kind of rotary scaling, from `rope_parameters` or the older `rope_scaling`."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def architecture_of(config: Any) -> gguf.MODEL_ARCH:
    """GGUF's architecture of a transformers config that `check_supported` accepted."""
    return ARCHITECTURES[config.architectures[0]]


def heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key/value heads, dimension of a head."""
    count = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // count
    return count, config.num_key_value_heads or count, size


def context_length(config: Any) -> int:
    """Positions that the file may be used for: within a sliding window, full attention is the same."""
    window = getattr(config, "sliding_window", None)
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def add_hyperparameters(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the shape of the model and its rotary embedding."""
    count, kv_count, size = heads(config)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(count)
    writer.add_head_count_kv(kv_count)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if rope_type(config.rope_parameters) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def rope_factors(config: Any) -> "np.ndarray[Any, np.dtype[np.float32]] | None":
    """Divisors of the rotary frequencies, shape (head_dim/2,), where Llama 3 stretches the low ones; else None.

    Wavelengths below original/high_freq_factor stay, those above original/low_freq_factor are divided by `factor`,
    and between the two the inverse is interpolated. [arXiv 2407.21783, transformers `_compute_llama3_parameters`]
    """
    rope = config.rope_parameters
    if rope_type(rope) != "llama3":
        return None
    size = heads(config)[2]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    wavelength = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    turns = rope["original_max_position_embeddings"] / wavelength
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
