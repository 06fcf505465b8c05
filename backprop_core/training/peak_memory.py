"""The most memory that a training has used."""

import sys
from collections.abc import Callable
from contextlib import suppress

import torch


def of(device: torch.device) -> Callable[[], float]:
    """Start to count; the result says the peak since then in GiB: of a GPU, or since its start that of the process."""
    if device.type != "cuda":
        return of_process
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: float(torch.cuda.max_memory_allocated(device) / 2**30)


def of_process() -> float:
    """The peak of this process in GiB; 0 where the system does not count it."""
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)
    return 0.0
