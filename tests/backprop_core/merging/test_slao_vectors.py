"""SLAO against reference vectors: float64, computed without LAPACK; `convention` in the file says what is what."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backprop_core.evaluation.forgetting_matrix import evaluation
from backprop_core.merging import slao
from backprop_core.schema.refs import Cell, Scores

A, B = (f"base_model.model.model.layers.0.mlp.up_proj.lora_{part}.weight" for part in "AB")
VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "slao_vectors.json").read_text())


def away(found: torch.Tensor, expected: list[list[float]]) -> float:
    """The largest difference."""
    assert found.dtype == torch.float32
    return float(np.abs(found.double().numpy() - np.array(expected)).max())


@pytest.mark.parametrize("name", ["V1_rational", "V2_lcg"])
def test_starts_and_merges_of_a_whole_line(name: str) -> None:
    """Each run starts and merges as the vectors say, to 1e-6, in float32."""
    merged, before = None, None
    for run in VECTORS[name]:
        if before is not None:
            start = slao.start_from(before)
            assert away(start[A], run["init"]["A"]) < 1e-6 and away(start[B], run["init"]["B"]) < 1e-6
        before = {A: torch.tensor(run["A_ft"]), B: torch.tensor(run["B_ft"])}
        merged = slao.merge(merged, before, run=run["i"])
        assert away(merged[A], run["A_merge"]) < 1e-6 and away(merged[B], run["B_merge"]) < 1e-6


@pytest.mark.parametrize("name", ["V3_illconditioned_A", "V4_idempotent"])
def test_starts_of_difficult_rows(name: str) -> None:
    """Rows that are orthonormal already stay; nearly dependent ones become what float32 can tell of them."""
    vectors = VECTORS[name]
    tolerance = max(1e-6, vectors.get("cond", 0) * 2**-24)
    start = slao.start_from({A: torch.tensor(vectors["A"]), B: torch.zeros(2, len(vectors["A"]))})[A]
    assert away(start, vectors["init"]) < tolerance
    assert away(start @ start.T, np.eye(len(start)).tolist()) < 1e-5


@pytest.mark.parametrize("count", VECTORS["V5_weights"])
def test_what_each_run_counts_for(count: str) -> None:
    """After n runs the merged B holds each run's B with the weight of the vectors."""
    runs = int(count)
    merged = None
    for i in range(1, runs + 1):
        one = torch.zeros(runs, 1)
        one[i - 1] = 1
        merged = slao.merge(merged, {A: torch.ones(1, 2), B: one}, run=i)
    assert merged is not None and away(merged[B].T, [VECTORS["V5_weights"][count]]) < 1e-6


def test_weights() -> None:
    """λ(i) is the vectors'."""
    assert all(slao.weight(int(i)) == pytest.approx(value, abs=1e-12) for i, value in VECTORS["V6_lambda"].items())


def test_metrics() -> None:
    """Average, backward transfer and forgetting of the vectors' matrix, whose rows are tasks."""
    expected, names = VECTORS["V7_metrics"], ["a", "b", "c"]

    def cell(percent: float) -> Cell:
        share = percent / 100
        scores = Scores(digest="0" * 64, rows=1, tokens=1, loss=0, token_accuracy=share, exact_match=share)
        return Cell(scores=scores)

    rows = [
        {name: cell(scores[run]) for name, scores in zip(names, expected["a"], strict=True) if scores[run] is not None}
        for run in range(3)
    ]
    found = evaluation(
        tasks=names, watch=[], trained=[["a"], ["b"], ["c"]], rows=rows, base=rows[-1], metric="exact_match"
    )
    assert 100 * found.average == pytest.approx(expected["AA"])
    assert 100 * (found.backward_transfer or 0) == pytest.approx(expected["BWT"])
    assert [100 * value for value in found.forgetting] == pytest.approx([*expected["forgetting_per_task"], 0])
