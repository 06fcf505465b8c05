"""The pages: all lines, one line. Each shows the same as a command."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.server.web import actions, charts, forms, health_page, history_page, rows, run_page, state, version_page
from flows.server.web.frame import BUSY, IDLE, done, file_of, is_load, page, sources_of
from flows.server.web.people import person_of


def start(request: Request) -> Response:
    """All lines."""
    overview = state.overview(sources_of(request), fresh=is_load(request))
    busy = bool(overview.prefect and (overview.prefect.running or overview.prefect.waiting))
    return page(request, "lines.html", of=overview, overview=overview, refresh=BUSY if busy else IDLE)


def line(request: Request) -> Response:
    """A line."""
    known = state.line(request.path_params["name"], sources_of(request), fresh=is_load(request))
    busy = bool(known.prefect and (known.prefect.running or known.prefect.queued))
    chart = charts.score_chart(known.store) if known.store else None
    data = known.prefect.deployment.data if known.prefect and known.prefect.deployment else None
    place = rows.directory(known.line, data, sources_of(request))
    values: dict[str, Any] = {"state": known, "chart": chart, "place": place, "largest": rows.LARGEST}
    return page(request, "line.html", of=known, **values, refresh=BUSY if busy else IDLE)


def download(request: Request) -> Response:
    """A file of a version; ranges of it, too. Its digest is in the headers."""
    name, number, filename = (request.path_params[part] for part in ("name", "number", "filename"))
    return file_of(*state.download(name, actions.number_of(number), filename, sources_of(request)))


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


ROUTES = [
    Route("/", start),
    Route("/lines/{name}", line),
    Route("/lines/{name}/versions/{number}/files/{filename}", download),
    Route("/lines/{name}/rollback", rollback_form),
    Route("/lines/{name}/rollback", roll_back, methods=["POST"]),
    Route("/lines/{name}/retrain", retrain, methods=["POST"]),
    Route("/lines/{name}/questions/{question:uuid}", answer, methods=["POST"]),
    Route("/lines/{name}/schedule", pause, methods=["POST"]),
    *run_page.ROUTES,
    *version_page.ROUTES,
    *history_page.ROUTES,
    *health_page.ROUTES,
]
