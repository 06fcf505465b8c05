"""The most memory that a training has used."""

from collections.abc import Callable

import torch

from backprop_core.runtime import process_memory


def of(device: torch.device) -> Callable[[], float]:
    """Start to count; the result says the peak since then in GiB: of a GPU, or since its start that of the process."""
    if device.type != "cuda":
        return lambda: process_memory.peak() / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: float(torch.cuda.max_memory_allocated(device) / 2**30)
