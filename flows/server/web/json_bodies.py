"""Bodies of writes in the API: read after the token was checked, and only as far as they may be long."""

from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from flows.server.web import forms
from flows.server.web.try_api import parsed

B = TypeVar("B", bound=BaseModel)


async def given(request: Request, model: type[B], tokens: forms.Tokens) -> B:
    """The body of a write, from a person or a service that may act.

    Raises FormExpired, ActionForbidden, and ConfigInvalid for what is too large or of another type.
    """
    forms.check(request, tokens, request.headers.get("x-backprop-token", ""))
    body = parsed(model, await forms.body_of(request))
    request.state.given |= said(body)
    return body


def said(body: BaseModel) -> dict[str, str]:
    """What a body says, as the fields of a form say it; the values of a mapping are fields, too."""
    given = body.model_dump(mode="json", exclude_unset=True)
    nested = [part for part in given.values() if isinstance(part, dict)]
    flat = {name: part for name, part in given.items() if not isinstance(part, dict)}
    return {name: str(value) for part in (flat, *nested) for name, value in part.items()}
