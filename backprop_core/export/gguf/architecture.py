"""GGUF hyperparameters of supported architectures: attention heads, context length, rotary embedding."""

import math
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from backprop_core.export.gguf.support import ARCHITECTURES, FULL, Architecture, rope_type


def architecture_of(config: Any) -> Architecture:
    """The GGUF architecture of a transformers config accepted by `check_supported`."""
    return ARCHITECTURES[config.architectures[0]]


def heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key/value heads, head dimension."""
    count = config.num_attention_heads
    size: int = getattr(config, "head_dim", None) or config.hidden_size // count
    return count, config.num_key_value_heads or count, size


def rope_of(config: Any) -> Any:
    """The rotary embedding's parameters; if there are two, those of the layers with full attention."""
    rope = config.rope_parameters
    return rope.get(FULL, rope)


def rotated(config: Any) -> int:
    """Number of rotated dimensions per head."""
    return int(heads(config)[2] * rope_of(config).get("partial_rotary_factor", 1))


def context_length(config: Any) -> int:
    """The maximum context length; limited to a sliding window that llama.cpp does not implement."""
    longest: int = config.max_position_embeddings
    if architecture_of(config).sliding:
        return longest
    return min(longest, getattr(config, "sliding_window", None) or longest)


def add_hyperparameters(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the model's shape and rotary embedding."""
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
    add_rope(writer, config)
    if architecture_of(config).sliding:
        writer.add_sliding_window(config.sliding_window)
        for value, add in (
            (config.attn_logit_softcapping, writer.add_attn_logit_softcapping),
            (config.final_logit_softcapping, writer.add_final_logit_softcapping),
        ):
            if value:
                add(value)


def add_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the rotary embedding, except for factors that are tensors."""
    rope = rope_of(config)
    writer.add_rope_dimension_count(rotated(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    match rope_type(rope):
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "longrope":
            writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
            writer.add_rope_scaling_attn_factors(attention_factor(config))


def attention_factor(config: Any) -> float:
    """longrope's scaling of queries and keys: √(1 + ln(stretch) / ln(original length)). [arXiv 2402.13753]"""
    original = config.original_max_position_embeddings
    stretch = config.max_position_embeddings / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def rope_tensors(config: Any) -> dict[str, npt.NDArray[np.float32]]:
    """Divisors of the rotary frequencies by tensor name, shape (rotated/2,), for llama3 and longrope scaling."""
    rope = rope_of(config)
    match rope_type(rope):
        case "llama3":
            return {"rope_freqs.weight": llama3_factors(config)}
        case "longrope":
            kinds = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
            return {name: np.array(rope[key], dtype=np.float32) for name, key in kinds.items()}
    return {}


def llama3_factors(config: Any) -> npt.NDArray[np.float32]:
    """Llama 3's scaling of the low frequencies.

    Frequencies with wavelengths below original/high_freq_factor stay, those above original/low_freq_factor are divided
    by `factor`, and between the two the inverse is interpolated. [arXiv 2407.21783, transformers
    `_compute_llama3_parameters`]
    """
    rope, size = rope_of(config), heads(config)[2]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    wavelength = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    turns = rope["original_max_position_embeddings"] / wavelength
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors: npt.NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors
