"""Estimates the time of a run: the FLOPs of its tokens divided by the measured speed of a matrix product.

A forward pass takes 2·N FLOPs per token for N parameters. A backward pass takes as many for the activations and, with
LoRA, almost none for the frozen weights. Gradient checkpointing repeats the forward pass. (Kaplan et al., "Scaling Laws
for Neural Language Models", arXiv 2001.08361, section 2.1.)
"""

import time

from backprop_core.schema.specs import TrainSpec
from backprop_core.training.batch_plan import evaluation_steps, total_steps
from backprop_core.training.defaults import Data

FORWARD, STEP, CHECKPOINTED = 2, 4, 6  # FLOPs per parameter and token
EFFICIENCY = 0.33  # training speed relative to a matrix product: measured on one CPU core, with 5M parameters
SIZE = 1024  # of the matrices
LEAST_SECONDS = 0.1  # to measure for


def training_flops(parameters: int, data: Data, spec: TrainSpec) -> float:
    """FLOPs of one training run on this data, without padding."""
    examples = total_steps(data.examples, spec) * min(spec.batch_size, data.examples)
    each = CHECKPOINTED if spec.gradient_checkpointing == "on" else STEP
    return each * parameters * examples * example_tokens(data, spec)


def scoring_flops(parameters: int, data: Data, spec: TrainSpec, rows: int) -> float:
    """FLOPs of scoring one adapter on `rows` rows of this kind."""
    return FORWARD * parameters * rows * example_tokens(data, spec)


def stopping_flops(parameters: int, data: Data, spec: TrainSpec, rows: int) -> float:
    """FLOPs of the evaluations of one training run with early stopping, on `rows` rows; 0 without it."""
    evaluations = len(evaluation_steps(total_steps(data.examples, spec), spec))
    return evaluations * scoring_flops(parameters, data, spec, rows)


def example_tokens(data: Data, spec: TrainSpec) -> float:
    """Average tokens per example."""
    return min(data.tokens / data.examples, spec.max_length)


def seconds(flops: float, speed: float) -> float:
    """Seconds for `flops` on a machine whose matrix product reaches `speed` FLOP/s."""
    return flops / (EFFICIENCY * speed)


def cpu_speed() -> float:
    """FLOP/s of a float32 matrix product on this CPU: the best measurement within a tenth of a second."""
    import numpy as np

    matrix = np.ones((SIZE, SIZE), np.float32)
    out = matrix @ matrix
    best, until = float("inf"), time.perf_counter() + LEAST_SECONDS
    while (begin := time.perf_counter()) < until or best == float("inf"):
        np.matmul(matrix, matrix, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2 * SIZE**3 / best
