"""What is done with one run's adapter after another: how the next run starts, and how the merged one comes about."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backprop_core import adapter, slao
from backprop_core.adapter import Adapter, Tensors
from backprop_core.errors import AdapterMismatch, ConfigInvalid, RankMismatch
from backprop_core.refs import AdapterRef
from backprop_core.store import Store

# Fields of PEFT's config that say what B·A means; a missing one and an empty one are the same.
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


@dataclass(frozen=True)
class Strategy:
    """`orthonormal`: the next run starts from SLAO's A. `merge(merged, tuned, run)` gives the merged tensors."""

    orthonormal: bool
    merge: Callable[[Tensors | None, Tensors, int], Tensors]


STRATEGIES = {
    "slao": Strategy(orthonormal=True, merge=lambda merged, tuned, run: slao.merge(merged, tuned, run=run)),
    "sequential": Strategy(orthonormal=False, merge=lambda merged, tuned, run: tuned),
}


def merge(merged: AdapterRef | None, tuned: AdapterRef, *, count: int, strategy: str, store: Store) -> AdapterRef:
    """Commit the merged adapter after `count` runs, this one included.

    Raises ConfigInvalid, RankMismatch or AdapterMismatch.
    """
    if strategy not in STRATEGIES:
        raise ConfigInvalid(f"no such strategy: {strategy}", hint=f"use one of {', '.join(STRATEGIES)}")
    new = adapter.read(store.local(tuned))
    old = adapter.read(store.local(merged)) if merged else None
    if old:
        check_same_shape(old.config, new.config)
    tensors = STRATEGIES[strategy].merge(old.tensors if old else None, new.tensors, count)
    record = {
        "stage": "merge",
        "strategy": strategy,
        "count": count,
        "tuned": tuned.digest,
        "merged": merged and merged.digest,
    }
    with store.begin("adapter") as directory:
        adapter.write(Adapter(new.config, tensors), directory)
        return store.commit(directory, AdapterRef, kind="merged", record=record)


def check_same_shape(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise RankMismatch or AdapterMismatch unless both configs give B·A the same meaning."""
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
