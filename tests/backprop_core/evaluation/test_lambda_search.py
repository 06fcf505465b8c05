"""λ searched: against merging with each λ, committing it and evaluating it."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from backprop_core.errors import RankMismatch
from backprop_core.evaluation.lambda_search import WEIGHTS, search
from backprop_core.evaluation.scoring import evaluate
from backprop_core.merging.strategies import merge
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.adapter_tensors import Adapter
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import AdapterRef, RowsRef
from backprop_core.schema.specs import MergeSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano


def commit(store: Store, like: AdapterRef, *, rank: int | None = None) -> AdapterRef:
    """A random adapter of the same shape, or of another rank."""
    known = adapters.read_adapter(store.local(like))
    torch.manual_seed(0)
    tensors = {key: 0.1 * torch.randn(tensor.shape) for key, tensor in known.tensors.items()}
    with store.begin("adapter") as directory:
        adapters.write_adapter(Adapter({**known.config, **({"r": rank} if rank else {})}, tensors), directory)
        return store.commit(directory, AdapterRef, kind="tuned", record={})


@pytest.fixture(scope="module")
def other(shared: Store) -> RowsRef:
    """Rows of a second task, fewer and other ones."""
    return nano.commit_rows(shared, nano.chats(7, seed=5))


@pytest.mark.parametrize("spec", [MergeSpec(merge_a=True), MergeSpec(strategy="delta")])
def test_each_weight_is_tried_as_it_would_be_merged(
    base: LoadedBase, shared: Store, heldout: RowsRef, other: RowsRef, tuned: AdapterRef, spec: MergeSpec
) -> None:
    """The loss of a λ is that of the adapter merged with it, every task counting the same; the least one wins."""
    noise = commit(shared, tuned)
    found = search(base, noise, tuned, count=3, spec=spec, heldout=[heldout, other], max_length=128, store=shared)
    assert list(found.tried) == [str(weight) for weight in WEIGHTS]
    for weight in (0.1, 0.7, 1.0):
        asked = spec.model_copy(update={"weight": weight})
        merged = merge(noise, tuned, count=3, spec=asked, store=shared)
        losses = [evaluate(base, merged, rows, max_length=128, store=shared).loss for rows in (heldout, other)]
        assert found.tried[str(weight)] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert found.tried[str(found.weight)] == min(found.tried.values())


def test_what_is_worth_more_counts_more(base: LoadedBase, shared: Store, heldout: RowsRef, tuned: AdapterRef) -> None:
    """What has learned the rows takes all of the weight from noise, and noise gets the least from what has."""
    noise, spec = commit(shared, tuned), MergeSpec(merge_a=True)
    weights = [
        search(base, old, new, count=2, spec=spec, heldout=[heldout], max_length=128, store=shared).weight
        for old, new in ((noise, tuned), (tuned, noise))
    ]
    assert weights[0] >= 0.9 and weights[1] == 0.1


def test_adapters_that_do_not_go_together(base: LoadedBase, shared: Store, heldout: RowsRef, tuned: AdapterRef) -> None:
    """Another rank is refused before anything is scored."""
    with pytest.raises(RankMismatch):
        search(
            base,
            commit(shared, tuned, rank=8),
            tuned,
            count=2,
            spec=MergeSpec(),
            heldout=[heldout],
            max_length=128,
            store=shared,
        )


@pytest.mark.parametrize("strategy", ["sequential", "svd", "ties", "dare"])
def test_nothing_to_search(strategy: str, tmp_path: Path) -> None:
    """A strategy whose merged adapter no λ decides cannot search for one; a search is part of the key."""
    with pytest.raises(ValidationError, match="no lambda to search"):
        MergeSpec(strategy=strategy, weight="search")
    assert MergeSpec(weight="search").semantic() == MergeSpec().semantic() | {"weight": "search"}
