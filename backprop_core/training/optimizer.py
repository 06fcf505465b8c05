"""AdamW for LoRA, by torch or with 8-bit moments by bitsandbytes; its state as tensors for checkpoints."""

import importlib
from importlib.metadata import version
from typing import Any

import torch

from backprop_core.models.adapter_tensors import Tensors
from backprop_core.schema.specs import TrainSpec

CONSTANT = {"qmap1", "qmap2"}  # bitsandbytes' code books, the same for every parameter


def made(model: Any, spec: TrainSpec) -> Any:
    """The optimizer of a PEFT model's trained parameters."""
    groups = parameter_groups(model, spec)
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)
    paged = spec.optimizer == "paged_adamw_8bit"
    return importlib.import_module("bitsandbytes").optim.AdamW(
        groups, lr=spec.learning_rate, optim_bits=8, is_paged=paged
    )


def fingerprint(spec: TrainSpec) -> dict[str, str]:
    """What a run's exact bits depend on, besides torch; empty for torch's own AdamW."""
    return {} if spec.optimizer == "adamw" else {"optimizer": spec.optimizer, "bitsandbytes": version("bitsandbytes")}


def parameter_groups(model: Any, spec: TrainSpec) -> list[dict[str, Any]]:
    """Optimizer parameter groups by weight decay and by `ratio` to the learning rate, in the model's order.

    LoRA+ trains B faster than A [arXiv 2402.12354]; DoRA's magnitudes have no weight decay.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        ratio = spec.lora_plus or 1.0 if ".lora_B." in name else 1.0
        decay = 0.0 if ".lora_magnitude_vector." in name else spec.weight_decay
        if parameter.requires_grad:
            groups.setdefault((ratio, decay), []).append(parameter)
    return [{"params": group, "ratio": ratio, "weight_decay": decay} for (ratio, decay), group in groups.items()]


def state(optimizer: Any) -> Tensors:
    """Moments and steps as `NUMBER.NAME`, by the parameter's number over all groups."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, parameter in enumerate(parameters)
        for name, value in optimizer.state.get(parameter, {}).items()
        if name not in CONSTANT
    }


def restore(optimizer: Any, saved: Tensors) -> None:
    """Continue from a state that `state` has returned, bit for bit."""
    moments: dict[int, Tensors] = {}
    for key, tensor in saved.items():
        number, _, name = key.partition(".")
        moments.setdefault(int(number), {})[name] = tensor
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    else:
        restore_8bit(optimizer, moments)


def restore_8bit(optimizer: Any, moments: dict[int, Tensors]) -> None:
    """Fill the state that bitsandbytes creates, which is in paged memory where that is used."""
    places = [
        (group, parameter, index, position)
        for index, group in enumerate(optimizer.param_groups)
        for position, parameter in enumerate(group["params"])
    ]
    for number, (group, parameter, index, position) in enumerate(places):
        optimizer.init_state(group, parameter, index, position)
        own = optimizer.state[parameter]
        for name, tensor in moments.get(number, {}).items():
            own[name] = tensor.item() if name == "step" else own[name].copy_(tensor)
