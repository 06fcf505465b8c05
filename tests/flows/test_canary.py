"""A secret that a service repeats in its error is nowhere that text goes: not printed, logged, recorded or kept."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, LogFilter

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
pytestmark = pytest.mark.usefixtures("prefect", "home")


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
    try:
        with pytest.raises(JudgeFailed) as caught:
            train(data[0], model=str(base), training=TrainSpec(steps=1, lora=LoraSpec(rank=2)), evaluation=judged)
    finally:
        logging.getLogger().removeHandler(handler)
        logging.setLogRecordFactory(logging.LogRecord)
    failed(caught.value, as_json=True, verbose=True)
    assert "no such key" in caught.value.message and "***" in caught.value.message
    said = capsys.readouterr()
    [run] = list_runs(settings())
    result = show_run(settings(), run["run_id"])
    assert run["status"] == "failed" and result.error and "no such key" in result.error.message
    texts = {"stdout": said.out, "stderr": said.err, "logs": heard.getvalue(), "prefect": prefect_says()}
    texts |= {str(path): path.read_text("utf-8", "replace") for path in home.rglob("*") if path.is_file()}
    for spelt in (CANARY, json.dumps(CANARY)[1:-1], "Zx9%2Fcanary", "canary+4711"):
        assert [name for name, text in texts.items() if spelt in text] == []


def prefect_says() -> str:
    """Everything that Prefect keeps about all flow runs, once what it hears of late, tasks and logs, is there."""
    wait_until(
        lambda: all("no such key" in text for text in (of_tasks(), of_logs(), of_flow_runs())), 180, "failed task"
    )
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).text
    return "\n".join((of_tasks(), of_logs(), of_flow_runs(), artifacts))


def of_flow_runs() -> str:
    with get_client(sync_client=True) as client:
        return "\n".join(run.model_dump_json() for run in client.read_flow_runs(flow_run_filter=FlowRunFilter()))


def of_logs() -> str:
    with get_client(sync_client=True) as client:
        return "\n".join(entry.message for entry in client.read_logs(LogFilter(), limit=200))


def of_tasks() -> str:
    with get_client(sync_client=True) as client:
        return client.request("POST", "/task_runs/filter", json={}).text
