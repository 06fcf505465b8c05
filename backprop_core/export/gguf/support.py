"""Checks whether a base can be converted to GGUF, from config.json and tokenizer.json alone. No weights, no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from backprop_core.errors import ArchitectureUnsupported, TokenizerUnsupported
from backprop_core.export.gguf.tokenizer import HINT, kind_of
from backprop_core.models.base import read_json
from backprop_core.models.peft_files import tokenizer_home


class Architecture(NamedTuple):
    """The GGUF name of a transformers architecture, and what llama.cpp assumes about it."""

    name: str
    activation: str = "silu"
    rope: frozenset[str] = frozenset({"default", "linear"})
    paired_rotary: bool = False  # llama.cpp rotates neighbouring rows of q and k
    norm_offset: float = 0.0  # transformers adds this to a norm's weight at run time
    sliding: int = 0  # every n-th layer has full attention, the others a sliding window; 0: all layers are alike
    unrotated: int = 0  # every n-th layer has no rotary embedding
    partial_rotary: bool = False  # a part of each head may be unrotated


LLAMA = Architecture("llama", rope=frozenset({"default", "linear", "llama3"}), paired_rotary=True)
GELU = "gelu_pytorch_tanh"
ARCHITECTURES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "SmolLM3ForCausalLM": Architecture("smollm3", paired_rotary=True, unrotated=4),
    "Phi3ForCausalLM": Architecture("phi3", rope=frozenset({"default", "longrope"}), partial_rotary=True),
    "Gemma2ForCausalLM": Architecture("gemma2", GELU, frozenset({"default"}), norm_offset=1, sliding=2),
    "Gemma3ForCausalLM": Architecture("gemma3", GELU, frozenset({"default"}), norm_offset=1, sliding=6),
}
SLIDING, FULL = "sliding_attention", "full_attention"


def check_supported(base: Path, adapter: Path | None = None) -> None:
    """Check before any work that `convert` supports this base. Reads config and tokenizer, no weights; no torch.

    Checks the adapter's own tokenizer if it has one. Raises ArchitectureUnsupported or TokenizerUnsupported.
    """
    check_weights(base)
    config = read_json(base / "config.json")
    name = (config.get("architectures") or ["unnamed"])[0]
    if name not in ARCHITECTURES:
        raise ArchitectureUnsupported(f"no GGUF writer for {name}, only for {', '.join(ARCHITECTURES)}", hint=HINT)
    architecture = ARCHITECTURES[name]
    if (activation := activation_of(config, architecture)) != architecture.activation:
        raise ArchitectureUnsupported(f"no GGUF writer for {name} with {activation}", hint=HINT)
    check_layers(architecture, config)
    for rope in ropes(config):
        check_rope(architecture, rope)
    check_tokenizer(tokenizer_home(base, adapter) / "tokenizer.json")


def check_weights(base: Path) -> None:
    """Raise ArchitectureUnsupported if an adapter cannot be fused into this base's weights."""
    if "quantization_config" in read_json(base / "config.json"):
        raise ArchitectureUnsupported(
            f"{base} has quantized weights; cannot fuse an adapter into them",
            hint="use the full-precision model as the base",
        )


def activation_of(config: Mapping[str, Any], architecture: Architecture) -> Any:
    """The activation function. Gemma's `hidden_activation` takes precedence: its `hidden_act` is wrong."""
    return config.get("hidden_activation") or config.get("hidden_act") or architecture.activation


def check_layers(architecture: Architecture, config: Mapping[str, Any]) -> None:
    """Raise ArchitectureUnsupported if the layers' order or the attention scale differs from llama.cpp's."""
    count = config["num_hidden_layers"]
    asked = config.get("layer_types"), config.get("no_rope_layers"), config.get("query_pre_attn_scalar")
    if architecture.sliding and asked[0] not in (None, every(architecture.sliding, count, SLIDING, FULL)):
        raise ArchitectureUnsupported(f"no GGUF writer for {architecture.name} with other layer_types", hint=HINT)
    if architecture.unrotated and asked[1] not in (None, every(architecture.unrotated, count, 1, 0)):
        raise ArchitectureUnsupported(f"no GGUF writer for {architecture.name} with other no_rope_layers", hint=HINT)
    if asked[2] not in (None, config.get("head_dim", 256)):
        raise ArchitectureUnsupported(f"no GGUF writer for query_pre_attn_scalar={asked[2]}", hint=HINT)


def every(step: int, count: int, most: Any, last: Any) -> list[Any]:
    """A list over the layers with `last` at every `step`-th position."""
    return [last if layer % step == 0 else most for layer in range(1, count + 1)]


def ropes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rotary embeddings of a config.json: one, or one per kind of layer."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return list(rope.values()) if FULL in rope else [rope]


def check_rope(architecture: Architecture, rope: Mapping[str, Any]) -> None:
    """Raise ArchitectureUnsupported for a rotary embedding that llama.cpp computes differently."""
    kind = rope_type(rope)
    partial = rope.get("partial_rotary_factor", 1) != 1
    if kind not in architecture.rope or (partial and not architecture.partial_rotary):
        raise ArchitectureUnsupported(f"no GGUF writer for {kind} rotary scaling in {architecture.name}", hint=HINT)


def rope_type(rope: Mapping[str, Any]) -> str:
    """The kind of rotary scaling, from `rope_parameters` or the older `rope_scaling`."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def check_tokenizer(path: Path) -> None:
    """Raise TokenizerUnsupported if `tokenizer.json` is missing, or llama.cpp would tokenize text differently."""
    if not path.is_file():
        raise TokenizerUnsupported(f"{path.parent} has no tokenizer.json", hint=HINT)
    kind_of(read_json(path))
