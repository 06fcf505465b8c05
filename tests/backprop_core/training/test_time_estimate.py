"""How long a run takes: the formula against counting by hand, and the speed against a matrix product of torch's."""

import time

import pytest
import torch

from backprop_core.schema.specs import EarlyStopping, TrainSpec
from backprop_core.training.defaults import Data
from backprop_core.training.time_estimate import (
    EFFICIENCY,
    cpu_speed,
    scoring_flops,
    seconds,
    stopping_flops,
    training_flops,
)

DATA = Data(examples=100, tokens=15_000, label_tokens=8_000, length=300)  # 150 tokens each
SPEC = TrainSpec(epochs=2, batch_size=10, max_length=512)


def test_flops_of_a_training() -> None:
    """4·N·T, 6·N·T with checkpointing: T are the tokens of every example of every step, cut at the length."""
    million = 10**6
    assert training_flops(million, DATA, SPEC) == 4 * million * 2 * 15_000
    assert training_flops(million, DATA, SPEC.model_copy(update={"gradient_checkpointing": "on"})) == 180e9
    assert training_flops(million, DATA, SPEC.model_copy(update={"steps": 5})) == 4 * million * 5 * 10 * 150
    assert training_flops(million, DATA, SPEC.model_copy(update={"max_length": 100})) == 4 * million * 2 * 10_000
    assert training_flops(million, DATA.model_copy(update={"examples": 3, "tokens": 450}), SPEC) == 4 * million * 900


def test_flops_of_scoring() -> None:
    """2·N a token: forward alone."""
    assert scoring_flops(10**6, DATA, SPEC, rows=20) == 2e6 * 20 * 150
    stopping = SPEC.model_copy(update={"early_stopping": EarlyStopping(eval_steps=0.25)})
    assert stopping_flops(10**6, DATA, stopping, rows=20) == 4 * 2e6 * 20 * 150
    assert stopping_flops(10**6, DATA, SPEC, rows=20) == 0
    assert seconds(EFFICIENCY * 1e12, 1e12) == pytest.approx(1)


def test_speed_of_this_cpu() -> None:
    """A float32 product of numpy's is as fast as torch's, within what a busy machine does to either."""
    matrix = torch.ones(1024, 1024)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - begin)
    assert 0.1 < cpu_speed() / (2 * 1024**3 / min(times)) < 10
