"""Model presets (`--preset`): hub ids and shapes of common models, as in their config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backprop_core.errors import ConfigInvalid
from backprop_core.models.base import config
from backprop_core.schema.specs import ModelSpec
from backprop_core.training.defaults import learning_rate
from backprop_core.training.vram_estimate import Shape, shape_of


@dataclass(frozen=True)
class Preset:
    """A model's shape; `models` are the hub ids with this shape, the chat version first, which sets the length."""

    models: tuple[str, ...]
    shape: Shape


def preset(
    models: str,
    kind: str,
    sizes: tuple[int, int, int],
    heads: tuple[int, int, int],
    vocabulary: int,
    *,
    tied: bool,
    length: int,
) -> Preset:
    """`sizes`: hidden size, intermediate size, layers; `heads`: query heads, key/value heads, head dimension."""
    shape = Shape(
        model_type=kind,
        hidden_size=sizes[0],
        intermediate_size=sizes[1],
        num_hidden_layers=sizes[2],
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=heads[2],
        vocab_size=vocabulary,
        max_position_embeddings=length,
        tie_word_embeddings=tied,
    )
    return Preset(tuple(models.split()), shape)


PRESETS = {
    "qwen2.5-0.5b": preset(
        "Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-0.5B",
        "qwen2", (896, 4864, 24), (14, 2, 64), 151_936, tied=True, length=32_768,
    ),
    "qwen2.5-1.5b": preset(
        "Qwen/Qwen2.5-1.5B-Instruct Qwen/Qwen2.5-1.5B",
        "qwen2", (1536, 8960, 28), (12, 2, 128), 151_936, tied=True, length=32_768,
    ),
    "qwen2.5-3b": preset(
        "Qwen/Qwen2.5-3B-Instruct Qwen/Qwen2.5-3B",
        "qwen2", (2048, 11_008, 36), (16, 2, 128), 151_936, tied=True, length=32_768,
    ),
    "qwen2.5-7b": preset(
        "Qwen/Qwen2.5-7B-Instruct Qwen/Qwen2.5-7B",
        "qwen2", (3584, 18_944, 28), (28, 4, 128), 152_064, tied=False, length=32_768,
    ),
    "qwen3-4b": preset(
        "Qwen/Qwen3-4B Qwen/Qwen3-4B-Base",
        "qwen3", (2560, 9728, 36), (32, 8, 128), 151_936, tied=True, length=40_960,
    ),
    "qwen3-8b": preset(
        "Qwen/Qwen3-8B Qwen/Qwen3-8B-Base",
        "qwen3", (4096, 12_288, 36), (32, 8, 128), 151_936, tied=False, length=40_960,
    ),
    "llama-3.2-1b": preset(
        "meta-llama/Llama-3.2-1B-Instruct meta-llama/Llama-3.2-1B",
        "llama", (2048, 8192, 16), (32, 8, 64), 128_256, tied=True, length=131_072,
    ),
    "llama-3.2-3b": preset(
        "meta-llama/Llama-3.2-3B-Instruct meta-llama/Llama-3.2-3B",
        "llama", (3072, 8192, 28), (24, 8, 128), 128_256, tied=True, length=131_072,
    ),
    "llama-3.1-8b": preset(
        "meta-llama/Llama-3.1-8B-Instruct meta-llama/Llama-3.1-8B",
        "llama", (4096, 14_336, 32), (32, 8, 128), 128_256, tied=False, length=131_072,
    ),
    "mistral-7b": preset(
        "mistralai/Mistral-7B-Instruct-v0.3 mistralai/Mistral-7B-v0.3",
        "mistral", (4096, 14_336, 32), (32, 8, 128), 32_768, tied=False, length=32_768,
    ),
    "phi-4-mini": preset(
        "microsoft/Phi-4-mini-instruct",
        "phi3", (3072, 8192, 32), (24, 8, 128), 200_064, tied=True, length=131_072,
    ),
    "smollm3-3b": preset(
        "HuggingFaceTB/SmolLM3-3B HuggingFaceTB/SmolLM3-3B-Base",
        "smollm3", (2048, 11_008, 36), (16, 4, 128), 128_256, tied=True, length=65_536,
    ),
    "gemma-2-2b": preset(
        "google/gemma-2-2b-it google/gemma-2-2b",
        "gemma2", (2304, 9216, 26), (8, 4, 256), 256_000, tied=True, length=8192,
    ),
    "gemma-2-9b": preset(
        "google/gemma-2-9b-it google/gemma-2-9b",
        "gemma2", (3584, 14_336, 42), (16, 8, 256), 256_000, tied=True, length=8192,
    ),
    "gemma-3-1b": preset(
        "google/gemma-3-1b-it google/gemma-3-1b-pt",
        "gemma3_text", (1152, 6912, 26), (4, 1, 256), 262_144, tied=True, length=32_768,
    ),
}  # fmt: skip


def find(name: str) -> Preset | None:
    """Look up a preset by its name or by a hub id."""
    return PRESETS.get(name.lower()) or next((known for known in PRESETS.values() if name in known.models), None)


def fields(name: str) -> dict[str, Any]:
    """The spec fields that `--preset` sets: model and learning rate. Raises ConfigInvalid."""
    known = find(name)
    if known is None:
        raise ConfigInvalid(f"unknown preset {name}", hint=f"choose one of {', '.join(PRESETS)}")
    rate, _ = learning_rate(known.shape)
    return {"model.name": known.models[0], "training.learning_rate": rate}


def shape_for(model: ModelSpec) -> Shape:
    """The shape of a model, from a preset or from its config.json.

    Raises InputNotFound, ModelLoadFailed or ArchitectureUnsupported.
    """
    known = None if Path(model.name).expanduser().is_dir() else find(model.name)
    return known.shape if known else shape_of(model.name, config(model))
