"""Merging committed adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch

from backprop_core import adapter as adapters
from backprop_core.adapter import Adapter
from backprop_core.errors import AdapterMismatch, BackpropError, ConfigInvalid, RankMismatch
from backprop_core.refs import AdapterRef
from backprop_core.specs import LoraSpec
from backprop_core.store import Store
from backprop_core.strategies import STRATEGIES, merge

A, B = (f"base_model.model.model.layers.0.mlp.up_proj.lora_{part}.weight" for part in "AB")
CONFIG = adapters.config_of(LoraSpec(rank=2, alpha=4), ["up_proj"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def commit(store: Store, seed: int, *, rank: int = 2, **config: Any) -> AdapterRef:
    torch.manual_seed(seed)
    tensors = {A: torch.randn(rank, 5), B: torch.randn(3, rank)}
    with store.begin("adapter") as directory:
        adapters.write(Adapter({**CONFIG, **config}, tensors), directory)
        return store.commit(directory, AdapterRef, kind="tuned", record={})


def tensors(store: Store, ref: AdapterRef) -> dict[str, torch.Tensor]:
    return adapters.read(store.local(ref)).tensors


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_first_merge_has_the_digest_of_the_tuned(store: Store, strategy: str) -> None:
    """Merging the first run is the identity down to the bytes, whatever the strategy."""
    tuned = commit(store, 1)
    merged = merge(None, tuned, count=1, strategy=strategy, store=store)
    assert (merged.digest, merged.kind) == (tuned.digest, "merged")


def test_slao_averages_B_and_takes_A(store: Store) -> None:
    """The third merge moves B by 1/sqrt(3) towards the tuned one, and holds the tuned A."""
    old, new = commit(store, 1), commit(store, 2)
    merged = tensors(store, merge(old, new, count=3, strategy="slao", store=store))
    before, after = tensors(store, old), tensors(store, new)
    expected = before[B].double().numpy() + (after[B] - before[B]).double().numpy() / 3**0.5
    assert abs(merged[B].double().numpy() - expected).max() < 1e-6
    assert torch.equal(merged[A], after[A])


def test_sequential_is_the_last_run_alone(store: Store) -> None:
    """Without a merge, what ships is what was tuned last."""
    old, new = commit(store, 1), commit(store, 2)
    assert merge(old, new, count=2, strategy="sequential", store=store).digest == new.digest


def test_only_slao_starts_from_orthonormal_rows() -> None:
    """SLAO's next run starts from an orthonormal A, the sequential one from the adapter as it is."""
    assert {name: strategy.orthonormal for name, strategy in STRATEGIES.items()} == {"slao": True, "sequential": False}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "changed, error",
    [
        ({"lora_alpha": 8}, AdapterMismatch),
        ({"use_rslora": True}, AdapterMismatch),
        ({"use_dora": True}, AdapterMismatch),
        ({"target_modules": ["down_proj"]}, AdapterMismatch),
        ({"alpha_pattern": {"up_proj": 8}}, AdapterMismatch),
        ({"r": 3, "rank": 3}, RankMismatch),
    ],
)
def test_another_shape_is_refused(
    store: Store, strategy: str, changed: dict[str, Any], error: type[BackpropError]
) -> None:
    """Another alpha, scaling, rank or set of target modules is a coded error, and nothing is committed."""
    old, new = commit(store, 1), commit(store, 2, **changed)
    before = store.count()
    with pytest.raises(error):
        merge(old, new, count=2, strategy=strategy, store=store)
    assert store.count() == before


def test_dropout_and_defaults_do_not_matter(store: Store) -> None:
    """What changes only the training, or spells out a default, is no other shape."""
    old, new = commit(store, 1), commit(store, 2, lora_dropout=0.1, rank_pattern={}, lora_bias=False)
    merge(old, new, count=2, strategy="slao", store=store)


def test_unknown_strategy_is_refused(store: Store) -> None:
    """The message lists the strategies there are."""
    with pytest.raises(ConfigInvalid) as caught:
        merge(None, commit(store, 1), count=1, strategy="ties", store=store)
    assert "slao" in caught.value.hint
