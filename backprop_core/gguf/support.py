"""What can be converted, from config.json and tokenizer.json alone: no weights are read, no torch is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backprop_core.base import read_json
from backprop_core.errors import ArchitectureUnsupported, TokenizerUnsupported
from backprop_core.gguf.tokenizer import HINT, kind_of

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


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


def check_rope(architecture: str, rope: Mapping[str, Any]) -> None:
    """Raise ArchitectureUnsupported for a rotary embedding that llama.cpp would compute otherwise."""
    kind = rope_type(rope)
    known = {"default", "linear", "llama3"} if architecture == "llama" else {"default", "linear"}
    if kind not in known or rope.get("partial_rotary_factor", 1) != 1:
        raise ArchitectureUnsupported(f"no GGUF writer for {kind} rotary scaling in {architecture}", hint=HINT)


def rope_type(rope: Mapping[str, Any]) -> str:
    """The kind of rotary scaling, from `rope_parameters` or the older `rope_scaling`."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def check_tokenizer(path: Path) -> None:
    """Raise TokenizerUnsupported if `tokenizer.json` is missing or would split text otherwise in llama.cpp."""
    if not path.is_file():
        raise TokenizerUnsupported(f"{path.parent} has no tokenizer.json", hint=HINT)
    kind_of(read_json(path))
