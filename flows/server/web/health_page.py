"""Health: for monitoring as JSON, for people as a page."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from backprop_core.errors import DeploymentRefused, PrefectUnreachable
from flows.server.web import line_runs, state
from flows.server.web.frame import IDLE, page, sources_of
from tasks.runs import machine_checks, machine_info


def health(request: Request) -> Response:
    """For monitoring: which processes are running; 503 unless all are. A browser gets the page."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/health/page", 303)  # asks for the password, as every page does
    alive = state.health(sources_of(request)).running
    ok = all(alive.values())
    return JSONResponse({"status": "ok" if ok else "failing", **alive}, 200 if ok else 503)


def health_page(request: Request) -> Response:
    """For people: processes, this machine, the last failures, versions."""
    sources = sources_of(request)
    failures, missing = [], ""
    try:
        failures = line_runs.broken(sources.prefect)
    except (PrefectUnreachable, DeploymentRefused) as error:
        missing = error.message
    checks = machine_checks.quick(sources.config)
    versions = {name: known for name, known in machine_info.facts().items() if name != "gpus"}
    values: dict[str, Any] = {"checks": checks, "failures": failures, "missing": missing, "versions": versions}
    return page(request, "health.html", **values, refresh=IDLE)


ROUTES = [Route("/health", health), Route("/health/page", health_page)]
