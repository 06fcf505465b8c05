"""The reference of preferences: log-probabilities of their answers under the champion, computed once before a run."""

import json
import math
from collections.abc import Sequence

import torch

from backprop_core.data.batching import Item, by_budget
from backprop_core.data.log_probs import log_probs
from backprop_core.data.preference_items import Pair, Unit, Units, load
from backprop_core.errors import LossNotFinite
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.refs import AdapterRef, ReferenceLogProbs, RowsRef
from backprop_core.schema.specs import Limit, PreferenceLoss
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

TOKENS = 8192  # padded tokens per batch


def reference_log_probs(
    base: LoadedBase,
    adapter: AdapterRef | None,
    rows: RowsRef,
    *,
    loss: PreferenceLoss,
    max_length: int | Limit,
    store: Store,
    on_progress: OnProgress | None = None,
) -> ReferenceLogProbs:
    """Compute the log-probabilities of the base with `adapter`, or alone, and commit them.

    Rows that judge nothing have none, nor do pairs with `loss="orpo"`. `on_progress` gets (done, total) answers.
    Raises LossNotFinite, AdapterMismatch, and what `preference_items.load` raises.
    """
    units = load(base, rows, pairs_as=loss, max_length=max_length, store=store)
    sides = [compared(unit, loss) for unit in units]
    with adapted(base, adapter, store):
        values = iter(computed(base, [item for some in sides for item in some], on_progress))
    found = [[next(values) for _ in some] for some in sides]
    if not math.isfinite(sum(map(sum, found))):
        raise LossNotFinite(
            f"the log-probabilities of {f'adapter {adapter.digest[:12]}' if adapter else 'the base'} are not finite",
            hint="a weight is NaN or infinite: download the base's files again, or train with a smaller learning rate",
        )
    lines = [canonical({"row": unit.row, "log_probs": own}) + "\n" for unit, own in zip(units, found, strict=True)]
    record = {"stage": "reference_log_probs", "adapter": adapter and adapter.digest, "rows": rows.digest}
    with store.begin("log-probs") as directory:
        (directory / ReferenceLogProbs.FILE).write_text("".join(lines), encoding="utf-8", newline="\n")
        return store.commit(directory, ReferenceLogProbs, record=record, answers=sum(map(len, found)))


def compared(unit: Unit, loss: PreferenceLoss) -> Sequence[Item]:
    """The answers of an example that are compared with the reference."""
    return () if isinstance(unit, Item) or (isinstance(unit, Pair) and loss == "orpo") else unit.sides


@torch.no_grad()
def computed(base: LoadedBase, items: Sequence[Item], on_progress: OnProgress | None) -> list[float]:
    """The log-probability of each answer."""
    found: dict[int, float] = {}
    for indices in by_budget(range(len(items)), [len(item) for item in items], TOKENS):
        values = log_probs(base, [items[index] for index in indices])
        found.update(zip(indices, values.tolist(), strict=True))
        if on_progress:
            on_progress(len(found), len(items))
    return [found[index] for index in range(len(items))]


def read(ref: ReferenceLogProbs, units: Units, store: Store) -> list[tuple[float, ...]]:
    """The log-probabilities of each unit's answers, in the same order."""
    lines = (store.local(ref) / ref.FILE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["row"] for row in rows] == [unit.row for unit in units], "log-probabilities of other rows"
    return [tuple(row["log_probs"]) for row in rows]
