"""SLAO's arithmetic against float64 numpy, which shares no code with it."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from backprop_core.errors import AdapterMismatch, BackpropError, ConfigInvalid, RankMismatch, RankTooLarge
from backprop_core.merging import slao

A = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
B = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
EMBED_A = "base_model.model.model.embed_tokens.lora_embedding_A"
EMBED_B = "base_model.model.model.embed_tokens.lora_embedding_B"
Adapter = dict[str, torch.Tensor]


def tuned(seed: int, *, rank: int = 4, width: int = 9, out: int = 6) -> Adapter:
    torch.manual_seed(seed)
    return {A: torch.randn(rank, width), B: torch.randn(out, rank)}


def gram_schmidt(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Orthonormal rows by modified Gram-Schmidt: diag(R) is a norm, so it is positive by construction."""
    rows: list[np.ndarray[Any, Any]] = []
    for row in a.astype(np.float64):
        for _ in range(2):
            for done in rows:
                row = row - done * (done @ row)
        rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


def close(found: torch.Tensor, expected: np.ndarray[Any, Any]) -> bool:
    return bool(np.abs(found.double().numpy() - expected).max() <= 1e-6)


@pytest.mark.parametrize("rank, width", [(1, 1), (1, 7), (4, 9), (8, 8), (16, 64)])
def test_start_is_gram_schmidt_of_the_tuned_rows(rank: int, width: int) -> None:
    """The next A is the tuned A orthonormalised row by row, with positive diagonal of R; B is the tuned B."""
    adapter = tuned(rank, rank=rank, width=width)
    start = slao.start_from(adapter)
    assert close(start[A], gram_schmidt(adapter[A].numpy()))
    assert torch.equal(start[B], adapter[B])
    assert torch.allclose(start[A] @ start[A].T, torch.eye(rank), atol=1e-5)


def test_raw_qr_would_not_do() -> None:
    """Without the sign rule, LAPACK's factor is another one: the comparison above can fail."""
    positive = tuned(4)[A].abs()
    assert not close(torch.linalg.qr(positive.T).Q.T, gram_schmidt(positive.numpy()))
    assert close(slao.orthonormal_rows(positive), gram_schmidt(positive.numpy()))


def test_twenty_runs_equal_the_float64_oracle() -> None:
    """Over twenty runs started as SLAO starts them, A is the last one and B += (B_tuned - B)/sqrt(i), to 1e-6."""
    merged, expected, run = None, np.zeros((6, 4)), tuned(0)
    for i in range(1, 21):
        start = slao.start_from(run)
        assert close(start[A], gram_schmidt(run[A].numpy()))
        assert torch.allclose(start[A] @ start[A].T, torch.eye(4), atol=1e-5)
        run = {key: tensor + 0.3 * tuned(i)[key] for key, tensor in start.items()}  # what training does, in short
        merged = slao.merge(merged, run, run=i)
        expected = expected + (run[B].double().numpy() - expected) / math.sqrt(i)
        assert torch.equal(merged[A], run[A])
        assert close(merged[B], expected)


def test_an_example_done_by_hand() -> None:
    """3-4-5: A = [[3,0,4],[3,2,4]] starts the next run as [[.6,0,.8],[0,1,0]]; the fourth B moves half the way."""
    adapter = {A: torch.tensor([[3.0, 0, 4], [3, 2, 4]]), B: torch.tensor([[1.0, 0], [0, 1]])}
    assert close(slao.start_from(adapter)[A], np.array([[0.6, 0, 0.8], [0, 1, 0]]))
    negative = {**adapter, A: torch.tensor([[-3.0, 0, -4], [3, -2, 4]])}
    assert close(slao.start_from(negative)[A], np.array([[-0.6, 0, -0.8], [0, -1, 0]]))
    later = {**adapter, B: torch.tensor([[3.0, 2], [-1, 1]])}
    assert close(slao.merge(adapter, later, run=4)[B], np.array([[2, 1], [-0.5, 1]]))


def test_first_merge_is_identity() -> None:
    """Merging the first run returns the tuned adapter exactly, as a copy."""
    first = tuned(1)
    merged = slao.merge(None, first, run=1)
    assert all(torch.equal(merged[key], first[key]) for key in first)
    merged[B].zero_()
    assert first[B].abs().min() > 0


def test_merging_the_same_again_changes_nothing() -> None:
    """Once merged and tuned agree, every weight leaves B where it is."""
    first = tuned(1)
    assert torch.equal(slao.merge(first, first, run=7)[B], first[B])


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2, 2, 0], [1, 2, 2, 0], [0, 0, 0, 3]],  # a row twice
        [[1.0, 2, 2, 0], [2, 4, 4, 0], [3, 6, 6, 0]],  # rank one
        [[0.0, 0, 0, 0], [1, 2, 2, 0], [0, 0, 0, 3]],  # a row of zeros
    ],
)
def test_dependent_rows_are_completed(rows: list[list[float]]) -> None:
    """A rank-deficient A gives orthonormal rows too, and every row of A lies in their span."""
    a = torch.tensor(rows)
    q = slao.start_from({A: a, B: torch.zeros(2, 3)})[A]
    assert torch.allclose(q @ q.T, torch.eye(3), atol=1e-6)
    assert torch.allclose(a @ q.T @ q, a, atol=1e-5)


def test_orthonormal_rows_stay() -> None:
    """The start of a start is itself: rows that are orthonormal already are not turned or flipped."""
    once = slao.orthonormal_rows(tuned(3)[A])
    assert torch.allclose(slao.orthonormal_rows(once), once, atol=1e-6)


def test_nearly_dependent_rows() -> None:
    """Rows 1e-3 apart still give orthonormal ones, the oracle's to what float32 can tell apart."""
    a = tuned(3)[A]
    a[1] = a[0] + 1e-3 * a[1]
    q = slao.orthonormal_rows(a)
    assert torch.allclose(q @ q.T, torch.eye(4), atol=1e-6)
    assert np.abs(q.double().numpy() - gram_schmidt(a.numpy())).max() < 1e-3


def test_zeros_count_as_positive() -> None:
    """An A of zeros has only zeros on R's diagonal, and starts as the first unit vectors."""
    assert torch.equal(slao.start_from({A: torch.zeros(2, 4), B: torch.zeros(3, 2)})[A], torch.eye(2, 4))


def test_all_is_float32() -> None:
    """What comes in as bf16 leaves as float32, both at the start and at the merge."""
    half = {key: tensor.bfloat16() for key, tensor in tuned(1).items()}
    results = [slao.start_from(half), slao.merge(half, half, run=2)]
    assert {t.dtype for result in results for t in result.values()} == {torch.float32}


def test_embeddings_follow_the_rule_of_their_factor() -> None:
    """lora_embedding_A is orthonormalised and replaced as A is; lora_embedding_B is averaged as B is."""
    first = {EMBED_A: tuned(1)[A], EMBED_B: tuned(1)[B]}
    second = {EMBED_A: tuned(2)[A], EMBED_B: tuned(2)[B]}
    plain = slao.merge(tuned(1), tuned(2), run=2)
    merged = slao.merge(first, second, run=2)
    assert torch.equal(merged[EMBED_A], plain[A])
    assert torch.equal(merged[EMBED_B], plain[B])
    assert torch.equal(slao.start_from(first)[EMBED_A], slao.start_from(tuned(1))[A])


@pytest.mark.parametrize("names", [(A, B), (EMBED_A, EMBED_B)])
def test_a_kept_start_has_the_function_of_the_tuned(names: tuple[str, str]) -> None:
    """With B·Rᵀ the product is the tuned one to a relative 1e-6, from the same A; without it is another."""
    a, b = names
    before = {a: tuned(1)[A], b: tuned(1)[B]}
    product = (before[b].double() @ before[a].double()).numpy()
    kept, plain = slao.start_from(before, keep=True), slao.start_from(before)
    assert torch.equal(kept[a], plain[a])
    scale = 1 / abs(product).max()
    assert close(scale * (kept[b].double() @ kept[a].double()), scale * product)
    assert not close(scale * (plain[b] @ plain[a]), scale * product)


@pytest.mark.parametrize("name", ["mlp.up_proj.lora_magnitude_vector", "mlp.up_proj.lora_B.bias", "lm_head.weight"])
def test_whole_values_are_averaged_like_B(name: str) -> None:
    """DoRA magnitudes, biases and fully trained modules start as tuned and are averaged with λ(i)."""
    key = f"base_model.model.{name}"
    old, new = {key: torch.tensor([1.0, 2.0])}, {key: torch.tensor([5.0, -2.0])}
    assert torch.equal(slao.start_from(new)[key], new[key])
    assert close(slao.merge(old, new, run=4)[key], np.array([3.0, 0.0]))


@pytest.mark.parametrize(
    "old, new, run, error",
    [
        (tuned(1), tuned(2, rank=2), 2, RankMismatch),
        (tuned(1), tuned(2, width=8), 2, AdapterMismatch),
        (tuned(1), tuned(2, out=5), 2, AdapterMismatch),
        (tuned(1), {A: tuned(2)[A]}, 2, AdapterMismatch),
        ({B: tuned(1)[B]}, tuned(2), 2, AdapterMismatch),
        (None, tuned(1), 2, ConfigInvalid),
        (tuned(1), tuned(2), 1, ConfigInvalid),
        (tuned(1), tuned(2), 0, ConfigInvalid),
    ],
)
def test_what_does_not_fit_is_refused(old: Adapter | None, new: Adapter, run: int, error: type[BackpropError]) -> None:
    """Another rank, shape or set of tensors, or a count that cannot be, is a coded error."""
    with pytest.raises(error):
        slao.merge(old, new, run=run)


def test_rank_above_the_width_is_refused() -> None:
    """More rows than columns cannot be orthonormal; as many can."""
    slao.start_from(tuned(1, rank=4, width=4))
    with pytest.raises(RankTooLarge, match="rank 5 is above the input width 4"):
        slao.start_from(tuned(1, rank=5, width=4))
