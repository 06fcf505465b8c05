"""The audit log, for who may act: as a page and in the API."""

from typing import Annotated

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backprop_core.errors import ActionForbidden
from flows.server import audit
from flows.server.audit import Entry
from flows.server.web.frame import IDLE, page, sources_of
from flows.server.web.people import person_of
from flows.server.web.state import Sources

SHOWN = 200  # entries on the page


def check_may_see(request: Request) -> None:
    """Raise ActionForbidden for who may only look: the log says where others work."""
    if not person_of(request).may_act:
        raise ActionForbidden("the audit log is for those who may act", hint="ask one of them")


def log(request: Request) -> Response:
    """The newest entries."""
    check_may_see(request)
    entries = audit.entries(sources_of(request).config, SHOWN)
    return page(request, "audit.html", entries=entries, refresh=IDLE)


def add_routes(api: FastAPI, sources: Sources) -> None:
    """Add the audit log to the API."""

    @api.get("/audit")
    def entries(request: Request, limit: Annotated[int, Query(ge=1, le=5000)] = SHOWN) -> list[Entry]:
        """Who did what, newest first, and what was refused. For those who may act."""
        check_may_see(request)
        return audit.entries(sources.config, limit)


ROUTES = [Route("/audit", log)]
