"""The peak of memory on a machine without a GPU; `make gpu` trains on one."""

import psutil
import torch

from backprop_core.training import peak_memory


def test_the_peak_of_a_process_does_not_fall() -> None:
    """What was used for a moment is in it after it was freed."""
    peak = peak_memory.of(torch.device("cpu"))
    before = peak()
    below = before - psutil.Process().memory_info().rss / 2**30
    block = torch.ones(int((below + 0.5) * 2**28), dtype=torch.float32)
    del block
    assert peak() > before + 0.25
