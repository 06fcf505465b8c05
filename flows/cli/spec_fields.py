"""Every field that can be set, read out of the pydantic models: its path, what it allows, its default, its help."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from backprop_core.schema.specs import LineSpec

Schema = Mapping[str, Any]
ENTRY = "N"  # stands for an entry's number in the path of a list's field
SCALARS = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}
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


@cache
def spec_fields() -> Mapping[str, Field]:
    """The fields of a run's spec, and of a line's job, by path, in their order."""
    return fields_of(LineSpec)


def fields_of(model: type[BaseModel]) -> dict[str, Field]:
    """The fields of a model, those of its parts included, by path."""
    schema = model.model_json_schema()
    return {field.path: field for field in walk(schema, schema, ())}


def walk(schema: Schema, root: Schema, path: tuple[str, ...]) -> Iterator[Field]:
    """The fields below one schema."""
    required = schema.get("required", ())
    for name, property_ in schema.get("properties", {}).items():
        below = (*path, name)
        target = resolve(property_, root)
        help_ = property_.get("description", target.get("description", ""))
        yield Field(".".join(below), allowed(property_, root), default_of(property_, name in required), help_)
        if "items" in target:
            yield from walk(resolve(target["items"], root), root, (*below, ENTRY))
        else:
            yield from walk(part_of(target, root), root, below)


def part_of(schema: Schema, root: Schema) -> Schema:
    """The part that a field holds which may also be left out."""
    choices = (resolve(choice, root) for choice in schema.get("anyOf", ()))
    return next((choice for choice in choices if "properties" in choice), schema)


def resolve(schema: Schema, root: Schema) -> Schema:
    """The schema that a reference means."""
    if "$ref" not in schema:
        return schema
    target: Schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return target


def default_of(schema: Schema, required: bool) -> str:
    """A field's default as it would be written; nothing for a part with defaults of its own."""
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
    """What a value has to be, in words."""
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
    limits = " and ".join(words.format(schema[key]) for key, words in BOUNDS.items() if key in schema)
    return " ".join(filter(None, (SCALARS[schema["type"]], limits)))


def text_of(schema: Schema) -> str:
    """What a text has to be, in words."""
    if schema.get("format") == "path":
        return "a path"
    return f"text like {schema['pattern']}" if "pattern" in schema else "text"


def pattern_of(location: Sequence[str | int]) -> str:
    """A place in a spec as the path of its field: the numbers of entries are all one."""
    return ".".join(ENTRY if isinstance(part, int) or part.isdecimal() else part for part in location)


def children_of(path: str) -> list[str]:
    """The names of the fields right below one path."""
    prefix = f"{path}." if path else ""
    below = (name.removeprefix(prefix) for name in spec_fields() if name.startswith(prefix) and name != path)
    return [name for name in below if "." not in name]
