"""A byte-level BPE tokenizer in GGUF's words."""

import json
from typing import Any

import gguf

from backprop_core.chat import Controls, answer
from backprop_core.errors import TokenizerUnsupported
from backprop_core.gguf.support import pre_tokenizer


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Write tokens, merges, special tokens and chat template of a transformers tokenizer, padded to `size` tokens.

    Raises TokenizerUnsupported, ChatTemplateMissing or ChatTemplateUnusable.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())  # what was trained with: not always tokenizer.json's
    tokens, types = token_list(spec, size)
    merges = spec["model"]["merges"]
    end = end_of_turn(tokenizer)
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


def end_of_turn(tokenizer: Any) -> int:
    """Id of the token that ends an answer: the one that training learned to write there."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    turn = answer(tokenizer, Controls(tokenizer), messages)
    return int(tokenizer(turn.text[: turn.end], add_special_tokens=False).input_ids[-1])
