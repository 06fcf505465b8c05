"""The pages: all lines, one line. Each shows the same as a command."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from flows.server.web import charts, state, text
from flows.server.web.state import Sources

BUSY, IDLE = 3, 15  # seconds between two refreshes, while something runs and otherwise


def environment() -> Environment:
    """The templates; everything in them is escaped."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for filter in (text.score, text.points, text.size, text.when, text.exact, text.left):
        made.filters[filter.__name__] = filter
    made.globals["shade"] = charts.shade
    return made


TEMPLATES = environment()


def sources_of(request: Request) -> Sources:
    """Where this application's blocks come from."""
    sources: Sources = request.app.state.sources
    return sources


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page with its frame: the lines, and the health of `serve`."""
    sources = sources_of(request)
    frame = {
        "lines": state.names(sources),
        "health": state.health(sources),
        "addresses": sources.addresses,
        "namespace": sources.config.namespace,
        "current": request.path_params.get("name"),
    }
    return HTMLResponse(TEMPLATES.get_template(template).render(**frame, **values), status)


def start(request: Request) -> Response:
    """All lines."""
    overview = state.overview(sources_of(request))
    busy = bool(overview.prefect and (overview.prefect.running or overview.prefect.waiting))
    return page(request, "lines.html", overview=overview, refresh=BUSY if busy else IDLE)


def line(request: Request) -> Response:
    """A line."""
    known = state.line(request.path_params["name"], sources_of(request))
    busy = bool(known.prefect and (known.prefect.running or known.prefect.queued))
    chart = charts.score_chart(known.store) if known.store else None
    return page(request, "line.html", state=known, chart=chart, refresh=BUSY if busy else IDLE)


def health(request: Request) -> Response:
    """For monitoring: which processes are running; 503 unless all are."""
    alive = state.health(sources_of(request)).running
    ok = all(alive.values())
    return JSONResponse({"status": "ok" if ok else "failing", **alive}, 200 if ok else 503)


def error_page(
    request: Request, status: int, code: str, message: str, hint: str, headers: dict[str, str]
) -> HTMLResponse:
    """An error, with what to do."""
    answer = page(request, "error.html", status, code=code, message=message, hint=hint, refresh=0)
    answer.headers.update(headers)
    return answer


ROUTES = [
    Route("/", start),
    Route("/lines/{name}", line),
    Route("/health", health),
]
