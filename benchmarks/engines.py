"""A contender: `python -m benchmarks.engines ENGINE BASE ROWS`. Each turn is one training from the start."""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backprop_core.data import chat_encoding, token_cache
from backprop_core.data.batching import Item, by_budget, collate
from backprop_core.data.batching import items as items_of
from backprop_core.models import loading
from backprop_core.runtime import process_memory
from backprop_core.schema.specs import LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.loop import train
from backprop_core.training.token_budget import cpu_budget
from backprop_core.training.vram_estimate import shape_of
from benchmarks.measure import take_turns
from tests.backprop_core import nano

BATCH, EPOCHS, LENGTH = 8, 1, 512
SAMPLED = 3  # every third row tells whether the losses agree
SPEC = TrainSpec(
    epochs=EPOCHS,
    batch_size=BATCH,
    max_length=LENGTH,
    learning_rate=5e-4,
    warmup=0,  # warm-ups begin at zero there, and not here
    precision="fp32",
    device="cpu",
    lora=LoraSpec(rank=16, alpha=32),
)
Row = dict[str, Any]
Done = dict[str, float]


def ours(base: Path, rows: list[Row]) -> Done:
    """`backprop_core.training.loop.train` on a store of its own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        store = Store(Path(directory))
        loaded = loading.load(base, precision="fp32", device="cpu")
        budget = cpu_budget(shape_of(base.name, loaded.model.config.to_dict()), SPEC)  # as a run chooses it
        result = train(
            loaded,
            nano.commit_rows(store, rows),
            spec=SPEC.model_copy(update={"token_budget": budget}),
            start=None,
            key="0" * 64,
            store=store,
            on_metrics=lambda *_: None,
            should_stop=lambda: False,
        )
        highest = process_memory.peak()
        with loading.adapted(loaded, result.adapter, store):
            after = loss_of(loaded, rows[::SAMPLED])
        store.close()
    return {"tokens": result.tokens, "seconds": result.seconds, "loss": after, "peak": highest}


@torch.inference_mode()
def loss_of(loaded: loading.LoadedBase, rows: list[Row]) -> float:
    """Mean loss per label token."""
    items = items_of(token_cache.flat(chat_encoding.encode(loaded.tokenizer, rows, max_length=LENGTH)))
    groups = by_budget(range(len(items)), [len(one) for one in items], 4096)
    total = sum(float(sum_of_losses(loaded, [items[index] for index in group])) for group in groups)
    return total / sum(len(one.at_n) for one in items)


def sum_of_losses(loaded: loading.LoadedBase, items: list[Item]) -> Tensor:
    batch = collate(items, loaded.device)
    logits_nv = loaded.logits(loaded.states(batch.ids_bt, batch.lengths_b, batch.at_n))
    return torch.nn.functional.cross_entropy(logits_nv, batch.labels_n, reduction="sum")


def trainer(base: Path, rows: list[Row], **settings: Any) -> Done:
    from benchmarks import trainers

    return trainers.trainer(base, rows, **settings)


def trl(base: Path, rows: list[Row], **settings: Any) -> Done:
    from benchmarks import trainers

    return trainers.trl(base, rows, **settings)


GROUPED: dict[str, Any] = {"train_sampling_strategy": "group_by_length"}
ENGINES: dict[str, Callable[[Path, list[Row]], Done]] = {
    "ours": ours,
    "Trainer, length-grouped": partial(trainer, **GROUPED),
    "TRL, length-grouped": partial(trl, **GROUPED),
    "Trainer, defaults": trainer,
}


def main(engine: str, base: Path, data: Path) -> None:
    """Take turns until the pipe closes."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]

    @cache
    def before() -> float:
        return loss_of(loading.load(base, precision="fp32", device="cpu"), rows[::SAMPLED])

    take_turns(lambda: {**ENGINES[engine](base, rows), "loss_before": before()})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
