"""One of two processes that train one run together; the second runs out of memory for all but small inputs.

Started twice by torchrun as `tests.backprop_core.two_short_of_memory BASE STORE [LOSS]`; with a loss of preferences,
those are trained beside other rows. The leader prints its steps' metrics.
"""

import json
import sys
from pathlib import Path

import torch

from backprop_core.models.loading import load
from backprop_core.schema.specs import PreferenceLoss, PreferenceSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.distributed import join
from backprop_core.training.loop import fit
from backprop_core.training.reference import reference_log_probs
from tests.backprop_core import nano
from tests.backprop_core.training.test_oom_recovery import SPEC, memory
from tests.backprop_core.training.test_preference_training import MIXED

LARGEST = 120  # padded tokens at a time, in the second process


def main(base: Path, root: Path, loss: PreferenceLoss | None = None) -> None:
    torch.set_num_threads(1)
    ranks, loaded, found = join(2), load(base, precision="fp32", device="cpu"), list[dict[str, float]]()
    store = Store(root / str(ranks.rank))
    rows, spec = nano.commit_rows(store, nano.chats(24)), SPEC
    if loss:
        rows, spec = nano.commit_rows(store, MIXED), SPEC.model_copy(update={"preference": PreferenceSpec(loss=loss)})
    known = reference_log_probs(loaded, None, rows, loss=loss, max_length=128, store=store) if loss else None
    with memory(loaded, lambda ids: ranks.leads or ids.numel() <= LARGEST) as failed:
        fit(
            loaded,
            rows,
            spec=spec,
            reference=known,
            start=None,
            key="key",
            store=store,
            on_metrics=lambda step, total, values: found.append(values),
            should_stop=lambda: False,
            guard=None,
            ranks=ranks,
        )
    assert bool(failed) is not ranks.leads
    if ranks.leads:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])  # type: ignore[arg-type]
