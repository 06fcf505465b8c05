"""A run that was started from a form: what nobody entered is not given, and what was entered is all that is given."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.schema_tools.validation import ValidationError, validate
from pydantic import BaseModel

from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.specs import LineSpec, RunSpec
from backprop_core.store.artifacts import Store
from flows.cli.flags import Flags
from flows.parameters import parameters
from flows.registry import load
from flows.server import deploy
from flows.server.work_pools import Place
from tasks.runs import resolve

CONFIG = Settings(namespace="formtest")
TRAINING = [flow.name for flow in FLOWS.values() if flow.trains]
OPEN = object()  # a field of a form that nobody touched
JSON = {"__prefect_kind": "json"}  # what Prefect's UI sends for a mapping that nobody filled in


def form(flow: str) -> dict[str, Any]:
    """What Prefect's UI knows of a flow's own deployment."""
    schema: dict[str, Any] = deploy.fields_of(flow, CONFIG, Place("pool", "default"), {})["parameter_openapi_schema"]
    return schema


def filled(field: Mapping[str, Any], root: Mapping[str, Any], entered: Any = OPEN) -> Any:
    """What Prefect's UI sends for one field: `entered`, and the default of everything that it shows and nobody entered.

    As its component SchemaFormProperty does it; a field of several kinds shows the one that fits, or else the first.
    """
    field = resolved(field, root)
    value = field.get("default", OPEN) if entered is OPEN else entered
    if kinds := field.get("anyOf"):
        fitting = (kind for kind in kinds if fits(value, resolved(kind, root)))
        return filled(next(fitting, kinds[0]), root, value)
    if value is OPEN and "properties" not in field:
        return JSON if field.get("type") == "object" else OPEN
    if "properties" not in field:
        return value
    known = {} if value is OPEN else value
    sent = {name: filled(one, root, known.get(name, OPEN)) for name, one in field["properties"].items()}
    return {name: one for name, one in sent.items() if one is not OPEN} or OPEN


def resolved(field: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    name = field.get("$ref", "").rpartition("/")[2]
    return {**root["definitions"][name], **field} if name else dict(field)


def fits(value: Any, kind: Mapping[str, Any]) -> bool:
    """Whether the UI takes a value for one of this kind."""
    kinds = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    wanted = kinds.get(type(value), "null" if value is None else "")
    return wanted in (kind.get("type"), "number" if kind.get("type") == "integer" else "")


def received(value: Any) -> Any:
    """What the server makes of it: a mapping without a value is left out."""
    if isinstance(value, dict):
        return {name: received(one) for name, one in value.items() if one != JSON}
    return [received(one) for one in value] if isinstance(value, list) else value


def run_from(flow: str, schema: Mapping[str, Any], entered: Mapping[str, Any]) -> dict[str, Any]:
    """What a flow gets from its form with a few fields filled in."""
    sent = filled({"properties": schema["properties"]}, schema, entered)
    body = load(flow)
    usual = {name: one.default for name, one in inspect.signature(body.fn).parameters.items()}
    return body.validate_parameters(usual | received(sent))


def given(value: Any) -> Any:
    """A spec as nested mappings of what was given in it, at its default or not."""
    if isinstance(value, BaseModel):
        return {name: given(getattr(value, name)) for name in sorted(value.model_fields_set)}
    return [given(one) for one in value] if isinstance(value, list) else value


def said(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a flow, each with what was given in it."""
    named = {
        name: {"name": value} if name == "model" and isinstance(value, str) else value
        for name, value in parameters.items()
    }
    return {name: given(value) for name, value in named.items() if value not in (None, [])}


def enter(flow: str, data: str) -> dict[str, Any]:
    """The fields of a form that have to be filled in."""
    if flow == "rebase":
        return {"line": "support", "model": {"name": "other"}}
    line = {"line": "support"} if flow == "retrain" else {}
    return line | ({"datasets": [{"path": data}]} if flow == "multi-run" else {"data": data})


def both(entered: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """What was entered, and more; of a part both."""
    known = {name: entered.get(name) for name in more}
    parts = {name: {**one, **more[name]} for name, one in known.items() if isinstance(one, dict)}
    return {**entered, **more, **parts}


def here(flow: str, data: str, *settings: str) -> dict[str, Any]:
    """What the same flow gets from a terminal."""
    line, model = ("support" if flow in ("retrain", "rebase") else None), ("other" if flow == "rebase" else None)
    spec = Flags(data=[data], line=line, model=model, set=list(settings)).spec()
    return parameters(flow, spec, fresh=False)


def as_spec(flow: str, got: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a form and of a terminal alike: a dataset by its path, and `steps` where a spec has it."""
    alike = dict(got)
    for name in ("data", "model"):
        if isinstance(value := alike.get(name), str):
            alike[name] = {"path" if name == "data" else "name": value}
    return said(alike)


@pytest.mark.parametrize("flow", FLOWS)
def test_a_form_has_no_default(flow: str) -> None:
    """What a person leaves open in a form is not sent: no field of it, however deep, has a default."""
    schema = form(flow)
    assert [name for name, field in fields(schema, schema) if "default" in field] == []


def fields(part: Mapping[str, Any], root: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that a form can show, by its path."""
    for name, field in part.get("properties", {}).items():
        yield f"{path}{name}", field
        for kind in (field, *field.get("anyOf", ()), field.get("items", {})):
            if "$ref" in kind or "properties" in kind:
                yield from fields(resolved(kind, root), root, f"{path}{name}.")


@pytest.mark.parametrize("flow", TRAINING)
def test_an_empty_form_is_a_command_without_flags(flow: str) -> None:
    """A run from a form where nothing but the data was entered is given what the command line gives without flags."""
    got = run_from(flow, form(flow), enter(flow, "/data/night.jsonl"))
    assert as_spec(flow, got) == as_spec(flow, here(flow, "/data/night.jsonl"))


@pytest.mark.parametrize("flow", TRAINING)
def test_one_field_of_a_form_is_one_flag(flow: str) -> None:
    """For every field of the spec: entering it alone is `--set` of it alone, and its part is given nothing else."""
    schema, different, tried = form(flow), [], 0
    for place, field in fields(schema, schema):
        if not is_leaf(place, field):
            continue
        tried += 1
        value = LIKE.get(place, some(field, schema))
        tree: Any = value
        for name in reversed(place.split(".")):
            tree = {name: tree}
        got = run_from(flow, schema, both(enter(flow, "/data/night.jsonl"), tree))
        setting = f"{place}={yaml.safe_dump(value, default_flow_style=True).partition(chr(10))[0]}"
        if as_spec(flow, got) != as_spec(flow, here(flow, "/data/night.jsonl", setting)):
            different.append(place)
    assert tried > 40 and different == []


def some(field: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """A value that a field may have."""
    field = resolved(field, root)
    match field:
        case {"anyOf": [first, *_]}:
            return some(first, root)
        case {"enum": [*_, last]}:
            return last
        case {"type": "boolean"}:
            return True
        case {"type": "integer" | "number"}:
            return field.get("minimum", field.get("maximum", 0.5))
        case {"type": "array", "items": items}:
            return [some(items, root)]
        case {"type": "object", "properties": properties}:
            return {name: some(properties[name], root) for name in field.get("required", ())}
    return "a"


def is_leaf(place: str, field: Mapping[str, Any]) -> bool:
    """Whether a value stands there, and not a part with fields of its own, nor an entry of a list."""
    head, *rest = place.split(".")
    inside = place.startswith(("evaluation.watch.", "gate.canaries."))
    known = head in RunSpec.model_fields and head not in ("line", "datasets") and not inside
    return known and "$ref" not in field and (bool(rest) or head != "model")


LIKE: dict[str, Any] = {  # where the schema alone does not say what a value looks like
    "evaluation.judge.address": "http://judge",
    "merge.lambda": 0.5,
    "notify": ["slack-webhook/team"],
    "publish.repo": "a/b",
    "training.early_stopping": {"patience": 2},
    "training.guard.pause_at": 90,
    "training.lora.target_modules": ["q_proj"],
    "training.steps": 7,
}


@pytest.mark.parametrize("flow", ["train", "retrain"])
def test_the_same_is_chosen_for_a_form(flow: str, base: Path, data: list[str], tmp_path: Path) -> None:
    """What the product chooses, and so every cache key, is the same for a form and for a terminal."""
    got = run_from(flow, form(flow), enter(flow, data[0]) | {"model": str(base)})
    told = here(flow, data[0], f"model.name={base}")
    one, other = (resolve.prepare(flow, spec_of(each), Store(tmp_path / "store")) for each in (got, told))
    assert one == other and one.digest() == other.digest()
    assert {"training.learning_rate", "training.batch_size", "training.max_length"} <= {c.field for c in one.defaults}


def spec_of(got: Mapping[str, Any]) -> RunSpec:
    """The spec that a flow makes of its parameters."""
    data, model = got["data"], got["model"]
    named = {name: value for name, value in got.items() if name in RunSpec.model_fields and value is not None}
    return RunSpec(
        **named
        | {"datasets": [{"path": data} if isinstance(data, str) else data]}
        | {"model": {"name": model} if isinstance(model, str) else model}
    )


def test_a_custom_run_of_a_line_is_its_file() -> None:
    """The form of a line's own deployment begins with what its file says, and sends that and nothing else."""
    said_there = {"line": "support", "datasets": [{"path": "/data/night.jsonl"}], "training": {"lora": {"rank": 4}}}
    job = LineSpec.model_validate(said_there | {"model": {"name": "some/model"}, "export": {"quantizations": ["f16"]}})
    own = next(one for one in deploy.deployments(CONFIG, {"support": job}, "pool") if one.path == "retrain/support")
    got = run_from("retrain", own.fields["parameter_openapi_schema"], own.fields["parameters"])
    assert as_spec("retrain", got) == as_spec("retrain", parameters("retrain", job.run(), fresh=False))


def test_a_lines_deployment_asks_nothing() -> None:
    """Quick run opens a form only for what is required: `line` and `data` of a line's own deployment are known."""
    job = LineSpec.model_validate({"line": "support", "datasets": [{"path": "/data/night.jsonl"}]})
    own = next(one for one in deploy.deployments(CONFIG, {"support": job}, "pool") if one.path == "retrain/support")
    assert own.fields["parameter_openapi_schema"]["required"] == []
    assert form("retrain")["required"] == ["line", "data"]


@pytest.mark.parametrize("place", ["fresh", "min_new_rows", "training.learning_rate", "training.lora.rank"])
def test_nothing_is_no_value(place: str) -> None:
    """Prefect's server refuses null for a field that cannot be left empty by it, as it does with a default."""
    tree: Any = None
    for name in reversed(place.split(".")):
        tree = {name: tree}
    with pytest.raises(ValidationError, match=place):
        validate({"line": "a", "data": "b"} | tree, form("retrain"), raise_on_error=True)
    validate({"line": "a", "data": "b", "max_seconds": None, "notify": None}, form("retrain"), raise_on_error=True)
