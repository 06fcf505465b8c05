"""Every field that can be set, read from the pydantic models: its path, allowed values, default and help."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import BaseModel

from backprop_core.schema.field_types import NAME
from backprop_core.schema.specs import LineSpec

Schema = Mapping[str, Any]
ENTRY = "N"  # the number of an entry in the path of a list's field
CHOSEN = (  # fields that a run chooses when they are left open, by model, data and GPU, or when a line begins
    "training.epochs",
    "training.learning_rate",
    "training.batch_size",
    "training.max_length",
    "training.token_budget",
    "training.replay_rows",
    "training.lora.rank",
    "training.lora.alpha",
    "training.lora.target_modules",
    "merge.merge_a",
)
SCALARS = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}
PATTERNS = {  # what a text looks like, in words
    NAME: "lowercase letters, digits, '.', '_' and '-', at most 63",
    r"^https?://[^@\s]+$": "an http or https address",
    r"^[a-z0-9-]+/[a-z0-9-]+$": "TYPE/NAME",
    r"^(local:[1-9][0-9]*|(tcp|tls|ws|wss)://.+)$": "local:N or the address of a Dask scheduler",
    r"^\s*(\d*\.?\d+)\s*(\w+)?": "a size such as 500MB",
    r"^[a-z]{2,3}$": "two or three lowercase letters",
}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


@dataclass(frozen=True)
class Field:
    """One field of a model: `training.lora.rank`, `datasets.N.task`."""

    path: str
    allowed: str
    default: str
    help: str
    choices: tuple[str, ...] = ()  # the only values, if there are few
    structured: bool = False  # whether a list or a mapping is among the values


@cache
def spec_fields() -> Mapping[str, Field]:
    """The fields of a run's spec and of a line's job, by path, in order."""
    fields = fields_of(LineSpec)
    return fields | {path: replace(fields[path], default="chosen") for path in CHOSEN}


def fields_of(model: type[BaseModel]) -> dict[str, Field]:
    """The fields of a model and of its parts, by path."""
    schema = model.model_json_schema()
    return {field.path: field for field in walk(schema, schema, ())}


def walk(schema: Schema, root: Schema, path: tuple[str, ...]) -> Iterator[Field]:
    """The fields below one schema."""
    required = schema.get("required", ())
    for name, property_ in schema.get("properties", {}).items():
        below = (*path, name)
        target = resolve(property_, root)
        help_ = property_.get("description", target.get("description", ""))
        yield Field(
            ".".join(below),
            allowed(property_, root),
            default_of(property_, name in required),
            help_,
            choices_of(property_, root) or (),
            is_structured(property_, root),
        )
        if "items" in target:
            yield from walk(resolve(target["items"], root), root, (*below, ENTRY))
        else:
            yield from walk(part_of(target, root), root, below)


def part_of(schema: Schema, root: Schema) -> Schema:
    """The part of an optional field."""
    choices = (resolve(choice, root) for choice in schema.get("anyOf", ()))
    return next((choice for choice in choices if "properties" in choice), schema)


def resolve(schema: Schema, root: Schema) -> Schema:
    """The schema that a reference means."""
    if "$ref" not in schema:
        return schema
    target: Schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return target


def default_of(schema: Schema, required: bool) -> str:
    """A field's default as text; empty for a part with defaults of its own."""
    if required:
        return "required"
    match schema.get("default"):
        case {}:
            return ""
        case bool(value):
            return str(value).lower()
        case None:
            return "none"
        case value:
            return str(value)


def allowed(schema: Schema, root: Schema) -> str:
    """The allowed values, in words."""
    schema = resolve(schema, root)
    match schema:
        case {"anyOf": choices}:
            return ", or ".join(dict.fromkeys(allowed(choice, root) for choice in choices))
        case {"enum": values}:
            return f"one of {', '.join(map(str, values))}"
        case {"const": value}:
            return str(value)
        case {"type": "array"}:
            return f"a list, each {allowed(schema['items'], root)}"
        case {"type": "object"}:
            return "a mapping"
        case {"type": "string"}:
            return text_of(schema)
    if "minimum" in schema and "maximum" in schema:
        return f"{SCALARS[schema['type']]} from {schema['minimum']} to {schema['maximum']}"
    limits = " and ".join(words.format(schema[key]) for key, words in BOUNDS.items() if key in schema)
    return " ".join(filter(None, (SCALARS[schema["type"]], limits)))


def choices_of(schema: Schema, root: Schema) -> tuple[str, ...] | None:
    """The only values besides null; None if there are more than can be listed."""
    match resolve(schema, root):
        case {"anyOf": parts}:
            every = [choices_of(part, root) for part in parts]
            return None if None in every else tuple(dict.fromkeys(name for part in every for name in part or ()))
        case {"enum": values}:
            return tuple(map(str, values))
        case {"const": value}:
            return (str(value),)
        case {"type": "boolean"}:
            return ("true", "false")
        case {"type": "null"}:
            return ()
    return None


def is_structured(schema: Schema, root: Schema) -> bool:
    """Whether a list or a mapping is among the values."""
    known = resolve(schema, root)
    return known.get("type") in ("array", "object") or any(is_structured(part, root) for part in known.get("anyOf", ()))


def text_of(schema: Schema) -> str:
    """The allowed texts, in words."""
    if schema.get("format") == "path":
        return "a path"
    return PATTERNS[schema["pattern"]] if "pattern" in schema else "text"


def pattern_of(location: Sequence[str | int]) -> str:
    """A place in a spec as the path of its field, with N for the number of an entry."""
    return ".".join(ENTRY if isinstance(part, int) or part.isdecimal() else part for part in location)


def children_of(path: str) -> list[str]:
    """The names of the fields directly below a path."""
    prefix = f"{path}." if path else ""
    below = (name.removeprefix(prefix) for name in spec_fields() if name.startswith(prefix) and name != path)
    return [name for name in below if "." not in name]
