"""A run's spec as parameters of its flow: values for a call, JSON for a deployment."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from backprop_core.schema.specs import RunSpec
from flows.registry import load

if TYPE_CHECKING:
    from tasks.runs.prepared_run import Prepared


def parameters(flow: str, spec: RunSpec, *, fresh: bool) -> dict[str, Any]:
    """The parameters of a flow that trains, from a spec."""
    named = [name for name in signature(flow) if name == "data" or name in RunSpec.model_fields]
    return {name: value_for(name, spec) for name in named} | {"fresh": fresh}


def to_resume(flow: str, run_id: str, prepared: "Prepared") -> dict[str, Any]:
    """The parameters that continue an interrupted run; everything else is read from its record."""
    needed = [name for name, one in signature(flow).items() if one.default is one.empty]
    return {name: run_id if name == "ref" else value_for(name, prepared.spec) for name in needed} | {"run_id": run_id}


def signature(flow: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a flow."""
    return inspect.signature(load(flow).fn).parameters


def value_for(name: str, spec: RunSpec) -> Any:
    """The value of the parameter `name` in a spec."""
    match name:
        case "data":
            return spec.datasets[0]
        case "repo":
            return spec.publish.repo or ""
    return getattr(spec, name)


def differing(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters to send, as JSON, so that a deployment with the parameters `known` runs with `given`.

    A part of the spec has the fields that were set in it, even to their defaults. The run chooses the others.
    """
    told = {name: plain(value) for name, value in given.items()}
    left = {name: None for name in known if name not in told}  # `steps` and `run_id`, which are not in a spec
    return left | {name: value for name, value in told.items() if value != known.get(name, usual(name))}


def usual(name: str) -> Any:
    """The default of a parameter; None for one that is required."""
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
