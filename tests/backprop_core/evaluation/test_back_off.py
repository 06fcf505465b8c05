"""Back-off: the points between champion and candidate against float64 numpy, and the best one against `evaluate`."""

from pathlib import Path

import numpy as np
import pytest

from backprop_core.errors import RankMismatch
from backprop_core.evaluation.back_off import SHARES, back_off
from backprop_core.evaluation.scoring import evaluate
from backprop_core.merging.slao import B_of, is_A
from backprop_core.merging.strategies import between
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import AdapterRef, RowsRef
from backprop_core.schema.specs import MergeSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano
from tests.backprop_core.evaluation.test_lambda_search import commit


@pytest.fixture(scope="module")
def other(shared: Store) -> RowsRef:
    """Rows of a second task, fewer and other ones."""
    return nano.commit_rows(shared, nano.chats(7, seed=5))


@pytest.mark.parametrize("share", SHARES)
def test_each_point_is_the_best_of_its_rank(shared: Store, tuned: AdapterRef, share: float) -> None:
    """ΔW_champion + s·(ΔW_candidate - ΔW_champion), cut to rank r by an SVD in float64; s = 1 is the candidate."""
    old, new = (adapters.read_adapter(shared.local(ref)).tensors for ref in (commit(shared, tuned), tuned))
    made = between(old, new, share)
    assert made.keys() == new.keys()
    for key in filter(is_A, new):
        (A_old, B_old), (A_new, B_new), (A, B) = (
            (tensors[key].double().numpy(), tensors[B_of(key)].double().numpy()) for tensors in (old, new, made)
        )
        U, S, V = np.linalg.svd((1 - share) * B_old @ A_old + share * B_new @ A_new, full_matrices=False)
        S[A_new.shape[0] :] = 0
        assert np.abs(B @ A - U @ np.diag(S) @ V).max() < 1e-5
    if share == 1:
        assert all((made[key] == new[key]).all() for key in new)


@pytest.mark.parametrize("metric", ["token_accuracy", "loss", "exact_match"])
def test_each_point_is_scored_as_it_would_be_gated(
    base: LoadedBase, shared: Store, heldout: RowsRef, other: RowsRef, tuned: AdapterRef, metric: str
) -> None:
    """The score of what is returned is that of `evaluate`, each task counting the same; none is above it."""
    found = back_off(
        base, commit(shared, tuned), tuned, heldout=[heldout, other], metric=metric, max_length=128, store=shared
    )
    scores = [evaluate(base, found.adapter, rows, max_length=128, store=shared) for rows in (heldout, other)]
    mean = sum(getattr(score, metric) for score in scores) / 2
    assert found.tried[str(found.share)] == pytest.approx(-mean if metric == "loss" else mean, abs=1e-6)
    assert found.tried[str(found.share)] == max(found.tried.values())
    assert list(found.tried) == [str(share) for share in SHARES]


def test_good_changes_are_taken_whole_and_bad_ones_hardly(
    base: LoadedBase, shared: Store, heldout: RowsRef, tuned: AdapterRef
) -> None:
    """What has learned the rows is taken as it is, down to its digest; of noise the least is."""
    noise = commit(shared, tuned)
    good, bad = (
        back_off(base, *pair, heldout=[heldout], metric="loss", max_length=128, store=shared)
        for pair in ((noise, tuned), (tuned, noise))
    )
    assert (good.share, good.adapter) == (1.0, tuned)
    assert bad.share == 0.25 and bad.adapter.kind == "merged" and bad.adapter not in (tuned, noise)


def test_of_equal_scores_the_largest_share_is_taken(
    base: LoadedBase, shared: Store, heldout: RowsRef, tuned: AdapterRef
) -> None:
    """Where nothing differs, nothing is held back."""
    found = back_off(base, tuned, tuned, heldout=[heldout], metric="exact_match", max_length=128, store=shared)
    assert found.share == 1.0 and found.adapter == tuned


def test_the_same_bytes_again(base: LoadedBase, shared: Store, heldout: RowsRef, tuned: AdapterRef) -> None:
    """The same adapters and rows give an adapter of the same digest."""
    noise = commit(shared, tuned)
    made = [
        back_off(base, tuned, noise, heldout=[heldout], metric="loss", max_length=128, store=shared) for _ in range(2)
    ]
    assert made[0] == made[1]


def test_adapters_of_another_rank(base: LoadedBase, shared: Store, heldout: RowsRef, tuned: AdapterRef) -> None:
    """They have no point between them."""
    other = commit(shared, tuned, rank=8)
    with pytest.raises(RankMismatch):
        back_off(base, other, tuned, heldout=[heldout], metric="loss", max_length=128, store=shared)


def test_back_off_changes_no_key_of_a_merge(tmp_path: Path) -> None:
    """The merge is the same with back-off, so its key is; rows are set aside for it as for a search."""
    assert MergeSpec(back_off=True).semantic() == MergeSpec().semantic() == MergeSpec(back_off=False).semantic()
    assert [MergeSpec(back_off=value).chooses for value in (None, False, True)] == [False, False, True]
    assert MergeSpec(weight="search").chooses
