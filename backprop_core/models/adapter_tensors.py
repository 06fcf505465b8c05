"""Reads and writes a LoRA adapter's tensors and config in PEFT's file layout, byte for byte reproducible."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from backprop_core.models.peft_files import CONFIG, WEIGHTS, portable, read_config, unreadable
from backprop_core.schema.specs import LoraSpec
from backprop_core.store.cache_keys import canonical

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: PEFT's config, and {PEFT file key: float32 tensor} with A (r, in) and B (out, r)."""

    config: dict[str, Any]
    tensors: Tensors


def config_of(spec: LoraSpec, linear: list[str]) -> dict[str, Any]:
    """The PEFT config of an adapter of this spec; `linear` are the names that "all-linear" stands for."""
    targets = linear if spec.target_modules == "all-linear" else spec.target_modules
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha.is_integer() else spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": sorted(targets),
        "bias": "none",
        "use_rslora": spec.variant == "rslora",
        "use_dora": spec.variant == "dora",
    }


def read_adapter(directory: Path) -> Adapter:
    """Read the adapter in a PEFT directory.

    Raises InputNotFound if a file is missing, InputValidationFailed if it cannot be read, AdapterMismatch if it is not
    a LoRA adapter. Never opens pickled weights.
    """
    config = read_config(directory)
    try:
        tensors = safetensors.torch.load_file(directory / WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise unreadable(directory, error) from error
    return Adapter(portable(config), tensors)


def write_adapter(adapter: Adapter, directory: Path) -> None:
    """Write `adapter` into `directory` in PEFT's layout, with float32 weights."""
    (directory / CONFIG).write_text(canonical(portable(adapter.config)) + "\n", encoding="utf-8", newline="\n")
    tensors = {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in adapter.tensors.items()}
    (directory / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
