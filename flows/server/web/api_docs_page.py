"""The API for people: every operation and every type, from the same description that programs read."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.server.web import api
from flows.server.web.frame import page


class Operation(NamedTuple):
    """One method of one path."""

    method: str
    path: str
    does: str
    takes: list[tuple[str, str]]  # name and type
    gives: str


class Type(NamedTuple):
    """A type that an operation takes or gives."""

    name: str
    means: str
    fields: list[tuple[str, str, str]]  # name, type, meaning


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    """Every operation, in the order of the description."""
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            takes = [(each["name"], kind(each["schema"])) for each in one.get("parameters", [])]
            takes += [("body", kind(schema)) for schema in schemas(one.get("requestBody", {}))]
            done: dict[str, Any] = next(
                (answer for status, answer in one["responses"].items() if status.startswith("2")), {}
            )
            gives = " or ".join(map(kind, schemas(done))) or "nothing"
            yield Operation(method.upper(), api.PREFIX + path, one["description"].replace("`", ""), takes, gives)


def schemas(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of a body, one for each media type that has one."""
    return [content["schema"] for content in part.get("content", {}).values() if "schema" in content]


def types(document: dict[str, Any]) -> Iterator[Type]:
    """Every type with fields, by name."""
    for name, schema in sorted(document["components"]["schemas"].items()):
        fields = schema.get("properties", {}).items()
        if fields:
            known = [(field, kind(part), part.get("description", "")) for field, part in fields]
            yield Type(name, schema.get("description", ""), known)


def kind(schema: dict[str, Any]) -> str:
    """A type in words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(kind, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {kind(schema['additionalProperties'])}"
    return str(schema.get("format") or schema.get("type") or "anything")


def docs(request: Request) -> Response:
    """The page."""
    described: FastAPI = request.app.state.api
    document = described.openapi()
    about = document["info"]["description"].replace("`", "")
    values: dict[str, Any] = {"operations": list(operations(document)), "types": list(types(document)), "about": about}
    return page(request, "api_docs.html", **values, refresh=0)


ROUTES = [Route(f"{api.PREFIX}/docs", docs)]
