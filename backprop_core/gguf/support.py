"""What can be converted, from config.json and tokenizer.json alone: no weights are read, no torch is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backprop_core.base import read_json
from backprop_core.errors import ArchitectureUnsupported, TokenizerUnsupported

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2, LLAMA3 = CONTRACTION + REST, CONTRACTION + "{1,3}" + REST
BYTES, GPT2_BYTES, DIGITS = "bytes", "bytes, split as GPT-2", "single digits"

# (steps of the pre-tokenizer, whole words before merges) -> llama.cpp's name for a tokenizer that does the same
PRE_TOKENIZERS = {
    ((QWEN2, BYTES), False): "qwen2",
    ((LLAMA3, BYTES), True): "llama-bpe",
    ((LLAMA3, BYTES), False): "dbrx",
    ((GPT2_BYTES,), False): "gpt-2",
    ((DIGITS, GPT2_BYTES), False): "smollm",
}
HINT = "leave --export away: training, merging and evaluation work with this base"


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
    pre_tokenizer(read_json(path))


def pre_tokenizer(spec: dict[str, Any]) -> str:
    """llama.cpp's `tokenizer.ggml.pre` for the content of a tokenizer.json; raises TokenizerUnsupported."""
    model = spec["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("end_of_word_suffix"):
        raise TokenizerUnsupported(f"the tokenizer is no byte-level BPE but {model['type']}", hint=HINT)
    if (spec["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise TokenizerUnsupported(f"llama.cpp has no normalizer {spec['normalizer']['type']}", hint=HINT)
    if stripping := [token["content"] for token in spec["added_tokens"] if token["lstrip"] or token["rstrip"]]:
        raise TokenizerUnsupported(f"llama.cpp strips no space around {stripping[0]}", hint=HINT)
    outer = spec["pre_tokenizer"] or {"type": "none"}
    steps = tuple(step(part) for part in outer.get("pretokenizers", [outer]))
    whole_words = bool(model.get("ignore_merges"))
    if (steps, whole_words) not in PRE_TOKENIZERS:
        raise TokenizerUnsupported(
            f"llama.cpp has no pre-tokenizer that splits by {' then '.join(steps)}"
            + (" and takes whole words before merges" if whole_words else ""),
            hint=HINT,
        )
    return PRE_TOKENIZERS[steps, whole_words]


def step(part: dict[str, Any]) -> str:
    """One step of a pre-tokenizer as a word that PRE_TOKENIZERS knows, or its JSON."""
    match part:
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            return regex
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(split)}:
            return GPT2_BYTES if split else BYTES
        case {"type": "Digits", "individual_digits": True}:
            return DIGITS
        case _:
            return json.dumps(part, ensure_ascii=False)
