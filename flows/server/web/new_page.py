"""The page of a new line: a form of one screen. What it does not ask is chosen, and listed with its reasons."""

from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from backprop_core.errors import BackpropError
from flows.server.web import forms, new_line, rows, state
from flows.server.web.frame import page, sources_of
from flows.server.web.json_bodies import body_like, given
from flows.server.web.new_line import NewLine
from flows.server.web.rows import Added
from flows.server.web.state import LineState, Sources
from tasks.runs import known_bases


def new(request: Request) -> Response:
    """The empty form, or one with the name and base of a line that has no job file."""
    given, sources = dict(request.query_params), sources_of(request)
    if (name := given.get("name", "")) in state.names(sources):
        given["base"] = state.row(name, sources).base or ""
    return form_page(request, new_line.filled(given), {})


async def create(request: Request) -> Response:
    """Make the line; or the form again, with what is wrong or what would be chosen."""
    given = forms.checked(request, await forms.body_of(request))
    filled, sources = new_line.filled(given), sources_of(request)
    if given.get("show"):
        return await run_in_threadpool(show_chosen, request, filled)
    refused = await run_in_threadpool(partial(new_line.create, filled, sources))
    if refused:
        return await run_in_threadpool(form_page, request, filled, refused.faults, 400)
    return RedirectResponse(f"/lines/{filled['name']}?done=new", 303)


def show_chosen(request: Request, filled: dict[str, str]) -> Response:
    """The form with what a run would choose."""
    sources = sources_of(request)
    own = new_line.received(filled["name"], sources)
    data = filled["path"] if filled["source"] == "path" else str(own[0].parent) if own else None
    try:
        choices = new_line.chosen(filled["base"], data)
    except BackpropError as error:
        return form_page(request, filled, {"base": error}, 400)
    return form_page(request, filled, {}, choices=choices)


def form_page(request: Request, filled: dict[str, str], faults: Any, status: int = 200, **more: Any) -> Response:
    sources = sources_of(request)
    here = [file.name for file in new_line.received(filled["name"], sources)]
    values = {"choices": None, **more, "form": filled, "faults": faults, "bases": bases(sources), "here": here}
    return page(request, "new.html", status, **values, days=new_line.DAYS, largest=rows.LARGEST, refresh=0)


def bases(sources: Sources) -> list[str]:
    """Bases to propose: those of other lines, directories that runs may read, then the chat versions of the presets."""
    used = [row.base for row in map(partial(state.row, sources=sources), state.names(sources)) if row.base]
    return list(dict.fromkeys([*used, *known_bases.directories(sources.config), *known_bases.hub_ids()]))


def add_routes(api: FastAPI, sources: Sources) -> None:
    """What the page does, in the API."""

    @api.post("/lines", openapi_extra=body_like(NewLine))
    async def make(request: Request) -> LineState:
        """Write the job file of a new line, and deploy it."""
        wanted = await given(request, NewLine)
        refused = await run_in_threadpool(new_line.create, wanted.form, sources)
        if refused:
            raise next(iter(refused.faults.values()))
        return await run_in_threadpool(state.line, wanted.name, sources)

    @api.post("/new/{name}/rows")
    async def first_rows(name: str, filename: str, request: Request) -> Added:
        """Check a file of rows, the body, and keep it for a line that is to be made."""
        rows.check_size(int(request.headers.get("content-length", 0)))
        return await rows.begin(name, filename, request.stream(), sources)


ROUTES = [Route("/new", new), Route("/new", create, methods=["POST"])]
