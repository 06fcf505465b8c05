"""A run's spec as the parameters of its flow: as they are for a call here, as JSON for a deployment."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from backprop_core.schema.specs import RunSpec
from flows.registry import load

if TYPE_CHECKING:
    from tasks.runs.resolve import Prepared


def parameters(flow: str, spec: RunSpec, *, fresh: bool) -> dict[str, Any]:
    """All that a spec says to a flow that trains, by the names of its parameters."""
    named = [name for name in signature(flow) if name == "data" or name in RunSpec.model_fields]
    return {name: value_for(name, spec) for name in named} | {"fresh": fresh}


def to_resume(flow: str, run_id: str, prepared: "Prepared") -> dict[str, Any]:
    """What the flow of an interrupted run has to be given; everything else is read from the run's record."""
    needed = [name for name, one in signature(flow).items() if one.default is one.empty]
    return {name: run_id if name == "ref" else value_for(name, prepared.spec) for name in needed} | {"run_id": run_id}


def signature(flow: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a flow."""
    return inspect.signature(load(flow).fn).parameters


def value_for(name: str, spec: RunSpec) -> Any:
    """What a spec says to a parameter of this name."""
    match name:
        case "data":
            return spec.datasets[0]
        case "repo":
            return spec.publish.repo or ""
    return getattr(spec, name)


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
