"""The same training by ours and by others on one device, for `make gpu`: each in a process of its own.

python -m benchmarks.gpu_engines ENGINE BASE DEVICE

Prints {"rate": real tokens a second, "memory": bytes at its peak}, or {"missing": a package}. Rows have an eighth to
all of the length, in two epochs, of which the second counts: the first one compiles and warms up.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LENGTH = {"cuda": 1024, "cpu": 64}  # tokens of the longest row
BATCH, STEPS, EPOCHS = 16, 6, 2  # steps of an epoch
RANK, ALPHA, RATE = 16, 32, 2e-4
GROUPED = {"train_sampling_strategy": "group_by_length"}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Found = dict[str, Any]


def compared(name: str, base: Path, device: str) -> Found:
    """What an engine reaches, in a process of its own; with `failed`, the last line of what it said."""
    command = [sys.executable, "-m", "benchmarks.gpu_engines", name, str(base), device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["nothing was said"])[-1]}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(device: str) -> list[dict[str, Any]]:
    """Chats of an eighth to all of the length, most of it the answer."""
    made = []
    for number in range(BATCH * STEPS):
        words = [str(number * 31 + index) for index in range(LENGTH[device] * (1 + number % 8) // 24)]
        turns = [{"role": "user", "content": f"Count {number}."}, {"role": "assistant", "content": " ".join(words)}]
        made.append({"messages": turns})
    return made


def ours(base: Path, device: str) -> Found:
    """`backprop_core.training.loop.train`."""
    from backprop_core.models import loading
    from backprop_core.schema.specs import LoraSpec, TrainSpec
    from backprop_core.store.artifacts import Store
    from backprop_core.training.loop import train
    from tests.backprop_core import nano

    marks: list[float] = []
    spec = TrainSpec(
        **{"epochs": EPOCHS, "batch_size": BATCH, "precision": "bf16", "device": device, "learning_rate": RATE},
        **{"max_length": LENGTH[device], "token_budget": 8 * LENGTH[device]},
        lora=LoraSpec(rank=RANK, alpha=ALPHA),
    )
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        store = Store(Path(name))
        train(
            loading.load(base, precision="bf16", device=device),
            nano.commit_rows(store, rows(device)),
            spec=spec,
            **{"start": None, "key": "0" * 64, "store": store, "should_stop": lambda: False},
            on_metrics=lambda *_: marks.append(now(device)),
        )
        store.close()
    return figures(base, device, marks)


def trainer(base: Path, device: str) -> Found:
    """transformers' Trainer, which batches rows of like length."""
    return trained(base, device, adapted(base, device, "sdpa"))


def trl_padding_free(base: Path, device: str) -> Found:
    """TRL's SFTTrainer without padding where flash-attn is installed, else with rows of like length."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    is_free = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    own = {"padding_free": True, "max_length": None} if is_free else {**GROUPED, "max_length": LENGTH[device]}
    made = SFTTrainer(
        model=adapted(base, device, "flash_attention_2" if is_free else "sdpa"),
        args=SFTConfig(**arguments(device), **own, gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"input_ids": one["input_ids"]} for one in features(base, device)]),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[clock := clock_of(device)],
    )
    made.train()
    return {**figures(base, device, clock.marks), "note": "padding-free" if is_free else "padded: no flash-attn"}


def unsloth(base: Path, device: str) -> Found:
    """Unsloth's model in the Trainer."""
    if importlib.util.find_spec("unsloth") is None:
        return {"missing": "unsloth"}
    from unsloth import FastLanguageModel  # before transformers, which it patches

    model, _ = FastLanguageModel.from_pretrained(
        str(base), max_seq_length=LENGTH[device], dtype=torch.bfloat16, load_in_4bit=False
    )
    lora = {"r": RANK, "lora_alpha": ALPHA, "target_modules": LINEAR, "use_gradient_checkpointing": False}
    return trained(base, device, FastLanguageModel.get_peft_model(model, **lora))


ENGINES: dict[str, Callable[[Path, str], Found]] = {
    "ours": ours,
    "Trainer, length-grouped": trainer,
    "TRL": trl_padding_free,
    "Unsloth": unsloth,
}


def trained(base: Path, device: str, model: Any) -> Found:
    """A model in transformers' Trainer."""
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    made = Trainer(
        model=model,
        args=TrainingArguments(**arguments(device), **GROUPED),
        train_dataset=features(base, device),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(base)),
        callbacks=[clock := clock_of(device)],
    )
    made.train()
    return figures(base, device, clock.marks)


def arguments(device: str) -> dict[str, Any]:
    """What the Trainers are told, so that they do what ours does."""
    from benchmarks import trainers

    own = {"per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "learning_rate": RATE}
    return trainers.arguments(**own, bf16=True, use_cpu=device == "cpu")


def features(base: Path, device: str) -> list[dict[str, Any]]:
    """The rows as the Trainers take them."""
    from transformers import AutoTokenizer

    from benchmarks import trainers

    return trainers.features(AutoTokenizer.from_pretrained(base), rows(device), LENGTH[device])


def adapted(base: Path, device: str, attention: str) -> Any:
    """The base in bf16 with a float32 adapter on all linear layers."""
    import peft
    from transformers import AutoModelForCausalLM

    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation=attention).to(device)
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(bare, lora)


def clock_of(device: str) -> Any:
    """A callback that notes when each step has ended, in `marks`."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(now(device))

    return Clock()


def now(device: str) -> float:
    """The time when the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def figures(base: Path, device: str, marks: list[float]) -> Found:
    """Real tokens a second of the second epoch, and the memory at its peak; `marks` are the ends of all steps."""
    from backprop_core.runtime import process_memory

    assert len(marks) == EPOCHS * STEPS, f"{len(marks)} steps"
    tokens = sum(one["length"] for one in features(base, device))
    memory = torch.cuda.max_memory_reserved() if device == "cuda" else process_memory.peak()
    return {"rate": tokens / (marks[-1] - marks[STEPS - 1]), "memory": memory}


if __name__ == "__main__":
    print(json.dumps(ENGINES[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])))
