"""The page of a version of a line: scores, the gate's report, what changed, files, data."""

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.server.web.actions import number_of
from flows.server.web.frame import IDLE, page, sources_of
from flows.server.web.state import Sources, checked
from tasks.runs import line_report
from tasks.runs.line_report import VersionPage


def version_page(name: str, number: str, sources: Sources) -> VersionPage:
    """A version. Raises RunUnknown, ArtifactDamaged."""
    return line_report.version_page(checked(name, sources), number_of(number), sources.config)


def version(request: Request) -> Response:
    """A version of a line."""
    name, sources = request.path_params["name"], sources_of(request)
    known = version_page(name, request.path_params["number"], sources)
    values: dict[str, Any] = {"line": name, "known": known, "version": known.version}
    return page(request, "version.html", **values, refresh=IDLE)


def add_routes(api: FastAPI, sources: Sources) -> None:
    """Add versions to the API."""

    @api.get("/lines/{name}/versions/{number}")
    def one(name: str, number: str) -> VersionPage:
        """A version of a line: scores, the gate's report, what changed, files with digests, datasets."""
        return version_page(name, number, sources)


ROUTES = [Route("/versions/{name}/{number}", version)]
