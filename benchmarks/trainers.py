"""transformers Trainer and TRL's SFTTrainer, told to do what ours does. Imported only where one of them takes part."""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from backprop_core.data import chat_encoding
from backprop_core.models import loading
from backprop_core.runtime import process_memory
from benchmarks.engines import BATCH, EPOCHS, LENGTH, SAMPLED, SPEC, Done, Row, loss_of


class Clock(TrainerCallback):
    """From before the first step to after the last."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def trainer(base: Path, rows: list[Row], **settings: Any) -> Done:
    """transformers Trainer; the labels are those that ours has."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    made = Trainer(
        model=with_lora(base),
        args=TrainingArguments(**arguments(**settings)),
        train_dataset=features(tokenizer, rows, LENGTH),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    return timed(base, rows, made)


def features(tokenizer: Any, rows: list[Row], length: int) -> list[dict[str, Any]]:
    """The rows as a Trainer takes them, with the labels that ours has."""
    return [
        {
            "input_ids": ids,
            "labels": [token if is_label else -100 for token, is_label in zip(ids, labels, strict=True)],
            "length": len(ids),
        }
        for ids, labels, _ in chat_encoding.encode(tokenizer, rows, max_length=length)
    ]


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
    highest = process_memory.peak()
    tokens = sum(len(features["input_ids"]) for features in made.train_dataset) * EPOCHS
    tokenizer = AutoTokenizer.from_pretrained(base)
    bare = made.model.base_model.model.eval()
    after = loss_of(loading.LoadedBase(bare, tokenizer, "fp32", torch.device("cpu")), rows[::SAMPLED])
    return {"tokens": tokens, "seconds": clock.seconds, "loss": after, "peak": highest}
