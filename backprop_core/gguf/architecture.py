"""What a model of a supported architecture is called in GGUF: hyperparameters and tensor names."""

import math
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from backprop_core.gguf.support import ARCHITECTURES, rope_type


def architecture_of(config: Any) -> str:
    """GGUF's name for the architecture of a transformers config that `check_supported` accepted."""
    return ARCHITECTURES[config.architectures[0]]


def heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key/value heads, dimension of a head."""
    count = config.num_attention_heads
    size: int = getattr(config, "head_dim", None) or config.hidden_size // count
    return count, config.num_key_value_heads or count, size


def context_length(config: Any) -> int:
    """Positions that the file may be used for: within a sliding window, full attention is the same."""
    longest: int = config.max_position_embeddings
    return min(longest, getattr(config, "sliding_window", None) or longest)


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


def rope_factors(config: Any) -> npt.NDArray[np.float32] | None:
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
    factors: npt.NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors
