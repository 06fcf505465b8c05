"""The page that renames a line: it says what happens to every part, and asks for the new name."""

from fastapi import FastAPI
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from backprop_core.errors import BackpropError, ConfigInvalid
from backprop_core.schema.field_types import line_name
from backprop_core.schema.records import Record
from flows.server.web import forms, verbs
from flows.server.web.frame import page, sources_of
from flows.server.web.json_bodies import body_like, given
from flows.server.web.people import person_of
from flows.server.web.state import Sources, checked


class NewName(Record):
    """Another name for a line."""

    to: str = Field(max_length=63)


def form(request: Request) -> Response:
    """Asks for the new name."""
    return form_page(request, "", None)


def form_page(request: Request, to: str, error: BackpropError | None, status: int = 200) -> Response:
    name = checked(request.path_params["name"], sources_of(request))
    return page(request, "rename.html", status, line=name, to=to, error=error, refresh=0)


async def rename(request: Request) -> Response:
    """Rename the line; or the form again, if the name is taken or none."""
    name, to = request.path_params["name"], forms.checked(request, await forms.body_of(request)).get("to", "").strip()
    try:
        await run_in_threadpool(carry_out, name, to, person_of(request).name, sources_of(request))
    except ConfigInvalid as error:
        return await run_in_threadpool(form_page, request, to, error, 400)
    return RedirectResponse(f"/lines/{to}?done=rename", 303)


def carry_out(line: str, to: str, who: str | None, sources: Sources) -> None:
    """`backprop line rename`. Raises RunUnknown, and what the verb raises: RunActive while a run of the line works."""
    by = ("--by", who) if who else ()
    verbs.run("line", "rename", checked(line, sources), line_name(to), *by, environment=sources.prefect.environment)


def add_routes(api: FastAPI, sources: Sources) -> None:
    """The same in the API."""

    @api.post("/lines/{name}/name", openapi_extra=body_like(NewName))
    async def change(name: str, request: Request) -> NewName:
        """Give a line another name."""
        wanted = await given(request, NewName)
        await run_in_threadpool(carry_out, name, wanted.to, person_of(request).name, sources)
        return wanted


ROUTES = [
    Route("/lines/{name}/rename", form),
    Route("/lines/{name}/rename", rename, methods=["POST"]),
]
