"""A run seen from the base of its line's champion, when its own base is another."""

from dataclasses import replace

from backprop_core.lines.versions import Live
from backprop_core.models import base as bases
from backprop_core.schema.specs import TrainSpec
from backprop_core.store.artifacts import Store
from tasks.runs.flow_run import Run
from tasks.runs.prepared_run import load

__all__ = ["on_champions_base", "tokens_alike", "whole_rows_only"]


def tokens_alike(run: Run) -> bool:
    """Whether the base of the run and that of its line's champion make the same tokens of every row."""
    assert run.prepared.live
    return bases.same_tokens(run.base, run.prepared.live.version.base)


def on_champions_base(run: Run) -> Run:
    """The same run with the base of the line's champion: what it calls sees that model."""
    assert run.prepared.live
    live = run.prepared.live
    changed = trained_by(run, champions_training(live, run.spec.training, run.store))
    return replace(changed, prepared=changed.prepared.model_copy(update={"base": live.version.base}))


def whole_rows_only(run: Run) -> Run:
    """The same run, which scores a row only if it fits whole: what is cut differs between two tokenizers."""
    return trained_by(run, run.spec.training.model_copy(update={"too_long": "drop"}))


def trained_by(run: Run, training: TrainSpec) -> Run:
    """The same run with another training spec."""
    spec = run.spec.model_copy(update={"training": training})
    return replace(run, prepared=run.prepared.model_copy(update={"spec": spec}))


def champions_training(live: Live, training: TrainSpec, store: Store) -> TrainSpec:
    """How a champion is scored beside a candidate on another base: in the precision that it was trained in."""
    path = store.layout.run(live.version.run_id).spec
    if not path.is_file():  # a line of another store
        return training
    earlier = load(live.version.run_id, store).spec.training
    same_device = earlier.device == training.device
    return training.model_copy(update={"precision": earlier.precision}) if same_device else training
