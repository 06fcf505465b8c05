"""Merging committed adapters, every strategy against float64 numpy that shares no code with it."""

import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from backprop_core.errors import AdapterMismatch, BackpropError, RankMismatch
from backprop_core.merging.strategies import STRATEGIES, merge
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.adapter_tensors import Adapter
from backprop_core.schema.refs import AdapterRef
from backprop_core.schema.specs import LoraSpec, MergeSpec, Strategy
from backprop_core.store.artifacts import Store

A, B = (f"base_model.model.model.layers.0.mlp.up_proj.lora_{part}.weight" for part in "AB")
NORM = "base_model.model.model.norm.weight"
CONFIG = adapters.config_of(LoraSpec(rank=2, alpha=4), ["up_proj"])
ON_PRODUCTS = ["delta", "svd", "ties", "dare"]
Matrix = np.ndarray[Any, Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def commit(store: Store, seed: int, *, rank: int = 2, turn: float | None = None, **config: Any) -> AdapterRef:
    """A tuned adapter; with `turn` the same B·A by other factors."""
    torch.manual_seed(seed)
    tensors = {A: torch.randn(rank, 7), B: torch.randn(6, rank), NORM: torch.randn(3)}
    if turn is not None:
        G = torch.tensor([[1.0, turn], [0.5, -2.0]])
        tensors |= {B: tensors[B] @ G, A: torch.linalg.inv(G) @ tensors[A]}
    with store.begin("adapter") as directory:
        adapters.write_adapter(Adapter({**CONFIG, **config}, tensors), directory)
        return store.commit(directory, AdapterRef, kind="tuned", record={})


def tensors(store: Store, ref: AdapterRef) -> dict[str, Matrix]:
    return {key: tensor.double().numpy() for key, tensor in adapters.read_adapter(store.local(ref)).tensors.items()}


def merge_all(store: Store, tuned: list[AdapterRef], spec: MergeSpec) -> list[AdapterRef]:
    """The merged adapter after each run."""
    merged: list[AdapterRef] = []
    for index, new in enumerate(tuned):
        earlier = tuned[:index] if spec.takes_all else []
        last = merged[-1] if merged else None
        merged.append(merge(last, new, earlier=earlier, count=index + 1, spec=spec, store=store))
    return merged


def best_of_rank(W: Matrix, rank: int = 2) -> Matrix:
    U, S, V = np.linalg.svd(W)
    S[rank:] = 0
    return U[:, : len(S)] @ np.diag(S) @ V[: len(S)]


def test_every_strategy_that_can_be_asked_is_there() -> None:
    """The spec's names are the names of the functions."""
    assert set(get_args(Strategy)) == STRATEGIES.keys()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_first_merge_has_the_digest_of_the_tuned(store: Store, strategy: Strategy) -> None:
    """Merging the first run is the identity down to the bytes, whatever the strategy."""
    tuned = commit(store, 1)
    merged = merge(None, tuned, count=1, spec=MergeSpec(strategy=strategy), store=store)
    assert (merged.digest, merged.kind) == (tuned.digest, "merged")


WEIGHTS: list[tuple[MergeSpec, Callable[[int], float], bool]] = [
    (MergeSpec(), lambda i: i**-0.5, False),
    (MergeSpec(strategy="slao-kept"), lambda i: i**-0.5, False),
    (MergeSpec(strategy="slao-plain"), lambda i: i**-0.5, False),
    (MergeSpec(merge_a=True), lambda i: i**-0.5, True),
    (MergeSpec(weight="1/i"), lambda i: 1 / i, False),
    (MergeSpec(weight=0.3, merge_a=True), lambda i: 0.3, True),
    (MergeSpec(strategy="average"), lambda i: 1 / i, True),
    (MergeSpec(strategy="average", weight="1/sqrt(i)"), lambda i: i**-0.5, True),
]


@pytest.mark.parametrize("spec, weight, merges_a", WEIGHTS)
def test_averages_of_factors(store: Store, spec: MergeSpec, weight: Callable[[int], float], merges_a: bool) -> None:
    """B follows B += λ(i)·(B_tuned - B) over five runs; A is the last one, or follows the same rule."""
    tuned = [commit(store, seed) for seed in range(5)]
    runs = [tensors(store, ref) for ref in tuned]
    expected = dict(runs[0])
    for i, run in enumerate(runs[1:], 2):
        moved = {key: expected[key] + weight(i) * (run[key] - expected[key]) for key in run}
        expected = moved if merges_a else {**moved, A: run[A]}
    found = tensors(store, merge_all(store, tuned, spec)[-1])
    assert all(np.abs(found[key] - expected[key]).max() < 1e-6 for key in expected)


def test_the_average_is_the_mean(store: Store) -> None:
    """A and B averaged by 1/i are the means of all tuned A and B."""
    tuned = [commit(store, seed) for seed in range(4)]
    found = tensors(store, merge_all(store, tuned, MergeSpec(strategy="average"))[-1])
    for key in (A, B, NORM):
        assert np.allclose(found[key], np.mean([tensors(store, ref)[key] for ref in tuned], 0), atol=1e-6)


def test_a_number_is_an_exponential_moving_average(store: Store) -> None:
    """With λ a number and A merged, the merged adapter is SuRe's slow one, step for run: Σ λ·(1-λ)^(n-i)·θ_i."""
    tuned, spec = [commit(store, seed) for seed in range(6)], MergeSpec(merge_a=True, weight=0.3)
    last = tensors(store, merge_all(store, tuned, spec)[-1])
    weights = [(1 - 0.3) ** 5, *(0.3 * (1 - 0.3) ** (5 - i) for i in range(1, 6))]
    assert sum(weights) == pytest.approx(1)
    for key in (A, B):
        expected = sum(w * tensors(store, ref)[key] for w, ref in zip(weights, tuned, strict=True))
        assert np.abs(last[key] - expected).max() < 1e-6


def test_sequential_is_the_last_run_alone(store: Store) -> None:
    """Without a merge, what ships is what was tuned last."""
    tuned = [commit(store, seed) for seed in range(3)]
    assert merge_all(store, tuned, MergeSpec(strategy="sequential"))[-1].digest == tuned[-1].digest


def running_mean(W: list[Matrix]) -> Matrix:
    merged = W[0]
    for i, (_, new) in enumerate(pairwise(W), 2):
        merged = best_of_rank(merged + (new - merged) / i)
    return merged


def trimmed_and_elected(W: list[Matrix]) -> Matrix:
    """TIES, entry by entry: 9 of 42 entries stay, the heavier sign wins, the mean of those that have it."""
    trimmed = []
    for one in W:
        least = np.sort(np.abs(one).ravel())[-9]
        trimmed.append(np.where(np.abs(one) >= least, one, 0))
    result = np.zeros_like(W[0])
    for place in np.ndindex(*result.shape):
        values = [one[place] for one in trimmed if one[place]]
        agreeing = [value for value in values if np.sign(value) == np.sign(sum(values))]
        result[place] = np.mean(agreeing) if agreeing else 0
    return result


def dropped_and_scaled(W: list[Matrix]) -> Matrix:
    """DARE with half of the entries dropped, by the coins of key and run."""
    total = np.zeros_like(W[0])
    for run, one in enumerate(W):
        seed = int.from_bytes(hashlib.sha256(f"{A}:{run}".encode()).digest()[:8]) >> 1
        kept = torch.rand(one.shape, generator=torch.Generator().manual_seed(seed)).numpy() >= 0.5
        total += one * kept * 2
    return total / len(W)


@pytest.mark.parametrize(
    "strategy, oracle",
    [
        ("delta", running_mean),
        ("svd", lambda W: best_of_rank(np.mean(W, 0))),
        ("ties", lambda W: best_of_rank(trimmed_and_elected(W))),
        ("dare", lambda W: best_of_rank(dropped_and_scaled(W))),
    ],
)
def test_merges_of_products(store: Store, strategy: Strategy, oracle: Callable[[list[Matrix]], Matrix]) -> None:
    """ΔW is the oracle's best product of rank 2 after four runs; what is no factor is averaged by λ."""
    tuned = [commit(store, seed) for seed in range(4)]
    runs = [tensors(store, ref) for ref in tuned]
    found = tensors(store, merge_all(store, tuned, MergeSpec(strategy=strategy))[-1])
    assert np.abs(found[B] @ found[A] - oracle([run[B] @ run[A] for run in runs])).max() < 1e-5
    expected = runs[0][NORM]
    for i, run in enumerate(runs[1:], 2):
        expected = expected + (run[NORM] - expected) * (1 / i if strategy == "delta" else i**-0.5)
    assert np.abs(found[NORM] - expected).max() < 1e-6


@pytest.mark.parametrize("strategy", [*ON_PRODUCTS, "average"])
def test_the_factors_do_not_matter_to_merges_of_products(store: Store, strategy: Strategy) -> None:
    """B·G and G⁻¹·A merge to the same factors as B and A where the strategy works on ΔW, and only there."""
    spec = MergeSpec(strategy=strategy)
    plain = merge_all(store, [commit(store, seed) for seed in range(3)], spec)[-1]
    turned = merge_all(store, [commit(store, seed, turn=seed / 3) for seed in range(3)], spec)[-1]
    one, other = tensors(store, plain), tensors(store, turned)
    same = all(np.abs(one[key] - other[key]).max() < 1e-4 for key in (A, B))
    assert same == (strategy in ON_PRODUCTS)


@pytest.mark.parametrize("rank, out, width", [(3, 2, 9), (3, 9, 2)])
def test_a_product_of_less_rank_is_filled_with_zeros(store: Store, rank: int, out: int, width: int) -> None:
    """Where a layer is narrower than the rank, the factors keep their shape and their product is exact."""
    torch.manual_seed(0)
    pairs = [{A: torch.randn(rank, width), B: torch.randn(out, rank)} for _ in range(2)]
    refs = []
    for pair in pairs:
        with store.begin("adapter") as directory:
            adapters.write_adapter(Adapter({**CONFIG, "r": rank}, pair), directory)
            refs.append(store.commit(directory, AdapterRef, kind="tuned", record={}))
    found = tensors(store, merge_all(store, refs, MergeSpec(strategy="svd"))[-1])
    assert (found[A].shape, found[B].shape) == ((rank, width), (out, rank))
    mean = sum(pair[B].double().numpy() @ pair[A].double().numpy() for pair in pairs) / 2
    assert np.abs(found[B] @ found[A] - mean).max() < 1e-5


def test_only_slao_starts_from_orthonormal_rows() -> None:
    """The next run starts from an orthonormal A with slao and slao-kept, from the adapter as it is with the others."""
    specs = [MergeSpec(strategy=strategy) for strategy in get_args(Strategy)]
    assert {s.strategy for s in specs if s.orthonormal_start} == {"slao", "slao-kept"}
    assert {s.strategy for s in specs if s.keeps_function} == {"slao-kept"}
    assert {s.strategy for s in specs if s.takes_all} == {"svd", "ties", "dare"}


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
    store: Store, strategy: Strategy, changed: dict[str, Any], error: type[BackpropError]
) -> None:
    """Another alpha, scaling, rank or set of target modules is a coded error, and nothing is committed."""
    old, new = commit(store, 1), commit(store, 2, **changed)
    before = store.count()
    with pytest.raises(error):
        merge(old, new, earlier=[old], count=2, spec=MergeSpec(strategy=strategy), store=store)
    assert store.count() == before


def test_dropout_and_defaults_do_not_matter(store: Store) -> None:
    """What changes only the training, or spells out a default, is no other shape."""
    old, new = commit(store, 1), commit(store, 2, lora_dropout=0.1, rank_pattern={}, lora_bias=False)
    merge(old, new, count=2, spec=MergeSpec(), store=store)
