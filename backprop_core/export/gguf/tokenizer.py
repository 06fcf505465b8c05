"""Finds llama.cpp's equivalent of a tokenizer.json; raises TokenizerUnsupported if there is none. No torch."""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from backprop_core.errors import TokenizerUnsupported

LEAVE = "run without --export: training, merging and evaluation work with this base"
HINT = f"set LLAMA_CPP_DIR to a llama.cpp checkout that can convert it, or {LEAVE}"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2, LLAMA3 = CONTRACTION + REST, CONTRACTION + "{1,3}" + REST
BYTES, GPT2_BYTES, DIGITS = "bytes", "bytes, split as GPT-2", "single digits"

# (steps of the pre-tokenizer, whole words before merges) -> llama.cpp's name of the equivalent tokenizer
PRE_TOKENIZERS = {
    ((QWEN2, BYTES), False): "qwen2",
    ((LLAMA3, BYTES), True): "llama-bpe",
    ((LLAMA3, BYTES), False): "dbrx",
    ((GPT2_BYTES,), False): "gpt-2",
    ((DIGITS, GPT2_BYTES), False): "smollm",
}

SPACE = "▁"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, REPLACE]}
WORDS = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


# (normalizer, pre-tokenizer) of a SentencePiece vocabulary -> whether text after a special token gets a space.
# With the scheme "first", only text at the very start does, but a chat starts with a special token.
SPACE_PREFIX = [
    (PREPEND, None, True),
    (None, metaspace("always"), True),
    (None, metaspace("first"), False),
    (None, metaspace("never"), False),
    (REPLACE, WORDS, False),
    (REPLACE, None, False),
]


class Kind(NamedTuple):
    """A llama.cpp tokenizer: its model and pre-tokenizer, and whether it adds a space before text (llama only)."""

    model: Literal["gpt2", "llama"]
    pre: str
    space_prefix: bool = False


def kind_of(spec: Mapping[str, Any]) -> Kind:
    """The llama.cpp tokenizer equivalent to the content of a tokenizer.json. Raises TokenizerUnsupported."""
    model = spec["model"]
    if model["type"] != "BPE" or model.get("end_of_word_suffix"):
        raise TokenizerUnsupported(f"the tokenizer is {model['type']}, not byte-level BPE", hint=HINT)
    if stripping := [token["content"] for token in spec["added_tokens"] if token["lstrip"] or token["rstrip"]]:
        raise TokenizerUnsupported(f"llama.cpp does not strip spaces around {stripping[0]}", hint=HINT)
    return sentence_piece(spec) if model.get("byte_fallback") else byte_level(spec)


def sentence_piece(spec: Mapping[str, Any]) -> Kind:
    """The tokenizer for a SentencePiece vocabulary stored as BPE: spaces are ▁, unknown characters become bytes."""
    steps = spec["normalizer"], spec["pre_tokenizer"]
    for normalizer, pre_tokenizer, prefix in SPACE_PREFIX:
        if steps == (normalizer, pre_tokenizer):
            return Kind("llama", "default", prefix)
    raise TokenizerUnsupported(f"llama.cpp has no tokenizer that splits by {json.dumps(steps)}", hint=HINT)


def byte_level(spec: Mapping[str, Any]) -> Kind:
    """The tokenizer for byte-level BPE with a regex split."""
    if (spec["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise TokenizerUnsupported(f"llama.cpp has no normalizer {spec['normalizer']['type']}", hint=HINT)
    outer = spec["pre_tokenizer"] or {"type": "none"}
    steps = tuple(step(part) for part in outer.get("pretokenizers", [outer]))
    whole_words = bool(spec["model"].get("ignore_merges"))
    if (steps, whole_words) not in PRE_TOKENIZERS:
        raise TokenizerUnsupported(
            f"llama.cpp has no pre-tokenizer that splits by {' then '.join(steps)}"
            + (" and takes whole words before merges" if whole_words else ""),
            hint=HINT,
        )
    return Kind("gpt2", PRE_TOKENIZERS[steps, whole_words])


def step(part: dict[str, Any]) -> str:
    """One step of a pre-tokenizer, as named in PRE_TOKENIZERS, or its JSON."""
    match part:
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            return regex
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(split)}:
            return GPT2_BYTES if split else BYTES
        case {"type": "Digits", "individual_digits": True}:
            return DIGITS
        case _:
            return json.dumps(part, ensure_ascii=False)
