"""A secret that a service repeats in its error is nowhere that text goes: not printed, logged, recorded or kept."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from backprop_core.errors import JudgeFailed
from backprop_core.evaluation.judge import KEY
from backprop_core.runtime.redaction import blank_logs
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import EvaluationSpec, JudgeSpec, LoraSpec, TrainSpec
from flows.cli.main import failed
from flows.train import train
from tasks.tracking import list_runs, show_run
from tests.wire.prefect_server import wait_until
from tests.wire.stand_in import Request, Service

CANARY = "Zx9/canary+4711&value"
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


class Echo(Service):
    """Refuses, and repeats what it was sent, as proxies and debug pages do."""

    def answer(self, request: Request) -> None:
        sent = str(request.headers.get("Authorization"))
        return request.reply(400, {"error": f"no such key: {sent}", "key": sent.removeprefix("Bearer ")})


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo().running() as server:
        yield server


def test_a_canary_is_nowhere(
    base: Path, data: list[str], home: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Neither in the home (result, journal, MLflow), nor in Prefect (states, logs, artifacts), nor on stderr."""
    monkeypatch.setenv(KEY, CANARY)
    blank_logs()
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger().addHandler(handler)
    judged = EvaluationSpec(metric="judge", judge=JudgeSpec(address=f"{echo.url}/v1", model="grader"))
    short = TrainSpec(steps=1, lora=LoraSpec(rank=2))
    try:
        state = train(data[0], model=str(base), training=short, evaluation=judged, return_state=True)
        with pytest.raises(JudgeFailed) as caught:
            state.result()
    finally:
        logging.getLogger().removeHandler(handler)
        logging.setLogRecordFactory(logging.LogRecord)
    failed(caught.value, as_json=True, verbose=True)
    assert "no such key" in caught.value.message and "***" in caught.value.message
    said = capsys.readouterr()
    [run] = list_runs(settings())
    result = show_run(settings(), run["run_id"])
    assert run["status"] == "failed" and result.error and "no such key" in result.error.message
    texts = {
        "stdout": said.out,
        "stderr": said.err,
        "logs": heard.getvalue(),
        "prefect": prefect_says(state.state_details.flow_run_id),
    }
    texts |= {str(path): path.read_text("utf-8", "replace") for path in home.rglob("*") if path.is_file()}
    for spelt in (CANARY, json.dumps(CANARY)[1:-1], "Zx9%2Fcanary", "canary+4711"):
        assert [name for name, text in texts.items() if spelt in text] == []


def prefect_says(flow_run: UUID | None) -> str:
    """Everything that Prefect keeps about a flow run, once what it hears of late, tasks and logs, is there.

    Only about this one: without a filter the server answers with 200 rows, and it is that of the whole session.
    """
    ours = {"flow_runs": {"id": {"any_": [str(flow_run)]}}}
    wait_until(
        lambda: all("no such key" in kept(what, ours) for what in ("flow_runs", "task_runs")), 180, "failed task"
    )
    wait_until(lambda: "no such key" in logged(flow_run), 180, "log")
    return "\n".join((kept("flow_runs", ours), kept("task_runs", ours), kept("artifacts", ours), logged(flow_run)))


def kept(what: str, ours: dict[str, Any]) -> str:
    with get_client(sync_client=True) as client:
        return client.request("POST", f"/{what}/filter", json=ours).text


def logged(flow_run: UUID | None) -> str:
    return kept("logs", {"logs": {"flow_run_id": {"any_": [str(flow_run)]}}})
