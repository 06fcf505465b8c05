"""The page of a line's settings: what its job file sets comes first, everything else is folded."""

from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from backprop_core.errors import BackpropError, DeploymentRefused, PrefectUnreachable
from backprop_core.runtime.redaction import blank_secrets
from flows.server.web import forms, line_settings
from flows.server.web.frame import page, sources_of
from flows.server.web.json_bodies import body_like, given
from flows.server.web.line_settings import LineSettings, Setting, SettingsChange
from flows.server.web.people import person_of
from flows.server.web.state import Sources

USUAL = ("schedule.cron", "schedule.timezone", "min_new_rows", "approval.ask")  # shown first even if not set


def settings(request: Request) -> Response:
    """The form."""
    now = line_settings.settings_of(request.path_params["name"], sources_of(request))
    return form_page(request, shown(now, request), {}, {})


def shown(now: LineSettings, request: Request) -> LineSettings:
    """The settings; without secrets, as in a signed address, for a person who may only look."""
    if person_of(request).may_act:
        return now
    blanked = [each.model_copy(update={"value": blank_secrets(each.value)}) for each in now.settings]
    return now.model_copy(update={"settings": blanked})


async def save(request: Request) -> Response:
    """Save; or the form again, with what is wrong."""
    given = forms.checked(request, await forms.body_of(request))
    return await run_in_threadpool(saved, request, given)


def saved(request: Request, given: dict[str, str]) -> Response:
    name, sources = request.path_params["name"], sources_of(request)
    wanted, status = SettingsChange(digest=given.pop("digest", ""), values=given), 400
    try:
        faults = line_settings.change(name, wanted, sources)
    except (PrefectUnreachable, DeploymentRefused) as error:
        faults, status = {"": error}, 503
    if not faults:
        return RedirectResponse(f"/lines/{name}?done=settings", 303)
    return form_page(request, line_settings.settings_of(name, sources), given, faults, status, digest=wanted.digest)


def form_page(
    request: Request,
    now: LineSettings,
    given: dict[str, str],
    faults: dict[str, BackpropError],
    status: int = 200,
    digest: str = "",
) -> Response:
    """The form, with what was filled in."""
    first = [each for each in now.settings if each.value or each.path in USUAL]
    folded: dict[str, list[Setting]] = {}
    for each in now.settings:
        if each not in first:
            folded.setdefault(part_of(each.path), []).append(each)
    values: dict[str, Any] = {"state": now, "first": first, "folded": folded, "given": given, "faults": faults}
    return page(request, "settings.html", status, **values, digest=digest or now.digest, refresh=0)


def part_of(path: str) -> str:
    """The heading under which a field is folded."""
    head, dot, _ = path.partition(".")
    return "rows" if head == "datasets" else head if dot else "other"


def add_routes(api: FastAPI, sources: Sources) -> None:
    """The settings in the API."""

    @api.get("/lines/{name}/settings")
    def read(name: str, request: Request) -> LineSettings:
        """The fields of the job file of a line, with their values, defaults, allowed values and help."""
        return shown(line_settings.settings_of(name, sources), request)

    @api.post("/lines/{name}/settings", openapi_extra=body_like(SettingsChange))
    async def write(name: str, request: Request) -> LineSettings:
        """Set values of the job file, and deploy the line."""
        wanted = await given(request, SettingsChange)
        faults = await run_in_threadpool(line_settings.change, name, wanted, sources)
        if faults:
            raise next(iter(faults.values()))
        return await run_in_threadpool(line_settings.settings_of, name, sources)


ROUTES = [
    Route("/lines/{name}/settings", settings),
    Route("/lines/{name}/settings", save, methods=["POST"]),
]
