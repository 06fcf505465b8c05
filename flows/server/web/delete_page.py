"""The page that deletes a line: it says what happens to every part, and asks for the name."""

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from backprop_core.errors import BackpropError, ConfigInvalid
from backprop_core.schema.records import Record
from flows.cli.line import plan
from flows.server.web import forms, verbs
from flows.server.web.frame import page, sources_of
from flows.server.web.people import person_of
from flows.server.web.state import Sources, checked


def form(request: Request) -> Response:
    """What would happen."""
    return form_page(request, None)


def form_page(request: Request, error: BackpropError | None, status: int = 200) -> Response:
    name, sources = request.path_params["name"], sources_of(request)
    address = sources.prefect.environment["PREFECT_API_URL"]
    planned = plan(checked(name, sources), "", sources.config, address)
    return page(request, "delete.html", status, planned=planned, error=error, refresh=0)


async def delete(request: Request) -> Response:
    """Delete the line; or the form again, with another name than the line's."""
    given = forms.checked(request, await forms.body_of(request))
    name = request.path_params["name"]
    if given.get("confirm", "").strip() != name:
        return await run_in_threadpool(form_page, request, not_its_name(name), 400)
    await run_in_threadpool(carry_out, name, person_of(request).name, sources_of(request))
    return RedirectResponse("/?done=delete", 303)


def not_its_name(line: str) -> BackpropError:
    return ConfigInvalid("this is not the name of the line", hint=f"type {line} to delete it")


def carry_out(line: str, who: str | None, sources: Sources) -> None:
    """`backprop line delete`. Raises RunUnknown, and what the verb raises: RunActive while a run of the line works."""
    by = ("--by", who) if who else ()
    verbs.run("line", "delete", checked(line, sources), "--yes", *by, environment=sources.prefect.environment)


class Gone(Record):
    """A line that was deleted."""

    line: str


def add_routes(api: FastAPI, sources: Sources) -> None:
    """The same in the API."""

    @api.delete("/lines/{name}")
    def remove(name: str, confirm: str, request: Request) -> Gone:
        """Delete a line; `confirm` repeats its name."""
        if confirm != checked(name, sources):
            raise not_its_name(name)
        carry_out(name, person_of(request).name, sources)
        return Gone(line=name)


ROUTES = [
    Route("/lines/{name}/delete", form),
    Route("/lines/{name}/delete", delete, methods=["POST"]),
]
