"""A contender: `python -m benchmarks.engines ENGINE BASE ROWS`. Each turn is one training from the start."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from backprop_core import chat, model
from backprop_core.batch import Item, by_budget, collate, item
from backprop_core.specs import LoraSpec, TrainSpec
from backprop_core.store import Store
from backprop_core.training.loop import train
from benchmarks.measure import take_turns
from tests.core import nano

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


class Clock(TrainerCallback):
    """From before the first step to after the last."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def ours(base: Path, rows: list[Row]) -> Done:
    """`backprop_core.training.loop.train` on a store of its own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        store = Store(Path(directory))
        loaded = model.load(base, precision="fp32", device="cpu")
        result = train(
            loaded,
            nano.commit_rows(store, rows),
            spec=SPEC,
            start=None,
            key="0" * 64,
            store=store,
            on_metrics=lambda *_: None,
            should_stop=lambda: False,
        )
        with model.adapted(loaded, result.adapter, store):
            after = loss_of(loaded, rows[::SAMPLED])
        store.close()
    return {"tokens": result.tokens, "seconds": result.seconds, "loss": after}


def trainer(base: Path, rows: list[Row], **settings: Any) -> Done:
    """transformers Trainer; the labels are those that ours has."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    features = [
        {
            "input_ids": ids,
            "labels": [token if is_label else -100 for token, is_label in zip(ids, labels, strict=True)],
            "length": len(ids),
        }
        for ids, labels, _ in chat.encode(tokenizer, rows, max_length=LENGTH)
    ]
    made = Trainer(
        model=with_lora(base),
        args=TrainingArguments(**arguments(**settings)),
        train_dataset=features,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    return timed(base, rows, made)


def trl(base: Path, rows: list[Row], **settings: Any) -> Done:
    """TRL's SFTTrainer, which tokenizes and masks by itself."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    faster: dict[str, Any] = {"assistant_only_loss": True, "max_length": LENGTH, "gradient_checkpointing": False}
    made = SFTTrainer(
        model=with_lora(base),
        args=SFTConfig(**arguments(**settings), **faster),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    return timed(base, rows, made)


def arguments(**settings: Any) -> dict[str, Any]:
    """What both Trainers are told, so that they do what ours does."""
    return {
        "output_dir": "/var/tmp/unused",
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "learning_rate": SPEC.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": SPEC.weight_decay,
        "max_grad_norm": SPEC.max_grad_norm,
        "optim": "adamw_torch_fused",
        "seed": SPEC.seed,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        **settings,
    }


def with_lora(base: Path) -> Any:
    """The base with LoRA on all linear layers."""
    import peft

    torch.manual_seed(SPEC.seed)
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = SPEC.lora
    return peft.get_peft_model(
        bare, peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def timed(base: Path, rows: list[Row], made: Any) -> Done:
    """Train, and measure what came out as ours is measured."""
    clock = Clock()
    made.add_callback(clock)
    made.train()
    tokens = sum(len(features["input_ids"]) for features in made.train_dataset) * EPOCHS
    tokenizer = AutoTokenizer.from_pretrained(base)
    bare = made.model.base_model.model.eval()
    after = loss_of(model.LoadedBase(bare, tokenizer, "fp32", torch.device("cpu")), rows[::SAMPLED])
    return {"tokens": tokens, "seconds": clock.seconds, "loss": after}


@torch.inference_mode()
def loss_of(loaded: model.LoadedBase, rows: list[Row]) -> float:
    """Mean loss per label token."""
    items = [item(example) for example in chat.encode(loaded.tokenizer, rows, max_length=LENGTH)]
    groups = by_budget(range(len(items)), [len(one) for one in items], 4096)
    total = sum(float(sum_of_losses(loaded, [items[index] for index in group])) for group in groups)
    return total / sum(len(one.at_n) for one in items)


def sum_of_losses(loaded: model.LoadedBase, items: list[Item]) -> Tensor:
    batch = collate(items, loaded.device)
    logits_nv = loaded.logits(loaded.states(batch.ids_bt, batch.lengths_b, batch.at_n))
    return torch.nn.functional.cross_entropy(logits_nv, batch.labels_n, reduction="sum")


ENGINES: dict[str, Callable[[Path, list[Row]], Done]] = {
    "ours": ours,
    "Trainer, length-grouped": lambda base, rows: trainer(base, rows, train_sampling_strategy="group_by_length"),
    "TRL, length-grouped": lambda base, rows: trl(base, rows, train_sampling_strategy="group_by_length"),
    "Trainer, defaults": trainer,
}


def main(engine: str, base: Path, data: Path) -> None:
    """Take turns until the pipe closes."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    before = loss_of(model.load(base, precision="fp32", device="cpu"), rows[::SAMPLED])
    take_turns(lambda: {**ENGINES[engine](base, rows), "loss_before": before})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
