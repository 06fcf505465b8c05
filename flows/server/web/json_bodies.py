"""Bodies of writes in the API: read after the token was checked, and only as far as they may be long."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from backprop_core.errors import ConfigInvalid
from flows.server.web import forms

B = TypeVar("B", bound=BaseModel)


def body_like(model: type[BaseModel]) -> dict[str, Any]:
    """How the description of the API shows a body that we read ourselves: after the token, and no more than allowed."""
    schema = model.model_json_schema()
    content = {"application/json": {"schema": inlined(schema, schema.pop("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


def inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with its definitions in the places that refer to them."""
    match schema:
        case {"$ref": str(name)}:
            return inlined(definitions[name.rpartition("/")[2]], definitions)
        case dict():
            return {name: inlined(part, definitions) for name, part in schema.items()}
        case list():
            return [inlined(part, definitions) for part in schema]
    return schema


async def given(request: Request, model: type[B]) -> B:
    """The body of a write, which is in the audit log. Raises InputTooLarge, and ConfigInvalid for another type."""
    body = parsed(model, await forms.body_of(request))
    request.state.given |= said(body)
    return body


def parsed(model: type[B], body: bytes) -> B:
    """The body as a record. Raises ConfigInvalid."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigInvalid(
            f"{place}: {first['msg']}" if place else first["msg"], hint="/api/v1/openapi.json describes every field"
        ) from error


def said(body: BaseModel) -> dict[str, str]:
    """What a body says, as the fields of a form say it; the values of a mapping are fields, too."""
    given = body.model_dump(mode="json", exclude_unset=True)
    nested = [part for part in given.values() if isinstance(part, dict)]
    flat = {name: part for name, part in given.items() if not isinstance(part, dict)}
    return {name: str(value) for part in (flat, *nested) for name, value in part.items()}
