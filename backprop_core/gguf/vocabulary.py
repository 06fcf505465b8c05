"""A byte-level BPE tokenizer in GGUF's words."""

import json
from pathlib import Path
from typing import Any

import gguf

from backprop_core.base import read_json
from backprop_core.errors import ChatTemplateMissing, ChatTemplateUnusable, TokenizerUnsupported

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
HINT = "export with --format merged and convert it with llama.cpp's own converter"


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


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Write tokens, merges, special tokens and chat template of a transformers tokenizer, padded to `size` tokens.

    Raises TokenizerUnsupported, ChatTemplateMissing or ChatTemplateUnusable.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())  # what was trained with: not always tokenizer.json's
    tokens, types = token_list(spec, size)
    merges = spec["model"]["merges"]
    end = end_of_turn(tokenizer, spec)
    bos = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id  # without one, llama.cpp takes token 11
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(spec))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(end)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    writer.add_chat_template(tokenizer.get_chat_template())


def token_list(spec: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Texts and types of `size` tokens; ids that the tokenizer does not use are UNUSED."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    special, added = int(gguf.TokenType.CONTROL), int(gguf.TokenType.USER_DEFINED)
    entries = [(i, text, int(gguf.TokenType.NORMAL)) for text, i in spec["model"]["vocab"].items()]
    entries += [(one["id"], one["content"], special if one["special"] else added) for one in spec["added_tokens"]]
    if (largest := max(i for i, _, _ in entries)) >= size:
        raise TokenizerUnsupported(
            f"the tokenizer has token {largest}, the model only {size} embeddings",
            hint="use the tokenizer that belongs to this model",
        )
    for i, text, kind in entries:
        tokens[i], types[i] = text, kind
    return tokens, types


def end_of_turn(tokenizer: Any, spec: dict[str, Any]) -> int:
    """Id of the added token that the chat template writes after an assistant's answer."""
    if tokenizer.chat_template is None:
        raise ChatTemplateMissing("the tokenizer has no chat template", hint="put a chat_template.jinja beside it")
    answer = "Zyxwv"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    tail = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(answer)[2]
    found = {tail.find(token["content"]): token["id"] for token in spec["added_tokens"] if token["content"] in tail}
    if not found:
        raise ChatTemplateUnusable(
            "the chat template writes no stop token after an answer",
            hint="use the chat template of the model's chat version",
        )
    return int(found[min(found)])
