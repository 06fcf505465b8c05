"""How many padded tokens a micro-batch has, if the user does not say: what the memory of the device lets fit.

`oom_recovery` halves it when memory runs out all the same.
"""

from backprop_core.schema.specs import TrainSpec
from backprop_core.training.vram_estimate import GIB, Setting, Shape, activations, longest

SAFE = 0.85  # share of the memory that an estimate may use
CPU_ACTIVATIONS = GIB  # on a CPU larger micro-batches take more memory and are no faster
LEAST_BUDGET = 256


def cpu_budget(shape: Shape, spec: TrainSpec) -> int:
    """The largest power of two up to the default whose activations are at most 1 GiB."""
    token = activations(shape, Setting(precision="fp32", checkpointing=False, lora=spec.lora), 1)
    most = min(CPU_ACTIVATIONS // token, TrainSpec().token_budget)
    return max(LEAST_BUDGET, (1 << most.bit_length()) // 2)


def gpu_budget(shape: Shape, setting: Setting, card: int) -> int:
    """The largest power of two up to the default that fits into `card` bytes; 0 if not even one token fits."""
    most = min(longest(shape, setting, int(SAFE * card)), TrainSpec().token_budget)
    return (1 << most.bit_length()) // 2
