"""Merge strategies: slao, slao-kept, slao-plain, average, sequential, delta, svd, ties, dare.

Every run starts from the tuned adapter of the run before; the merged adapter never feeds back into training. Some
strategies average the factors A and B; others (delta, svd, ties, dare) combine the products ΔW = B·A and factorize the
result into the best approximation of rank r (Eckart-Young). The first merge is the identity. Tensors that are not
factors (biases, DoRA magnitudes, whole modules) are averaged by λ in all strategies.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backprop_core.errors import AdapterMismatch, RankMismatch
from backprop_core.merging import slao
from backprop_core.models import adapter_tensors
from backprop_core.models.adapter_tensors import Adapter, Tensors
from backprop_core.schema.refs import AdapterRef
from backprop_core.schema.specs import MergeSpec
from backprop_core.store.artifacts import Store

# Fields of PEFT's config that determine the meaning of B·A; missing and empty are equivalent.
MEANING = (
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "target_modules",
    "bias",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
)
TIES_KEPT = 0.2  # share of each ΔW's entries that are kept, the largest
DARE_DROPPED = 0.5  # share of each ΔW's entries that are dropped

# r = LoRA rank, i = input features, o = output features, n = runs, m = rows of several A stacked


@dataclass(frozen=True)
class Runs:
    """Inputs of a merge: the merged adapter before run `count`, and the tuned ones, newest last.

    Strategies with `takes_all` get `count` tuned adapters, the others only the newest.
    """

    merged: Tensors
    tuned: Sequence[Tensors]
    count: int


Merge = Callable[[Runs, MergeSpec], Tensors]


def sequential(runs: Runs, spec: MergeSpec) -> Tensors:
    """The last run's adapter alone."""
    return runs.tuned[-1]


def averaged(runs: Runs, spec: MergeSpec) -> Tensors:
    """B_merged += λ·(B_tuned - B_merged); A replaced, or averaged too. [arXiv 2512.23017, except for the start]"""
    share = share_of(spec, runs.count)
    return slao.merge(runs.merged, runs.tuned[-1], run=runs.count, share=share, merge_a=spec.merge_a)


def both_averaged(runs: Runs, spec: MergeSpec) -> Tensors:
    """A and B are the means over all runs: weight averaging along a trajectory. [arXiv 1803.05407, 2203.05482]"""
    return slao.merge(runs.merged, runs.tuned[-1], run=runs.count, share=share_of(spec, runs.count), merge_a=True)


def running_delta(runs: Runs, spec: MergeSpec) -> Tensors:
    """ΔW_merged += λ·(ΔW_tuned - ΔW_merged), cut to rank r after every run. [arXiv 2212.04089, 2501.09522]"""
    share = share_of(spec, runs.count)
    return on_products([runs.merged, runs.tuned[-1]], runs, spec, lambda _, pairs: mean_of(pairs, [1 - share, share]))


def svd(runs: Runs, spec: MergeSpec) -> Tensors:
    """The best rank-r approximation of the mean of all ΔW. [arXiv 2203.05482, 2410.19735]"""
    return on_products(runs.tuned, runs, spec, lambda _, pairs: mean_of(pairs, [1 / len(pairs)] * len(pairs)))


def ties(runs: Runs, spec: MergeSpec) -> Tensors:
    """Trim each ΔW, elect a sign for each entry, average the values that agree with it. [arXiv 2306.01708]"""
    return on_products(runs.tuned, runs, spec, lambda _, pairs: cut(ties_of(products(pairs)), rank_of(pairs)))


def dare(runs: Runs, spec: MergeSpec) -> Tensors:
    """Drop random entries of each ΔW, rescale the others, average. [arXiv 2311.03099]"""
    return on_products(runs.tuned, runs, spec, lambda key, pairs: cut(dare_of(key, products(pairs)), rank_of(pairs)))


STRATEGIES: dict[str, Merge] = {
    "slao": averaged,
    "slao-kept": averaged,
    "slao-plain": averaged,
    "average": both_averaged,
    "sequential": sequential,
    "delta": running_delta,
    "svd": svd,
    "ties": ties,
    "dare": dare,
}
OWN_WEIGHT = {"average": "1/i", "delta": "1/i"}  # the others: 1/√i


def share_of(spec: MergeSpec, count: int) -> float:
    """λ(i)."""
    weight = spec.weight or OWN_WEIGHT.get(spec.strategy, "1/sqrt(i)")
    match weight:
        case "1/sqrt(i)":
            return slao.weight(count)
        case "1/i":
            return 1 / count
        case _:
            return float(weight)


def merge(
    merged: AdapterRef | None,
    tuned: AdapterRef,
    *,
    earlier: Sequence[AdapterRef] = (),
    count: int,
    spec: MergeSpec,
    store: Store,
) -> AdapterRef:
    """Commit the merged adapter after `count` runs, including this one.

    `earlier` are the tuned adapters of all previous runs, oldest first, for strategies with `takes_all`.
    Raises RankMismatch or AdapterMismatch.
    """
    new = adapter_tensors.read_adapter(store.local(tuned))
    tensors = new.tensors
    if merged:
        tensors = STRATEGIES[spec.strategy](runs_of(merged, new, earlier=earlier, count=count, store=store), spec)
    record = {
        "stage": "merge",
        "spec": spec.model_dump(mode="json"),
        "count": count,
        "tuned": tuned.digest,
        "merged": merged and merged.digest,
        "earlier": [ref.digest for ref in earlier],
    }
    with store.begin("adapter") as directory:
        adapter_tensors.write_adapter(Adapter(new.config, tensors), directory)
        return store.commit(directory, AdapterRef, kind="merged", record=record)


def runs_of(merged: AdapterRef, new: Adapter, *, earlier: Sequence[AdapterRef] = (), count: int, store: Store) -> Runs:
    """Load the inputs of the merge of run `count`. Raises RankMismatch or AdapterMismatch unless all shapes match."""
    before = [adapter_tensors.read_adapter(store.local(ref)) for ref in (merged, *earlier)]
    for old in before:
        check_same(old, new)
    return Runs(before[0].tensors, [*(old.tensors for old in before[1:]), new.tensors], count)


Pair = tuple[Tensor, Tensor]  # B (o, r) and A (r, i), float64


def on_products(
    adapters: Sequence[Tensors], runs: Runs, spec: MergeSpec, combine: Callable[[str, list[Pair]], Pair]
) -> Tensors:
    """Combine the pairs (B, A) of `adapters` with `combine`; average all other tensors by λ."""
    share = share_of(spec, runs.count)
    new = slao.merge(runs.merged, runs.tuned[-1], run=runs.count, share=share)
    for key in filter(slao.is_A, new):
        pairs = [(tensors[slao.B_of(key)].double(), tensors[key].double()) for tensors in adapters]
        new[slao.B_of(key)], new[key] = (factor.float() for factor in combine(key, pairs))
    return new


def products(pairs: Sequence[Pair]) -> Tensor:
    """All ΔW = B·A, (n, o, i)."""
    return torch.stack([B_or @ A_ri for B_or, A_ri in pairs])


def rank_of(pairs: Sequence[Pair]) -> int:
    return pairs[0][1].shape[0]


def between(old: Tensors, new: Tensors, share: float) -> Tensors:
    """ΔW_old + share·(ΔW_new - ΔW_old), cut to rank r; `new` itself for 1. Other tensors get the same mean."""
    if share == 1:
        return new
    made = {key: torch.lerp(old[key].to(tensor), tensor, share) for key, tensor in new.items()}
    for key in filter(slao.is_A, new):
        pairs = [(tensors[slao.B_of(key)].double(), tensors[key].double()) for tensors in (old, new)]
        made[slao.B_of(key)], made[key] = (factor.float() for factor in mean_of(pairs, [1 - share, share]))
    return made


def mean_of(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """The best rank-r approximation of Σ w·B·A, without computing a full ΔW."""
    Q_om, R_mm = torch.linalg.qr(torch.cat([w * B_or for w, (B_or, _) in zip(weights, pairs, strict=True)], dim=1))
    P_im, S_mm = torch.linalg.qr(torch.cat([A_ri for _, A_ri in pairs]).T)
    B_mr, A_rm = cut(R_mm @ S_mm.T, rank_of(pairs))
    return Q_om @ B_mr, A_rm @ P_im.T


def cut(W_oi: Tensor, rank: int) -> Pair:
    """W's best approximation of this rank as B (o, r) and A (r, i): U·√S and √S·Vᵀ, padded with zeros.

    The largest entry of each row of A is positive, which makes the factors unique.
    """
    U_om, S_m, V_mi = torch.linalg.svd(W_oi, full_matrices=False)
    largest_m = V_mi.gather(1, V_mi.abs().argmax(1, keepdim=True)).flatten()
    scale_m = torch.where(largest_m < 0, -1.0, 1.0) * S_m.sqrt()
    B_or, A_ri = (U_om * scale_m)[:, :rank], (scale_m[:, None] * V_mi)[:rank]
    missing = rank - A_ri.shape[0]
    return torch.nn.functional.pad(B_or, (0, max(0, missing))), torch.nn.functional.pad(
        A_ri, (0, 0, 0, max(0, missing))
    )


def ties_of(W_noi: Tensor) -> Tensor:
    """Keep the largest fifth of each ΔW's entries; per entry, elect the sign and average the values that have it."""
    kept = math.ceil(TIES_KEPT * W_noi[0].numel())
    least_n = W_noi.abs().flatten(1).topk(kept).values[:, -1]
    trimmed_noi = W_noi * (W_noi.abs() >= least_n[:, None, None])
    agrees_noi = (trimmed_noi * trimmed_noi.sum(0).sign()) > 0
    return (trimmed_noi * agrees_noi).sum(0) / agrees_noi.sum(0).clamp(min=1)


def dare_of(key: str, W_noi: Tensor) -> Tensor:
    """The mean of all ΔW, each with random entries dropped and the others rescaled."""
    kept = [torch.rand(W_oi.shape, generator=coin(key, run)) >= DARE_DROPPED for run, W_oi in enumerate(W_noi)]
    return (W_noi * torch.stack(kept)).mean(0) / (1 - DARE_DROPPED)


def coin(key: str, run: int) -> torch.Generator:
    """A deterministic random generator for one tensor of one run."""
    seed = hashlib.sha256(f"{key}:{run}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(seed) >> 1)


def check_same(old: Adapter, new: Adapter) -> None:
    """Raise RankMismatch or AdapterMismatch unless both have the same tensors, and B·A means the same in both."""
    check_same_shape(old.config, new.config)
    slao.check_same(old.tensors, new.tensors)


def check_same_shape(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise RankMismatch or AdapterMismatch unless B·A has the same meaning in both configs."""
    if old.get("r") != new.get("r"):
        raise RankMismatch(
            f"cannot continue rank {old.get('r')} with rank {new.get('r')}",
            hint=f"train with training.lora.rank={old.get('r')}, or start another line",
        )
    for field in MEANING:
        if (before := old.get(field) or None) != (now := new.get(field) or None):
            raise AdapterMismatch(
                f"cannot continue {field} {before} with {now}",
                hint="train with the LoRA settings of the earlier runs, or start another line",
            )
