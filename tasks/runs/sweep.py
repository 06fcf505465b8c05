"""Resolves a sweep: every combination of the values to try, as a complete training spec. No Prefect."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError

from backprop_core.errors import ConfigInvalid
from backprop_core.models import base as bases
from backprop_core.schema.specs import ExportSpec, MergeSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from tasks.runs import resolve
from tasks.runs.preflight_checks import check_training
from tasks.runs.prepared_run import Prepared, SweepCell
from tasks.runs.resolve_defaults import decide
from tasks.runs.resolve_line import with_memory

MOST = 64  # combinations
PART = "training."
HINT = "try fields of training, like --set training.learning_rate=1e-4,5e-4"
UNUSED = {  # fields that change nothing in a sweep, and why
    "early_stopping": "every combination trains all its steps, as no held-out row chooses one",
    "replay": "there is no earlier dataset to replay",
    "replay_rows": "there is no earlier dataset to replay",
    "later_learning_rate": "no run continues another",
    "preference": "preferences are not scored",
}
Values = Mapping[str, Sequence[Any]]


def prepare(spec: RunSpec, settings: Values, store: Store) -> Prepared:
    """Resolve a sweep of all combinations of `settings`, which has the values to try by field.

    Raises ConfigInvalid, and what resolving a run raises.
    """
    check(spec, settings)
    found = resolve.prepare("sweep", spec, store)
    return found.model_copy(update={"cells": [cell(found, spec, tried, store) for tried in combinations(settings)]})


def check(spec: RunSpec, settings: Values) -> None:
    """Raise ConfigInvalid for what a sweep does not do."""
    if not any(len(values) > 1 for values in settings.values()):
        raise ConfigInvalid("no field has two values to try", hint=HINT)
    if others := [name for name in settings if not name.startswith(PART)]:
        raise ConfigInvalid(f"a sweep cannot try {others[0]}", hint=HINT)
    for name in settings:
        if reason := UNUSED.get(name.removeprefix(PART).split(".")[0]):
            raise ConfigInvalid(f"{name} changes nothing in a sweep: {reason}", hint=HINT)
    if len(spec.datasets) > 1:
        raise ConfigInvalid(f"sweep takes one dataset, not {len(spec.datasets)}", hint="try settings on one of them")
    if spec.export != ExportSpec() or spec.merge != MergeSpec():
        raise ConfigInvalid("a sweep neither merges nor exports", hint="remove the fields of merge and export")
    count = len(list(combinations(settings)))
    if count > MOST:
        raise ConfigInvalid(f"{count} combinations are too many: at most {MOST}", hint="try fewer values at a time")


def combinations(settings: Values) -> Iterator[dict[str, Any]]:
    """Every combination of the values, the last field changing first."""
    return (dict(zip(settings, values, strict=True)) for values in product(*settings.values()))


def cell(found: Prepared, spec: RunSpec, tried: Mapping[str, Any], store: Store) -> SweepCell:
    """One combination, with all other fields as a run with it would choose them."""
    training = with_settings(spec.training, tried)
    whole, _ = with_memory(spec.model_copy(update={"training": training}), None)
    complete, _ = decide(whole, found.base, [one.data for one in found.sources], store, later=False)
    check_training(complete.training, bases.local(found.base, store), complete.export, continues=False)
    return SweepCell(settings={name: value_at(training, name) for name in tried}, training=complete.training)


def with_settings(training: TrainSpec, tried: Mapping[str, Any]) -> TrainSpec:
    """A training spec with these fields set. Raises ConfigInvalid for an unknown field or an invalid value."""
    tree = training.model_dump(exclude_unset=True)
    for name, value in tried.items():
        *parents, last = name.removeprefix(PART).split(".")
        part = tree
        for parent in parents:
            part = part.setdefault(parent, {})
            if not isinstance(part, dict):
                raise ConfigInvalid(f"unknown field {name}", hint=HINT)
        part[last] = value
    try:
        return TrainSpec.model_validate(tree)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = PART + ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            raise ConfigInvalid(f"unknown field {place}", hint=HINT) from error
        raise ConfigInvalid(f"invalid value {place}={fault['input']}", hint=fault["msg"]) from error


def value_at(training: TrainSpec, name: str) -> Any:
    """The value of a field, as JSON."""
    value: Any = training.model_dump(mode="json")
    for part in name.removeprefix(PART).split("."):
        value = value[part]
    return value
