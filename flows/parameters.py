"""A run's spec as the parameters of its flow: as they are for a call here, as JSON for a deployment."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from backprop_core.schema.specs import RunSpec

COMMON = ("line", "model", "training", "evaluation", "export", "max_seconds")
OWN = {
    "train": (),
    "multi-run": ("merge",),
    "retrain": ("merge", "gate", "min_new_rows", "publish", "approval", "notify"),
}


def parameters(flow: str, spec: RunSpec, *, fresh: bool) -> dict[str, Any]:
    """All that a spec says to a flow that trains, by the names of its parameters."""
    data = {"datasets": spec.datasets} if flow == "multi-run" else {"data": spec.datasets[0]}
    return data | {name: getattr(spec, name) for name in (*COMMON, *OWN[flow])} | {"fresh": fresh}


def differing(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be said, as JSON, so that a deployment with the parameters `known` runs with those that are given.

    Of a part of the spec that is what was set in it, at its default or not: what is left open, the run chooses.
    """
    told = {name: plain(value) for name, value in given.items()}
    left = {name: None for name in known if name not in told}  # `steps` and `run_id`, which a spec does not have
    return left | {name: value for name, value in told.items() if value != known.get(name, usual(name))}


def usual(name: str) -> Any:
    """What a flow takes for a parameter that is not given; None for one that has to be."""
    if name == "fresh":
        return False
    field = RunSpec.model_fields.get(name)
    return plain(field.get_default(call_default_factory=True)) if field and name != "line" else None


def plain(value: Any) -> Any:
    """A parameter as JSON."""
    match value:
        case BaseModel():
            return value.model_dump(mode="json", exclude_unset=True)
        case list():
            return [plain(each) for each in value]
    return value
