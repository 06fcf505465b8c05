"""The page of all runs, with filters: what `backprop list-runs` lists, out of MLflow."""

from datetime import UTC, datetime
from typing import Any, get_args
from urllib.parse import urlencode

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backprop_core.errors import ConfigInvalid, MLflowUnreachable
from backprop_core.schema.records import Record
from backprop_core.schema.refs import Status
from flows.server.web.frame import IDLE, page, sources_of
from flows.server.web.past_runs import PastRun, past_run
from flows.server.web.state import Sources
from tasks.tracking import RunFilter

STATUSES: tuple[Status, ...] = get_args(Status)
PAGE = 50  # runs


class Past(Record):
    """A page of the history, the newest run first."""

    runs: list[PastRun]
    after: str = Field(description="Where the next page begins; empty on the last one.")


def past(sources: Sources, line: str, status: str, since: str, after: str) -> Past:
    """A page of the history. Raises ConfigInvalid, MLflowUnreachable."""
    known = next((each for each in STATUSES if each == status), None)
    if status and not known:
        raise ConfigInvalid(f"{status[:50]} is no status", hint=f"use one of {', '.join(STATUSES)}")
    wanted = RunFilter(line=line or None, status=known, since=day(since))
    found, more = sources.mlflow.search(wanted.in_mlflow(), PAGE, after)
    return Past(runs=[past_run(run, sources.config) for run in found], after=more)


def day(text: str) -> datetime | None:
    """A day as a browser sends it. Raises ConfigInvalid."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC) if text else None
    except ValueError as error:
        raise ConfigInvalid(f"{text[:50]} is no day", hint="write it like 2026-11-30") from error


def history(request: Request) -> Response:
    """All runs."""
    given = {name: request.query_params.get(name, "") for name in ("line", "status", "since", "after")}
    found, missing = None, ""
    try:
        found = past(sources_of(request), **given)
    except MLflowUnreachable as error:
        missing = error.message
    older = urlencode(given | {"after": found.after}) if found and found.after else ""
    values: dict[str, Any] = {"past": found, "missing": missing, "given": given, "older": older}
    words = [f"--{name} {given[name]}" for name in ("line", "status", "since") if given[name]]
    command = " ".join(["backprop list-runs", *words])
    return page(request, "history.html", **values, statuses=STATUSES, command=command, refresh=IDLE)


def add_routes(api: FastAPI, sources: Sources) -> None:
    """Add the history to the API."""

    @api.get("/runs")
    def runs(line: str = "", status: str = "", since: str = "", after: str = "") -> Past:
        """All runs, newest first, 50 a page: of a line, with a status, since a day. 503 while MLflow is away."""
        return past(sources, line, status, since, after)


ROUTES = [Route("/history", history)]
