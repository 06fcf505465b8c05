"""Saves and restores the states of torch's random generators, by device."""

import torch

from backprop_core.models.adapter_tensors import Tensors


def states() -> Tensors:
    """The states of the CPU and of every GPU."""
    cuda = {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return {"cpu": torch.get_rng_state(), **cuda}


def put(states: Tensors) -> None:
    """Restore the generators of the devices on this machine."""
    torch.set_rng_state(states["cpu"])
    for index in range(torch.cuda.device_count()):
        if (name := f"cuda:{index}") in states:
            torch.cuda.set_rng_state(states[name], index)


def group(rank: int) -> str:
    """Name of a process's generator states in a checkpoint."""
    return f"rng-{rank}" if rank else "rng"
