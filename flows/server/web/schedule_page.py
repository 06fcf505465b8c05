"""The time of a schedule, alone. The job file of the line has it, so that a restart of `serve` keeps it.

Prefect is told at once, by the same schedule at another time: whether it is paused, and all else, stays.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from backprop_core.errors import BackpropError, ConfigInvalid, DeploymentMissing, DeploymentRefused, RunUnknown
from backprop_core.schema.records import Record
from flows.cli.yaml_edits import with_value
from flows.server.deployment_names import OF_FILE, slug_of
from flows.server.web import forms, job_file, new_line, state
from flows.server.web.frame import page, sources_of
from flows.server.web.job_file import JobFile
from flows.server.web.json_bodies import body_like, given
from flows.server.web.line_runs import LineRuns
from flows.server.web.new_line import DAYS, Unclear
from flows.server.web.state import Sources, checked

SIMPLE = re.compile(r"([0-5]?[0-9]) ([01]?[0-9]|2[0-3]) \* \* (\*|[0-6])")  # every day, or on one weekday
INVALID = "HTTP 422"  # what Prefect answers to a value that it cannot take


class Known(NamedTuple):
    """A deployment in Prefect, and one of its schedules; None if it gets its first."""

    deployment: str
    schedule: Mapping[str, Any] | None

    @property
    def is_of_file(self) -> bool:
        """Whether the job file has it; else a person has made it in Prefect."""
        return self.schedule is None or bool(OF_FILE.fullmatch(self.schedule["slug"] or ""))


def known(line: str, id: str, sources: Sources) -> Known:
    """A schedule of a line; for an empty id that of its job file, if any. Raises RunUnknown, DeploymentMissing."""
    found = sources.prefect.get(f"/deployments/name/retrain/{checked(line, sources)}")
    if found is None:
        raise DeploymentMissing(f"Prefect has no deployment retrain/{line}", hint=f"backprop deploy --line {line}")
    of_id = [each for each in found["schedules"] if (each["id"] == id if id else OF_FILE.fullmatch(each["slug"] or ""))]
    if id and not of_id:
        raise RunUnknown(f"line {line} has no such schedule", hint="load the page again")
    return Known(found["id"], of_id[0] if of_id else None)


def move(line: str, id: str, cron: str, zone: str, sources: Sources) -> None:
    """Give a schedule another time. Raises what `known` and `replacing` raise, ConfigInvalid for no such time."""
    at = known(line, id, sources)
    if not at.is_of_file:
        tell(at, {"schedule": {"cron": cron, "timezone": zone}}, sources)
        return
    file = job_file.read(line, sources)
    text = with_value(file.text, ("schedule", "cron"), cron)
    new = JobFile(file.path, with_value(text, ("schedule", "timezone"), zone))
    faults, job = job_file.check(new, job_file.check(file).job)
    if faults:
        raise next(iter(faults.values()))
    assert job and job.schedule
    with job_file.replacing(new, file.digest, line, sources):
        tell(at, {"schedule": job.schedule.model_dump(), "slug": slug_of(job.schedule)}, sources)


def tell(at: Known, body: dict[str, Any], sources: Sources) -> None:
    """Change the schedule in Prefect, or create it. Raises ConfigInvalid, DeploymentRefused, PrefectUnreachable."""
    schedules = f"/deployments/{at.deployment}/schedules"
    try:
        if at.schedule:
            sources.prefect.send("PATCH", f"{schedules}/{at.schedule['id']}", body)
        else:
            sources.prefect.send("POST", schedules, [{"active": True, **body}])
    except DeploymentRefused as error:
        if INVALID not in error.message:
            raise
        cron, zone = body["schedule"]["cron"], body["schedule"]["timezone"]
        raise ConfigInvalid(
            f"Prefect knows no such time: {cron[:40]} in {zone[:40]}",
            hint='write cron: "0 3 * * *" and a time zone like Europe/Berlin',
        ) from error


def filled(schedule: Mapping[str, Any] | None) -> dict[str, str]:
    """The form of a schedule as it is."""
    now = schedule["schedule"] if schedule else {}
    zone = now.get("timezone") or new_line.machine_zone()
    form = {"when": "daily", "time": "03:00", "day": "Monday", "cron": now.get("cron", ""), "zone": zone}
    simple = SIMPLE.fullmatch(form["cron"])
    if simple:
        form["time"] = f"{int(simple[2]):02}:{int(simple[1]):02}"
        if simple[3] != "*":
            form |= {"when": "weekly", "day": DAYS[(int(simple[3]) - 1) % 7]}
    elif schedule:
        form["when"] = "other"
    return form


def form(request: Request) -> Response:
    """The form with the time as it is."""
    id = request.query_params.get("schedule", "")
    at = known(request.path_params["name"], id, sources_of(request))
    return form_page(request, id, filled(at.schedule), None)


async def change(request: Request) -> Response:
    """Change the time; or the form again, with what is wrong."""
    given = forms.checked(request, await forms.body_of(request))
    return await run_in_threadpool(changed, request, given)


def changed(request: Request, given: dict[str, str]) -> Response:
    name, id = request.path_params["name"], given.get("schedule", "")
    wanted = {**filled(None), **{part: value.strip() for part, value in given.items()}}
    try:
        cron = wanted["cron"] if wanted["when"] == "other" else new_line.cron_of(wanted)
        move(name, id, cron, wanted["zone"], sources_of(request))
    except Unclear as error:
        return form_page(request, id, wanted, error.fault, 400)
    except (ConfigInvalid, DeploymentRefused) as error:
        return form_page(request, id, wanted, error, 400)
    return RedirectResponse(f"/lines/{name}?done=time", 303)


def form_page(
    request: Request, id: str, wanted: Mapping[str, str], error: BackpropError | None, status: int = 200
) -> Response:
    values: dict[str, Any] = {"line": request.path_params["name"], "id": id, "form": wanted, "error": error}
    return page(request, "schedule.html", status, **values, days=DAYS, refresh=0)


class NewTime(Record):
    """Another time of a schedule."""

    schedule: str = Field("", description="Its id; empty for the one in the job file.")
    cron: str = Field(min_length=9, description="Minute, hour, day, month, weekday.")
    zone: str = Field("UTC", min_length=1, description="Name of the time zone.")


def add_routes(api: FastAPI, sources: Sources) -> None:
    """The same in the API."""

    @api.post("/lines/{name}/time", openapi_extra=body_like(NewTime))
    async def set_time(name: str, request: Request) -> LineRuns:
        """Give a schedule another time, and change nothing else."""
        wanted = await given(request, NewTime)
        await run_in_threadpool(move, name, wanted.schedule, wanted.cron, wanted.zone, sources)
        return await run_in_threadpool(state.runs, name, sources)


ROUTES = [
    Route("/lines/{name}/time", form),
    Route("/lines/{name}/time", change, methods=["POST"]),
]
