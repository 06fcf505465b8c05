"""Runs in the JSON API: what the page of a run shows, stop, retry."""

from fastapi import FastAPI
from starlette.requests import Request

from flows.server.web import run_actions
from flows.server.web.people import person_of
from flows.server.web.run_state import RunState, run_state
from flows.server.web.state import Sources


def add_routes(api: FastAPI, sources: Sources) -> None:
    """Add the routes of runs."""

    @api.get("/runs/{run}")
    def run(run: str) -> RunState:
        """Everything on the page of a run, by its run_id or by the id of its flow run in Prefect."""
        return run_state(run, sources)

    @api.post("/runs/{run}/stop", status_code=204)
    def stop(run: str, request: Request) -> None:
        """Have a run stop. It saves a checkpoint, and can be continued."""
        run_actions.stop(run, person_of(request), sources)

    @api.post("/runs/{run}/retry", status_code=204)
    def retry(run: str, request: Request) -> None:
        """Have a run that failed or was stopped begin again, once."""
        run_actions.retry(run, person_of(request), sources)
