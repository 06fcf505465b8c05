"""Writes a BPE tokenizer's vocabulary, merges, special tokens and chat template to GGUF."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
from transformers import AutoTokenizer

from backprop_core.data.chat_encoding import stop_id
from backprop_core.data.chat_rendering import begins_with_bos
from backprop_core.errors import TokenizerUnsupported
from backprop_core.export.gguf.tokenizer import kind_of
from backprop_core.models.base import optional_json

BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Write tokens, merges or scores, special tokens and chat template of a transformers tokenizer, padded to `size`.

    Raises TokenizerUnsupported, ChatTemplateMissing or ChatTemplateUnusable.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())  # as in training, which may differ from tokenizer.json
    kind = kind_of(spec)
    tokens, types = token_list(spec, size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    end = stop_id(tokenizer)
    bos = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id  # llama.cpp defaults to token 11
    writer.add_tokenizer_model(kind.model)
    writer.add_tokenizer_pre(kind.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if kind.model == "gpt2":
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores(scores(tokens, merges))
        writer.add_add_space_prefix(kind.space_prefix)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(end)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_chat_template(tokenizer.get_chat_template())


def declare(directory: Path, config: Any) -> None:
    """Write the same BOS, EOS and chat template as `add_vocabulary` into a model's tokenizer_config.json.

    llama.cpp's converter reads them from there. [gguf, SpecialVocab] Raises ChatTemplateUnusable.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory, config=config)
    path = directory / "tokenizer_config.json"
    said = {
        "add_bos_token": begins_with_bos(tokenizer),
        "add_eos_token": False,
        "eos_token": tokenizer.convert_ids_to_tokens(stop_id(tokenizer)),
        "chat_template": tokenizer.get_chat_template(),
    }
    path.write_text(json.dumps(optional_json(path) | said), encoding="utf-8")


def scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Token scores: llama.cpp merges the pair with the highest score first, so a score is minus the merge's rank.

    Tokens that no merge produces, such as single characters, get the lowest score.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def token_list(spec: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Texts and types of `size` tokens; unused ids get the type UNUSED."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    special, added = int(gguf.TokenType.CONTROL), int(gguf.TokenType.USER_DEFINED)
    entries = [(i, text, type_of(text, spec["model"])) for text, i in spec["model"]["vocab"].items()]
    entries += [(one["id"], one["content"], special if one["special"] else added) for one in spec["added_tokens"]]
    if (largest := max(i for i, _, _ in entries)) >= size:
        raise TokenizerUnsupported(
            f"the tokenizer has token {largest}, but the model has only {size} embeddings",
            hint="use the model's own tokenizer",
        )
    for i, text, kind in entries:
        tokens[i], types[i] = text, kind
    return tokens, types


def type_of(text: str, model: dict[str, Any]) -> int:
    """The type of a vocabulary token: with byte fallback, `<0x0A>` is a byte."""
    is_byte = model.get("byte_fallback") and BYTE.fullmatch(text)
    return int(gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL)
