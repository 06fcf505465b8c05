"""The Unsloth backend: loads the base with Unsloth and patches PEFT models, in a worker used for nothing else."""

import importlib
from pathlib import Path
from typing import Any

import torch

from backprop_core.errors import ModelLoadFailed
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.field_types import Precision


def load(path: Path, *, precision: Precision, max_length: int) -> LoadedBase:
    """Load a base with Unsloth on the GPU, without its gradient checkpointing. Raises ModelLoadFailed."""
    try:
        model, tokenizer = fast().from_pretrained(
            model_name=str(path),
            max_seq_length=max_length,
            dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
            load_in_4bit=precision == "nf4",
            use_gradient_checkpointing=False,
            use_exact_model_name=True,
            fix_tokenizer=False,
            trust_remote_code=False,
        )
    except (OSError, ValueError, NotImplementedError) as error:
        raise ModelLoadFailed(
            f"Unsloth cannot load {path}: {error}", hint="set training.backend=transformers"
        ) from error
    return LoadedBase(model.eval().requires_grad_(False), tokenizer, precision, model.device)


def speed_up(model: Any) -> None:
    """Patch a PEFT model with Unsloth's kernels. They stay in the base, which cannot be used for anything else."""
    fast().patch_peft_model(model, False)


def fast() -> Any:
    return importlib.import_module("unsloth").FastLanguageModel
