"""Initialization of the LoRA variants: PiSSA, LoftQ, DoRA.

PiSSA and LoftQ start from nonzero factors A0 and B0. The base is never changed, so the committed adapter is the
difference B·A - B0·A0.

- PiSSA: s·B0·A0 is the base's principal part; a frozen adapter subtracts it, so that the model starts as the base.
  [arXiv 2404.02948]
- LoftQ: s·B0·A0 is most of the quantization error, so that the model starts close to the unquantized base. One
  alternation of the paper, so that all runs share the same quantized base. [arXiv 2310.08659]
- DoRA: the magnitudes start as the norms of the base's rows. [arXiv 2402.09353]
"""

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backprop_core.errors import AdapterMismatch, RankTooLarge
from backprop_core.models.adapter_tensors import Adapter, Tensors
from backprop_core.models.loading import LoadedBase, put, taken, tensor_files
from backprop_core.models.peft_files import FILE_PREFIX
from backprop_core.schema.specs import LoraSpec

ITERATIONS = 16  # of the randomized SVD, as in PiSSA
FROZEN = "start"  # PEFT's name for the adapter that subtracts B0·A0

# r = LoRA rank, i = input features, o = output features, s = the adapter's scale


def begin(base: LoadedBase, model: Any, lora: LoraSpec) -> Tensors:
    """Initialize a fresh PEFT model for a variant; returns A0 and B0 by PEFT file key, empty if B0 is zero.

    Raises RankTooLarge or AdapterMismatch.
    """
    match lora.variant:
        case "dora":
            norms = {f"{name}.lora_magnitude_vector": W_oi.norm(dim=1) for name, W_oi in weights(model)}
            put(model, taken(model) | norms)
        case "pissa":
            first = factors(weights(model), lora)
            put(model, first)
            take_off(model, first)
            return first
        case "loftq":
            first = factors(lost(model, Path(base.model.name_or_path)), lora)
            put(model, first)
            return first
    return {}


def again(model: Any, first: Tensors) -> None:
    """Restore the frozen adapter that subtracts B0·A0, after an interruption."""
    if FROZEN in model.peft_config:
        put(model, negative(first), name=FROZEN)


def learned(config: dict[str, Any], tensors: Tensors, first: Tensors) -> Adapter:
    """B·A - B0·A0 as one adapter on the untouched base: [B, -B0]·[A; A0], of twice the rank and the same scale."""
    if not first:
        return Adapter(config, tensors)
    both = {key: torch.cat([tensors[key], tensor], axis(key)) for key, tensor in negative(first).items()}
    return Adapter({**config, "r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}, both)


def axis(key: str) -> int:
    """The axis of a factor whose length is the rank."""
    return 0 if ".lora_A." in key else 1


def negative(first: Tensors) -> Tensors:
    """A0 and -B0."""
    return {key: tensor if ".lora_A." in key else -tensor for key, tensor in first.items()}


def take_off(model: Any, first: Tensors) -> None:
    """Add a frozen adapter -B0·A0 to the model."""
    config = copy.copy(model.peft_config["default"])
    config.lora_dropout = 0.0
    model.add_adapter(FROZEN, config)
    put(model, negative(first), name=FROZEN)
    model.base_model.set_adapter(["default", FROZEN])
    for name, parameter in model.named_parameters():
        if f".{FROZEN}." in name:
            parameter.requires_grad_(False)


def factors(matrices: Iterator[tuple[str, Tensor]], lora: LoraSpec) -> Tensors:
    """A0 and B0 of each matrix, by PEFT file key."""
    scale = lora.alpha / lora.rank
    return {
        f"{name}.lora_{part}.weight": tensor.cpu()
        for name, W_oi in matrices
        for part, tensor in zip("AB", low_rank(W_oi, lora.rank, scale), strict=True)
    }


def low_rank(W_oi: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A (r, i) and B (o, r) with s·B·A the best rank-r approximation of W by a randomized SVD; each gets √Σ.

    Raises RankTooLarge if W is smaller than the rank.
    """
    most = min(W_oi.shape)
    if rank > most:
        raise RankTooLarge(
            f"rank {rank} is too large for a matrix of shape {tuple(W_oi.shape)}", hint=f"set lora.rank={most} or less"
        )
    U_or, S_r, V_ir = torch.svd_lowrank(W_oi, q=min(2 * rank, most), niter=ITERATIONS)
    root_r = (S_r[:rank] / scale).sqrt()
    return (V_ir[:, :rank] * root_r).T.contiguous(), (U_or[:, :rank] * root_r).contiguous()


def layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers of a PEFT model that have an adapter, with their names in PEFT's file."""
    end = ".lora_A.default.weight"
    names = [name.removesuffix(end) for name, _ in model.named_parameters() if name.endswith(end)]
    return ((name, model.get_submodule(name)) for name in names)


def weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The base weights of these layers, (o, i) in float32, dequantized."""
    dequantized = importlib.import_module("peft.utils.integrations").dequantize_module_weight
    return ((name, dequantized(layer.get_base_layer()).detach().float()) for name, layer in layers(model))


def lost(model: Any, base: Path) -> Iterator[tuple[str, Tensor]]:
    """The quantization error of these layers' weights. Raises AdapterMismatch."""
    files = tensor_files(base)
    for name, W_oi in weights(model):
        stored = f"{name.removeprefix(FILE_PREFIX)}.weight"
        if stored not in files:
            raise AdapterMismatch(f"the base's files have no {stored}", hint="set training.lora.variant=lora")
        yield name, files[stored].get_tensor(stored).to(W_oi) - W_oi
