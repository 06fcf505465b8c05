"""How long a run takes, about: the FLOPs of its tokens over the speed of a short matrix product.

A forward pass takes 2·N FLOPs a token for N parameters, a backward pass as many for the activations and, with LoRA,
next to none for the frozen weights; gradient checkpointing does the forward pass twice. (Kaplan et al., "Scaling Laws
for Neural Language Models", arXiv 2001.08361, section 2.1.)
"""

import time

from backprop_core.schema.specs import TrainSpec
from backprop_core.training.batch_plan import total_steps
from backprop_core.training.defaults import Data

FORWARD, STEP, CHECKPOINTED = 2, 4, 6  # FLOPs a parameter and token
EFFICIENCY = 0.33  # of the matrix product's speed, in training: one core of a CPU, a model of 5M parameters
SIZE = 1024  # of the matrices
LEAST_SECONDS = 0.1  # that are measured


def training_flops(parameters: int, data: Data, spec: TrainSpec) -> float:
    """Of one run on this data, padding not counted."""
    examples = total_steps(data.examples, spec) * min(spec.batch_size, data.examples)
    each = CHECKPOINTED if spec.gradient_checkpointing == "on" else STEP
    return each * parameters * examples * example_tokens(data, spec)


def scoring_flops(parameters: int, data: Data, spec: TrainSpec, rows: int) -> float:
    """Of scoring one adapter on so many rows like these."""
    return FORWARD * parameters * rows * example_tokens(data, spec)


def example_tokens(data: Data, spec: TrainSpec) -> float:
    """Tokens of an example, on average."""
    return min(data.tokens / data.examples, spec.max_length)


def seconds(flops: float, speed: float) -> float:
    """What `flops` take where a matrix product reaches `speed` FLOP/s."""
    return flops / (EFFICIENCY * speed)


def cpu_speed() -> float:
    """FLOP/s of a float32 matrix product on this CPU: the best of those that a tenth of a second has room for."""
    import numpy as np

    matrix = np.ones((SIZE, SIZE), np.float32)
    out = matrix @ matrix
    best, until = float("inf"), time.perf_counter() + LEAST_SECONDS
    while (begin := time.perf_counter()) < until or best == float("inf"):
        np.matmul(matrix, matrix, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2 * SIZE**3 / best
