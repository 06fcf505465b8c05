"""What every page has: its frame, the templates, how an error and the end of an action are shown."""

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response

from backprop_core.errors import BackpropError
from flows.server.web import charts, forms, state, text
from flows.server.web.people import how_of, person_of
from flows.server.web.state import Sources
from tasks.runs.line_report import StoredFile

BUSY, IDLE = 3, 20  # seconds between two refreshes, while something runs and otherwise
NOTICES = {  # by what was done
    "retrain": "The retrain begins in a few seconds.",
    "approve": "Approved: it goes live now.",
    "reject": "Rejected: the line stays as it is.",
    "rollback": "The rollback begins in a few seconds.",
    "pause": "The schedule is paused.",
    "resume": "The schedule is active again.",
    "new": "The line is deployed. Retrain now makes its first version.",
    "settings": "Saved and deployed: the next run uses it.",
    "time": "The schedule has another time.",
    "delete": "The line is deleted.",
    "stop": "The run saves a checkpoint and stops. Retry continues it.",
    "retry": "The run begins again in a few seconds.",
}


def environment() -> Environment:
    """The templates; everything in them is escaped."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for filter in (text.score, text.points, text.size, text.when, text.exact, text.left, text.duration):
        made.filters[filter.__name__] = filter
    made.globals["shade"], made.globals["sparkline"] = charts.shade, charts.sparkline
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
        "in_session": how_of(request) == "session",
        "token": forms.token_of(request, cookie),
        "notice": NOTICES.get(request.query_params.get("done", "")),
    }
    html = TEMPLATES.get_template(template).render(frame | values)
    answer = HTMLResponse(html if person_of(request).may_act else forms.without_actions(html), status)
    forms.keep_cookie(request, answer, cookie)
    return answer


def error_page(request: Request, status: int, error: BackpropError, headers: dict[str, str]) -> Response:
    """An error, with its code and what to do; for a stranger without the names of the lines."""
    request.state.code = error.code
    if how_of(request) is None:
        return PlainTextResponse(str(error), status, headers)
    answer = page(request, "error.html", status, error=error, refresh=0)
    answer.headers.update(headers)
    return answer


def file_of(link: StoredFile, path: Path) -> Response:
    """A download; ranges of it, too. Its digest is in the headers."""
    digest = base64.b64encode(bytes.fromhex(link.sha256)).decode()
    headers = {"ETag": f'"{link.sha256}"', "Repr-Digest": f"sha-256=:{digest}:"}
    return FileResponse(path, headers=headers, filename=link.filename, media_type="application/octet-stream")


async def done(request: Request, said: str, action: Callable[..., None], *given: object) -> Response:
    """Carry out an action on the line or the run of the path, then show its page."""
    name = request.path_params.get("name") or request.path_params["run"]
    await run_in_threadpool(partial(action, name, *given, sources_of(request)))
    folder = "lines" if "name" in request.path_params else "runs"
    return RedirectResponse(f"/{folder}/{name}?done={said}", 303)
