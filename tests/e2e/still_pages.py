"""The pages of a home with a line of two versions, in a browser, without training: Prefect is a stand-in."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from backprop_core.runtime.settings import Settings
from flows.server.web.app import application
from flows.server.web.mlflow_api import MlflowApi
from flows.server.web.page_server import PageServer
from flows.server.web.prefect_api import PrefectApi
from flows.server.web.state import Sources
from tasks.runs.prefect_artifacts import as_json
from tests.flows.server.web.conftest import NOWHERE, gate, result, run_id
from tests.wire.stand_in import Request, Service

HOST = "127.0.0.1"
ASKED, RUNNING = str(uuid4()), str(uuid4())
FLOW_RUN = {"parameters": {"line": "support", "run_id": run_id(9), "hours": 24.0}, "deployment_id": None}


class AskingPrefect(Service):
    """A Prefect with a retrain that runs; once it `asks`, a candidate waits for a person."""

    def __init__(self, *, asks: bool = False) -> None:
        super().__init__()
        self.asks = asks

    def answer(self, request: Request) -> None:
        wanted = request.body().decode()
        if request.path == "/api/artifacts/filter":
            made = result(run_id(9), None, gate("better on average", {"routing": 0.95}), ["routing"], steps=1)
            request.reply(200, [{"data": as_json(made)}])
        elif request.path == "/api/flow_runs/filter":
            request.reply(200, self.runs(wanted))
        else:
            request.reply(404, {})

    def runs(self, wanted: str) -> list[dict[str, Any]]:
        """The flow runs in the wanted states."""
        if "PAUSED" in wanted:
            return [flow_run(ASKED, "approval support", "PAUSED")] if self.asks else []
        return [flow_run(RUNNING, "support v3", "RUNNING")] if "RUNNING" in wanted else []


def flow_run(id: str, name: str, state: str) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    named = {"id": id, "name": name, "state_type": state, "state_name": state.capitalize()}
    return {**FLOW_RUN, **named, "start_time": now, "state": {"timestamp": now, "message": ""}}


@contextmanager
def shown(config: Settings, prefect: AskingPrefect, port: int = 0) -> Iterator[str]:
    """The address of the pages of a home."""
    listening = socket.create_server((HOST, port))
    start = f"http://{HOST}:{listening.getsockname()[1]}"
    where = {"prefect": prefect.url, "mlflow": NOWHERE}
    alive = {"prefect": True, "mlflow": True, "worker": True}
    with (
        closing(PrefectApi(f"{prefect.url}/api", None)) as api,
        closing(MlflowApi(NOWHERE, None, config.namespace)) as mlflow,
    ):
        app = application(Sources(config, api, mlflow, where, lambda: alive), hosts=[HOST], password=None)
        with closing(PageServer(listening, app)):
            yield start
