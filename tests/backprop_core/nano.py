"""A real model in a second: two layers, hidden size 64, random weights, byte-level BPE, ChatML template."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from backprop_core.schema.refs import RowsRef
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ("u", "s"), ("us", "er")]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": None,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with eight merges, ChatML, stop token `<|im_end|>`."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=MERGES))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512
    )
    fast.chat_template = CHATML
    return fast


def build(directory: Path, *, architecture: str = "llama", seed: int = 0, **config: Any) -> Path:
    """Write a base model (fp32 safetensors, config, tokenizer) into `directory`. Same seed, same bytes.

    `architecture` is a transformers model type (llama, mistral, qwen2, qwen3); `config` overrides SHAPE.
    """
    logging.disable_progress_bar()
    fast = tokenizer()
    ids = {"vocab_size": len(fast), "eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**SHAPE, **ids, **config}))
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def chats(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Chat rows of mixed lengths that a small model can learn: the answer repeats a word of the question."""
    rng = random.Random(seed)
    words = ["kettle", "toaster", "lamp", "fan", "heater", "blender", "mixer", "radio"]
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {(word := rng.choice(words))}" + " please" * rng.randint(0, 12)},
                {"role": "assistant", "content": f"{word}!" * rng.randint(1, 3)},
            ]
        }
        for _ in range(count)
    ]


def commit_rows(store: Store, rows: list[dict[str, Any]]) -> RowsRef:
    """Rows as curation commits them."""
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text("".join(canonical(row) + "\n" for row in rows), encoding="utf-8")
        return store.commit(directory, RowsRef, record={}, rows=len(rows))
