"""Statistics of a merge: how much it changed A and B of the merged adapter, and the effective λ."""

from collections.abc import Iterable

import torch
from torch import Tensor

from backprop_core.models import adapter_tensors
from backprop_core.schema.refs import AdapterRef, Drift
from backprop_core.store.artifacts import Store

Pair = tuple[Tensor, Tensor]


def drift(before: AdapterRef, tuned: AdapterRef, after: AdapterRef, *, store: Store) -> Drift:
    """Relative change of A and B, and λ, of a merge of `tuned` into `before` that gave `after`.

    The relative change is the Frobenius norm of the change divided by that of `before`, over all layers as one vector.
    λ minimizes ‖before + λ·(tuned − before) − after‖ over all B: the merge's own λ if it has that form.
    """
    old, new, merged = (adapter_tensors.read_adapter(store.local(ref)).tensors for ref in (before, tuned, after))
    a, b = ([key for key in sorted(old) if part in key] for part in ("lora_A", "lora_B"))
    return Drift(
        a=moved((old[key], merged[key]) for key in a),
        b=moved((old[key], merged[key]) for key in b),
        weight=share((merged[key] - old[key], new[key] - old[key]) for key in b),
    )


def moved(pairs: Iterable[Pair]) -> float:
    """‖after − before‖ / ‖before‖."""
    squares = [(square(after - before), square(before)) for before, after in pairs]
    change, size = map(sum, zip(*squares, strict=True))
    return float((change / size) ** 0.5) if size else 0.0


def share(pairs: Iterable[Pair]) -> float:
    """⟨step, whole⟩ / ‖whole‖²; 1 if `whole` is zero."""
    products = [(float(torch.sum(step.double() * whole.double())), square(whole)) for step, whole in pairs]
    along, size = map(sum, zip(*products, strict=True))
    return along / size if size else 1.0


def square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
