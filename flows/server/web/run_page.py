"""The page of a run, its files, and what can be done with it: stop and retry."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.server.web import charts, forms, run_actions
from flows.server.web.frame import BUSY, IDLE, done, file_of, page, sources_of
from flows.server.web.people import person_of
from flows.server.web.run_state import run_state
from tasks.runs import run_report


def run(request: Request) -> Response:
    """A run, by its run_id or by the id of its flow run."""
    known = run_state(request.path_params["run"], sources_of(request))
    curves = known.mlflow.curves if known.mlflow else []
    heldout = {each.name: each.heldout for each in curves}
    chart = charts.loss_chart([(each.name, each.points) for each in curves], heldout)
    values: dict[str, Any] = {"state": known, "chart": chart, "current": known.line}
    return page(request, "run.html", of=known, **values, refresh=BUSY if known.can_stop else IDLE)


def download(request: Request) -> Response:
    """A file of a run."""
    run_id, filename = request.path_params["run"], request.path_params["filename"]
    return file_of(*run_report.download(run_id, filename, sources_of(request).config))


async def stop(request: Request) -> Response:
    """Stop a run."""
    forms.checked(request, await forms.body_of(request))
    return await done(request, "stop", run_actions.stop, person_of(request))


async def retry(request: Request) -> Response:
    """Run a run that failed or was stopped again."""
    forms.checked(request, await forms.body_of(request))
    return await done(request, "retry", run_actions.retry, person_of(request))


ROUTES = [
    Route("/runs/{run}", run),
    Route("/runs/{run}/files/{filename}", download),
    Route("/runs/{run}/stop", stop, methods=["POST"]),
    Route("/runs/{run}/retry", retry, methods=["POST"]),
]
