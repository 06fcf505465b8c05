"""The form that Prefect's UI shows for a deployment: the JSON schema of its parameters, without defaults.

The UI sends every default of a schema as if a person had entered it, and saves all of them in a schedule whose time was
edited. So fields have no default here: an empty one stays open, and its help names the default.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from backprop_core.schema.specs import LoraSpec, MergeSpec, TrainSpec
from flows.cli.spec_fields import CHOSEN

if TYPE_CHECKING:
    from prefect import Flow

Schema = dict[str, Any]
PARTS = {TrainSpec.__name__: "training", LoraSpec.__name__: "training.lora", MergeSpec.__name__: "merge"}
NO_NULL = {"type": "null"}  # Prefect accepts null for a field without a default


def form_of(flow: "Flow[..., Any]", known: Collection[str]) -> Schema:
    """The schema of a flow's parameters without defaults; parameters of the deployment are not required."""
    schema: Schema = flow.parameters.model_dump()
    schema["required"] = [name for name in schema.get("required", ()) if name not in known]
    opened(schema, ())
    for name, part in schema.get("definitions", {}).items():
        opened(part, chosen_in(PARTS.get(name)))
    return schema


def opened(schema: Schema, chosen: Collection[str]) -> None:
    """Move the defaults of an object's fields into their help; a help that names its default stays as it is."""
    for name, field in schema.get("properties", {}).items():
        help_, default = field.get("description", ""), told(field.pop("default", None))
        if name in chosen:
            default = "Default: chosen for the model and the data."
        if text := " ".join(filter(None, [help_, "" if "default" in help_.lower() else default])):
            field["description"] = text
        if "type" in field and name not in schema.get("required", ()):
            field["not"] = NO_NULL


def told(default: Any) -> str:
    """A default in words; empty for none, and for a part with fields."""
    match default:
        case bool():
            return f"Default: {str(default).lower()}."
        case int() | float():
            return f"Default: {default:g}."
        case str() if default:
            return f"Default: {default}."
    return ""


def chosen_in(part: str | None) -> list[str]:
    """The names of the fields of a part that a run chooses."""
    places = (path.rpartition(".") for path in CHOSEN)
    return [name for parent, _, name in places if parent == part]
