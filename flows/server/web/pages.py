"""The pages: all lines, one line. Each shows the same as a command."""

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from backprop_core.errors import BackpropError
from flows.server.web import actions, charts, forms, rows, state, text
from flows.server.web.people import person_of
from flows.server.web.state import Sources

BUSY, IDLE = 3, 20  # seconds between two refreshes, while something runs and otherwise
NOTICES = {  # by what was done
    "retrain": "The retrain begins in a few seconds.",
    "approve": "Approved: it goes live now.",
    "reject": "Rejected: the line stays as it is.",
    "rollback": "The rollback begins in a few seconds.",
    "pause": "The schedule is paused.",
    "resume": "The schedule is active again.",
}


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
    sources, cookie = sources_of(request), forms.cookie_of(request)
    frame = {
        "lines": state.names(sources),
        "health": state.health(sources),
        "zone": text.zone(),
        "addresses": sources.addresses,
        "namespace": sources.config.namespace,
        "current": request.path_params.get("name"),
        "person": person_of(request),
        "token": request.app.state.tokens.token(cookie),
        "notice": NOTICES.get(request.query_params.get("done", "")),
    }
    answer = HTMLResponse(TEMPLATES.get_template(template).render(**frame, **values), status)
    forms.keep_cookie(request, answer, cookie)
    return answer


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
    data = known.prefect.deployment.data if known.prefect and known.prefect.deployment else None
    place = rows.directory(known.line, data, sources_of(request))
    values: dict[str, Any] = {"state": known, "chart": chart, "place": place, "largest": rows.LARGEST}
    return page(request, "line.html", **values, refresh=BUSY if busy else IDLE)


def health(request: Request) -> Response:
    """For monitoring: which processes are running; 503 unless all are."""
    alive = state.health(sources_of(request)).running
    ok = all(alive.values())
    return JSONResponse({"status": "ok" if ok else "failing", **alive}, 200 if ok else 503)


def error_page(request: Request, status: int, error: BackpropError, headers: dict[str, str]) -> HTMLResponse:
    """An error, with its code and what to do."""
    answer = page(request, "error.html", status, error=error, refresh=0)
    answer.headers.update(headers)
    return answer


def download(request: Request) -> Response:
    """A file of a version; ranges of it, too. Its digest is in the headers."""
    name, number, filename = (request.path_params[part] for part in ("name", "number", "filename"))
    link, path = state.download(name, actions.number_of(number), filename, sources_of(request))
    digest = base64.b64encode(bytes.fromhex(link.sha256)).decode()
    headers = {"ETag": f'"{link.sha256}"', "Repr-Digest": f"sha-256=:{digest}:"}
    return FileResponse(path, headers=headers, filename=link.filename, media_type="application/octet-stream")


def rollback_form(request: Request) -> Response:
    """Asks before a rollback."""
    name, sources = request.path_params["name"], sources_of(request)
    to = actions.target(name, request.query_params.get("to", ""), sources)
    known = state.line(name, sources)
    assert known.store
    version = next(each for each in known.store.versions if each.number == to)
    return page(request, "rollback.html", state=known, version=version, refresh=0)


async def retrain(request: Request) -> Response:
    """Start a retrain: nothing but the line is said."""
    forms.checked(request, await forms.body_of(request))
    return await done(request, "retrain", actions.retrain, person_of(request))


async def answer(request: Request) -> Response:
    """Approve or reject."""
    given = forms.checked(request, await forms.body_of(request))
    said = given.get("answer", "")
    question, reason = str(request.path_params["question"]), given.get("reason", "")
    return await done(request, said, actions.answer, question, said, reason, person_of(request))


async def roll_back(request: Request) -> Response:
    """Roll back."""
    given = forms.checked(request, await forms.body_of(request))
    to, reason = given.get("to", ""), given.get("reason", "")
    return await done(request, "rollback", actions.roll_back, to, reason, person_of(request))


async def pause(request: Request) -> Response:
    """Pause or resume a schedule."""
    given = forms.checked(request, await forms.body_of(request))
    said = "resume" if given.get("active") == "true" else "pause"
    return await done(request, said, actions.pause, given.get("schedule", ""), said == "resume")


async def done(request: Request, said: str, action: Callable[..., None], *given: object) -> Response:
    """Carry out an action on the line of the path, then show its page."""
    name = request.path_params["name"]
    await run_in_threadpool(partial(action, name, *given, sources_of(request)))
    return RedirectResponse(f"/lines/{name}?done={said}", 303)


ROUTES = [
    Route("/", start),
    Route("/lines/{name}", line),
    Route("/lines/{name}/versions/{number}/files/{filename}", download),
    Route("/lines/{name}/rollback", rollback_form),
    Route("/lines/{name}/rollback", roll_back, methods=["POST"]),
    Route("/lines/{name}/retrain", retrain, methods=["POST"]),
    Route("/lines/{name}/questions/{question:uuid}", answer, methods=["POST"]),
    Route("/lines/{name}/schedule", pause, methods=["POST"]),
    Route("/health", health),
]
