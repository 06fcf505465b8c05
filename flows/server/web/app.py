"""The web application of `serve`: pages, static files, API, and how errors are shown."""

from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backprop_core.errors import BackpropError
from flows.server.access_control import AccessControl
from flows.server.web import (
    api,
    api_docs_page,
    audit_page,
    data_page,
    delete_page,
    frame,
    login_page,
    new_page,
    pages,
    rename_page,
    schedule_page,
    settings_page,
    try_page,
)
from flows.server.web.audited import Audited
from flows.server.web.door import Door, Guarded
from flows.server.web.forms import Tokens
from flows.server.web.members import Members
from flows.server.web.state import Sources

STATIC = Path(__file__).parent / "static"
POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def application(sources: Sources, *, hosts: Sequence[str], password: str | None) -> ASGIApp:
    """The pages of a home, behind access control and the door. `password` is that of `serve --auth`."""
    tokens, door = Tokens(), Door(Members(sources.config, password))
    described = api.application(sources, tokens)
    app = Starlette(
        routes=[
            *pages.ROUTES,
            *new_page.ROUTES,
            *login_page.ROUTES,
            *settings_page.ROUTES,
            *schedule_page.ROUTES,
            *try_page.ROUTES,
            *delete_page.ROUTES,
            *rename_page.ROUTES,
            *data_page.ROUTES,
            *audit_page.ROUTES,
            *api_docs_page.ROUTES,
            Mount(api.PREFIX, described),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guarded, door=door)],
        exception_handlers={HTTPException: refused, BackpropError: failed, Exception: unexpected},
    )
    app.router.redirect_slashes = False
    app.state.sources, app.state.tokens, app.state.door, app.state.api = sources, tokens, door, described
    return Audited(AccessControl(Confined(app), hosts=hosts, password=None, head_as_get=False), sources.config)


class Confined:
    """Adds the headers that keep a page from running, framing or contacting anything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in POLICY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, sending)


async def refused(request: Request, error: Exception) -> Response:
    """An unknown page, or a method that it does not have. OPTIONS says which ones it has."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted({*headers["Allow"].split(", "), "OPTIONS"}))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    if request.url.path.startswith(f"{api.PREFIX}/"):  # a line break in a path leads past the API
        return await api.refused(request, error)
    return frame.error_page(request, error.status_code, api.coded(error), headers)


def failed(request: Request, error: Exception) -> Response:
    """A coded error, as a page."""
    assert isinstance(error, BackpropError)
    return frame.error_page(request, api.STATUS.get(type(error), 400), error, {})


async def unexpected(request: Request, error: Exception) -> Response:
    """An error without a code, as a page. The output of `serve` has its traceback."""
    if request.url.path.startswith(f"{api.PREFIX}/"):  # the API has answered, and its requests know no frame
        return await api.unexpected(request, error)
    return frame.error_page(request, 500, api.UNEXPECTED, {})
