"""A small base that can already classify: a Llama trained from nothing on the `pool` rows of a directory of tasks."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from backprop_core.data.loading import read_rows, snapshot
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store, file_digest
from backprop_core.store.cache_keys import digest_of
from examples import make_base as recipe
from examples.company import Exchange

EPOCHS, LEARNING_RATE = 16, 1e-3
LAYERS, HIDDEN, VOCABULARY = 2, 192, 2_048


def pool_base(tasks: Path, store: Store) -> Path:
    """The base's directory in the store, built where it is not there yet."""
    files = pools(tasks)
    directory = store.layout.cache / "bases" / recipe_of(tasks)
    if not directory.is_dir():
        made = store.scratch("base")
        build([row for file in files for row in exchanges(file, store)], made)
        directory.parent.mkdir(parents=True, exist_ok=True)
        made.rename(directory)
    return directory


def pools(tasks: Path) -> list[Path]:
    return sorted(tasks.glob("*.pool.jsonl"))


def recipe_of(tasks: Path) -> str:
    """A digest of what the base is trained on, and how."""
    return digest_of([EPOCHS, LEARNING_RATE, LAYERS, HIDDEN, VOCABULARY, *map(file_digest, pools(tasks))])


def exchanges(file: Path, store: Store) -> list[Exchange]:
    """The rows of a file as (what is asked, what is answered)."""
    rows = read_rows(snapshot(str(file), scratch=store.scratch("pool")), DatasetSpec(path=str(file))).rows
    return [(row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in rows]


def build(rows: list[Exchange], directory: Path) -> None:
    """Tokenizer, weights and configuration."""
    torch.manual_seed(0)
    recipe.write_tokenizer(recipe.make_tokenizer(rows, VOCABULARY), directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=512,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=HIDDEN // 4,
            max_position_embeddings=recipe.POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=None,
            pad_token_id=recipe.PAD_ID,
            eos_token_id=recipe.STOP_ID,
        )
    )
    adamw = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    recipe.train(model, recipe.encode(tokenizer, rows) * EPOCHS, [adamw], LEARNING_RATE)
    recipe.write_model(model, directory)
