"""The learning rate of each step."""

import math

from backprop_core.schema.specs import TrainSpec

LONGEST_WARMUP = 20  # steps


def learning_rate(step: int, total: int, spec: TrainSpec) -> float:
    """Learning rate of a step (counted from 0): linear warmup, then cosine decay to zero."""
    warmup = min(math.ceil(spec.warmup * total), LONGEST_WARMUP)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
