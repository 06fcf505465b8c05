"""The form that Prefect's UI shows for a deployment: the JSON schema of its parameters, without defaults.

The UI sends every default of a schema as if a person had entered it, and saves all of them in a schedule whose time was
edited. So fields have no default here: an empty one stays open, and its help names the default.
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from backprop_core.schema.specs import LoraSpec, TrainSpec
from tasks.runs.resolve_defaults import chosen_fields

if TYPE_CHECKING:
    from prefect import Flow

Schema = dict[str, Any]
CHOSEN = "Default: chosen for the model and the data."
NO_NULL = {"type": "null"}  # Prefect accepts null for a field without a default


def form_of(flow: "Flow[..., Any]", known: Collection[str]) -> Schema:
    """The schema of a flow's parameters without defaults; parameters of the deployment are not required."""
    schema: Schema = flow.parameters.model_dump()
    schema["required"] = [name for name in schema.get("required", ()) if name not in known]
    opened(schema, {})
    for name, part in schema.get("definitions", {}).items():
        opened(part, chosen().get(name, {}))
    return schema


def opened(schema: Schema, helps: Mapping[str, str]) -> None:
    """Move the defaults of an object's fields into their help."""
    for name, field in schema.get("properties", {}).items():
        default = field.pop("default", None)
        words = [field.get("description", ""), helps.get(name) or told(default, field.get("description", ""))]
        if text := " ".join(filter(None, words)):
            field["description"] = text
        if "type" in field and name not in schema.get("required", ()):
            field["not"] = NO_NULL


def told(default: Any, help_: str) -> str:
    """A default in words; empty for none, for a part with fields, or if the help says it already."""
    match default:
        case bool():
            said = str(default).lower()
        case int() | float():
            said = f"{default:g}"
        case str():
            said = default
        case _:
            return ""
    return "" if "default" in help_.lower() else f"Default: {said}."


@cache
def chosen() -> Mapping[str, Mapping[str, str]]:
    """The help of the fields that are chosen for each run, by the name of their part."""
    helps: dict[str, dict[str, str]] = {}
    for field in chosen_fields():
        part, _, name = field.rpartition(".")
        model = LoraSpec if part else TrainSpec
        helps.setdefault(model.__name__, {})[name] = CHOSEN
    return helps
