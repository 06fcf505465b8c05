"""What every page has: its frame, the templates, how an error and the end of an action are shown."""

import base64
import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response

from backprop_core.errors import BackpropError
from backprop_core.schema.score_text import change, level
from flows.server.web import charts, forms, state, text
from flows.server.web.people import how_of, person_of
from flows.server.web.state import Health, Sources
from tasks.runs.version_files import StoredFile

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
    "rename": "The line has its new name.",
    "stop": "The run saves a checkpoint and stops. Retry continues it.",
    "retry": "The run begins again in a few seconds.",
}


def environment() -> Environment:
    """The templates; everything in them is escaped."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for filter in (level, change, text.size, text.when, text.exact, text.left, text.duration, text.lately):
        made.filters[filter.__name__] = filter
    made.globals["shade"], made.globals["sparkline"] = charts.shade, charts.sparkline
    return made


TEMPLATES = environment()


def sources_of(request: Request) -> Sources:
    """Where this application's blocks come from."""
    sources: Sources = request.app.state.sources
    return sources


def is_load(request: Request) -> bool:
    """Whether a person loads the page; else a page that is open refreshes itself, and says what it has."""
    return "if-none-match" not in request.headers


def page(
    request: Request, template: str, status: int = 200, *, of: BaseModel | None = None, **values: Any
) -> HTMLResponse:
    """A page with its frame: the lines, and the health of `serve`.

    With all that it shows in `of`, a browser that has the page as it is gets 304, and nothing is rendered.
    """
    sources, cookie = sources_of(request), forms.cookie_of(request)
    frame = {
        "lines": state.names(sources),
        "health": state.health(sources),
        "zone": text.zone(),
        "addresses": sources.addresses,
        "namespace": sources.config.namespace,
        "current": request.path_params.get("name"),
        "is_start": request.url.path == "/",
        "person": person_of(request),
        "in_session": how_of(request) == "session",
        "token": forms.token_of(request, cookie),
        "notice": NOTICES.get(request.query_params.get("done", "")),
    }
    tag = f'"{digest(of, frame)}"' if of else ""
    if tag and request.headers.get("if-none-match") == tag:
        return HTMLResponse(status_code=304, headers={"ETag": tag})
    html = TEMPLATES.get_template(template).render(frame | values)
    answer = HTMLResponse(html if person_of(request).may_act else forms.without_actions(html), status)
    if tag:
        answer.headers["ETag"] = tag
    forms.keep_cookie(request, answer, cookie)
    return answer


def digest(of: BaseModel, frame: dict[str, Any]) -> str:
    """Of what a page shows; times on it are relative, so that it is another one each minute."""
    health: Health = frame["health"]
    around = {**frame, "health": (health.running, text.size(health.free_bytes)), "minute": int(time.time()) // 60}
    return hashlib.sha256(f"{of.model_dump_json()}{around}".encode()).hexdigest()


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
