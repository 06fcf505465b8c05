"""What a merge did, against float64 numpy on the files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from backprop_core.merging.merge_stats import drift
from backprop_core.merging.strategies import STRATEGIES, merge
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.adapter_tensors import Adapter
from backprop_core.schema.refs import AdapterRef
from backprop_core.schema.specs import LoraSpec, MergeSpec
from backprop_core.store.artifacts import Store


def commit(store: Store, seed: int) -> AdapterRef:
    """A random adapter of two layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_{part}.weight": torch.randn(shape, generator=generator)
        for layer in (0, 1)
        for part, shape in (("A", (4, 16)), ("B", (24, 4)))
    }
    with store.begin("adapter") as directory:
        adapters.write_adapter(Adapter(adapters.config_of(LoraSpec(rank=4), ["up_proj"]), tensors), directory)
        return store.commit(directory, AdapterRef, kind="tuned", record={})


def factor(store: Store, ref: AdapterRef, part: str) -> np.ndarray:
    tensors = load_file(store.local(ref) / "adapter_model.safetensors")
    return np.concatenate([tensors[key].astype(np.float64).ravel() for key in sorted(tensors) if part in key])


@pytest.mark.parametrize(
    ("strategy", "count", "weight"), [("slao", 2, 2**-0.5), ("slao", 9, 1 / 3), ("sequential", 3, 1)]
)
def test_the_weight_of_a_merge_is_its_lambda(tmp_path: Path, strategy: str, count: int, weight: float) -> None:
    """λ comes out of the files alone; moves are relative Frobenius norms over all layers."""
    store = Store(tmp_path)
    before, tuned = commit(store, 1), commit(store, 2)
    after = merge(before, tuned, count=count, spec=MergeSpec(strategy=strategy), store=store)
    found = drift(before, tuned, after, store=store)
    assert found.weight == pytest.approx(weight, rel=1e-6)
    for part, moved in (("lora_A", found.a), ("lora_B", found.b)):
        old, new = factor(store, before, part), factor(store, after, part)
        assert moved == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_strategy_can_be_looked_at(tmp_path: Path, strategy: str) -> None:
    """Whatever the strategy makes of the factors, there are figures."""
    store = Store(tmp_path)
    before, tuned = commit(store, 1), commit(store, 2)
    after = merge(before, tuned, earlier=[before], count=2, spec=MergeSpec(strategy=strategy), store=store)
    found = drift(before, tuned, after, store=store)
    assert found.a >= 0 and found.b > 0 and np.isfinite(found.weight)


def test_a_merge_with_itself_moves_nothing(tmp_path: Path) -> None:
    """Where there was no way to go, λ is 1 and nothing moved."""
    store = Store(tmp_path)
    same = commit(store, 1)
    found = drift(same, same, same, store=store)
    assert (found.a, found.b, found.weight) == (0.0, 0.0, 1.0)
