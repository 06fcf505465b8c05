"""SLAO, "Merge before Forget": one LoRA continued over many runs. [arXiv 2512.23017]

Adapters are {PEFT file key: tensor}. Two are kept: the tuned one, which training produced and the next run starts
from, and the merged one, which is evaluated and shipped. A key belongs to one of two parts:

- A: `lora_A` of linear layers, `lora_embedding_A` of embeddings; (r, in).
- the rest: `lora_B`, `lora_embedding_B` (out, r), biases, DoRA magnitudes, fully trained modules. The first run's
  values are taken as tuned, later ones are averaged in, all by the rule of B.
"""

import math

import torch
from torch import Tensor

from backprop_core.errors import AdapterMismatch, ConfigInvalid, RankMismatch, RankTooLarge

# r = LoRA rank, i = input features, o = output features


def orthonormal_rows(A_ri: Tensor) -> Tensor:
    """Orthonormal rows that span A's row space: Qᵀ of QR(Aᵀ) with diag(R) > 0, in float32.

    If A has fewer than r independent rows, Householder's QR completes them to r orthonormal ones; a zero on the
    diagonal of R counts as positive. Every row of A still lies in the span.
    """
    Q_ir, R_rr = torch.linalg.qr(A_ri.to(torch.float32).T, mode="reduced")
    sign_r = torch.where(R_rr.diagonal() < 0, -1.0, 1.0)
    A_start_ri: Tensor = (Q_ir * sign_r).T.contiguous()
    return A_start_ri


def start_from(tuned: dict[str, Tensor], *, keep: bool = False) -> dict[str, Tensor]:
    """The adapter that run i starts from: A of run i-1 with orthonormal rows, all else as run i-1 tuned it; float32.

    With `keep`, B becomes B·Rᵀ (A = Rᵀ·Qᵀ), so that the run starts with the function of run i-1; the paper keeps B
    unchanged. Raises RankTooLarge if an A has more rows than columns.
    """
    for key, tensor in tuned.items():
        if is_A(key) and tensor.shape[0] > tensor.shape[1]:
            raise RankTooLarge(
                f"{key}: rank {tensor.shape[0]} is above the input width {tensor.shape[1]}",
                hint="train with a smaller training.lora.rank, or a --strategy without QR, such as average",
            )
    new = {key: orthonormal_rows(t) if is_A(key) else t.to(torch.float32, copy=True) for key, t in tuned.items()}
    if keep:
        for key in filter(is_A, tuned):
            new[B_of(key)] @= tuned[key].to(torch.float32) @ new[key].T
    return new


def weight(run: int) -> float:
    """λ(i) = 1/√i: the weight of run i in the merged adapter."""
    return 1 / math.sqrt(run)


def merge(
    merged: dict[str, Tensor] | None,
    tuned: dict[str, Tensor],
    *,
    run: int,
    share: float | None = None,
    merge_a: bool = False,
) -> dict[str, Tensor]:
    """The merged adapter after run i: A_merged = A_tuned; B_merged += λ(i)·(B_tuned - B_merged); float32.

    `run` is i, the number of merged runs including this one; the first merge is the identity. Beyond the paper: `share`
    replaces λ(i), and with `merge_a`, A follows the rule of B. Raises AdapterMismatch or RankMismatch if the two
    adapters do not have the same tensors.
    """
    if (merged is None) != (run == 1) or run < 1:
        raise ConfigInvalid(f"cannot merge run {run} here", hint="only run 1 merges without an earlier adapter")
    new = {key: tensor.to(torch.float32, copy=True) for key, tensor in tuned.items()}
    if merged is None:
        return new
    check_same(merged, tuned)
    by = weight(run) if share is None else share
    kept = {key for key in new if is_A(key) and not merge_a}
    return {key: t if key in kept else torch.lerp(merged[key].to(t), t, by) for key, t in new.items()}


def is_A(key: str) -> bool:
    """Whether the key names a factor A."""
    return ".lora_A." in key or ".lora_embedding_A" in key


def B_of(key: str) -> str:
    """The key of the factor B that belongs to a factor A."""
    return key.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")


def rank_axis(key: str) -> int | None:
    """The axis of a factor whose length is the rank; None if the tensor is not a factor."""
    if is_A(key):
        return 0
    return 1 if key.endswith(".lora_B.weight") or ".lora_embedding_B" in key else None


def check_same(merged: dict[str, Tensor], tuned: dict[str, Tensor]) -> None:
    """Raise RankMismatch or AdapterMismatch unless both have the same keys and shapes."""
    if different := sorted(merged.keys() ^ tuned.keys()):
        where = "tuned" if different[0] in tuned else "merged"
        raise AdapterMismatch(
            f"{len(different)} tensors are in only one of the adapters, first {different[0]} in the {where} one",
            hint="train with the same target modules, or start another line",
        )
    for key, tensor in tuned.items():
        old, new, axis = merged[key].shape, tensor.shape, rank_axis(key)
        if old == new:
            continue
        if axis is not None and old[axis] != new[axis]:
            raise RankMismatch(
                f"cannot merge rank {new[axis]} into rank {old[axis]} ({key})",
                hint=f"train with training.lora.rank={old[axis]}, or start another line",
            )
        raise AdapterMismatch(
            f"{key} has shape {tuple(new)}, before {tuple(old)}", hint="use adapters of the same base model"
        )
