"""A training in a child process that is killed at one of its file operations."""

import itertools
import os
import signal
import sys
from pathlib import Path

from backprop_core.models.loading import load, peft_module
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import EarlyStopping, LoraSpec, PreferenceLoss, PreferenceSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.loop import train
from backprop_core.training.reference import reference_log_probs

peft_module()  # imported once, before the children are forked
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def work(
    root: Path,
    base: Path,
    rows: RowsRef,
    kill_at: int | None,
    places: str,
    loss: PreferenceLoss | None = None,
    heldout: RowsRef | None = None,
) -> None:
    """Train under the key "key", a checkpoint after every step; write the adapter's digest to `root/digest`.

    `loss` trains the preferences among the rows. With `heldout`, a run of 40 steps that stops early.
    Dies by SIGKILL right before its `kill_at`-th file operation on a path that has `places` in it.
    """
    operations = itertools.count(1)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in OPERATIONS and places in str(arguments[0]) and next(operations) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    lora, preference = LoraSpec(rank=2, alpha=4, dropout=0.1), PreferenceSpec(loss=loss)
    spec = TrainSpec(steps=6, batch_size=8, max_length=64, checkpoint_seconds=0, lora=lora, preference=preference)
    loaded, store = load(base, precision="fp32", device="cpu"), Store(root)
    known = reference_log_probs(loaded, None, rows, loss=loss, max_length=64, store=store) if loss else None
    if heldout:
        stopping = {"steps": 40, "learning_rate": 2e-2, "early_stopping": EarlyStopping(eval_steps=2, patience=2)}
        spec = spec.model_copy(update=stopping)
    result = train(
        loaded,
        rows,
        spec=spec,
        start=None,
        key="key",
        store=store,
        reference=known,
        on_metrics=lambda *_: None,
        should_stop=lambda: False,
        heldout=heldout,
    )
    (root / "digest").write_text(result.adapter.digest)
    (root / "kept").write_text(f"{result.kept.step if result.kept else 0} {result.steps}")
    (root / "operations").write_text(str(next(operations) - 1))
