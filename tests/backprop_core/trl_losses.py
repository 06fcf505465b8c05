"""TRL's own losses of a batch, in a process of their own: its import takes long, and warns.

Started as `tests.backprop_core.trl_losses TRAINED REFERENCE BATCHES`, two models and a file of JSON. Prints for each
loss its value, and the norm of its gradient on one weight.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOTrainer

from tests.backprop_core import nano

BETA = 0.3
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.75}
TURNS = {name: [{"role": "assistant", "content": f"{name}!"}] for name in ("chosen", "rejected", "completion")}
ASKED = {"prompt": [{"role": "user", "content": "Say lamp"}]}


def main(trained: Path, reference: Path, batches: Path) -> None:
    asked = {
        name: {field: torch.tensor(values) for field, values in batch.items()}
        for name, batch in json.loads(batches.read_text()).items()
    }
    options = {"output_dir": str(batches.parent / "trl"), "report_to": [], "bf16": False, "use_cpu": True}
    options |= {"gradient_checkpointing": False, "beta": BETA}

    def models() -> dict[str, Any]:
        return {"model": load(trained), "ref_model": load(reference), "processing_class": nano.tokenizer()}

    pairs = Dataset.from_list([{**ASKED, "chosen": TURNS["chosen"], "rejected": TURNS["rejected"]}])
    rated = Dataset.from_list([{**ASKED, "completion": TURNS["completion"], "label": good} for good in (True, False)])
    dpo = DPOTrainer(args=DPOConfig(**options), train_dataset=pairs, **models())
    kto = KTOTrainer(
        args=KTOConfig(per_device_train_batch_size=2, **options, **WEIGHTS), train_dataset=rated, **models()
    )
    found = {name: of_trainer(trainer, asked[name]) for name, trainer in (("dpo", dpo), ("kto", kto))}
    print(json.dumps({**found, "orpo": of_orpo(load(trained), asked["dpo"])}))


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def of_trainer(trainer: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    """The loss that a trainer computes, dropout aside."""
    trainer.model.eval()
    return told(trainer.model, trainer.compute_loss(trainer.model, batch))


def of_orpo(model: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    """TRL's odds ratio of its own log-probabilities, and transformers' loss of the chosen answers."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chosen, rejected = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True).chunk(2)
    beta = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    ratios, *_ = ORPOTrainer.odds_ratio_loss(beta, chosen, rejected)
    half = len(labels) // 2
    likelihood = model.loss_function(logits[:half], labels[:half], vocab_size=logits.shape[-1])
    return told(model, likelihood - ratios.mean())


def told(model: Any, loss: torch.Tensor) -> list[float]:
    loss.backward()
    return [loss.item(), model.model.layers[0].mlp.up_proj.weight.grad.norm().item()]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
