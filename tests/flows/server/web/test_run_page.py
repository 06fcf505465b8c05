"""The page of a run: what the store, Prefect and MLflow know of it, stop, and retry once."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from filelock import FileLock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import LogCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Crashed, Failed, Late, Running, Scheduled
from starlette.testclient import TestClient

from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import DatasetSummary, ErrorRecord, KeptStep, Located, RunRecord, RunResult
from backprop_core.store.artifacts import write_atomic
from flows.server.web import run_actions
from flows.server.web.mlflow_api import MlflowApi
from flows.server.web.prefect_api import PrefectApi
from flows.server.web.state import Sources
from tests.flows.server.web.conftest import BUSY, EVIL, NOWHERE, LineMaker, Pages, run_id
from tests.flows.server.web.test_actions import HERE


@pytest.fixture
def browser(client: SyncPrefectClient, support: LineMaker, pages: Pages) -> TestClient:
    """A browser, with Prefect there."""
    return pages(str(get_current_settings().api.url))


@pytest.fixture
def flow_run(client: SyncPrefectClient) -> Iterator[str]:
    """A flow run of a deployment of the line, running."""
    flow = client.create_flow_from_name("retrain")
    deployment = client.create_deployment(flow, "support", parameters={"line": "support"})
    run = client.create_flow_run_from_deployment(deployment, state=Running(), name="support v3")
    yield str(run.id)
    client.delete_flow_run(run.id)
    with suppress(ObjectNotFound):
        client.delete_deployment(deployment)


def press(browser: TestClient, path: str) -> Any:
    """Press a button of a page of ours."""
    return browser.post(path, data={"token": token(browser)}, headers=HERE)


def token(browser: TestClient) -> str:
    return str(re.findall('name="token" value="([0-9a-f]{64})"', browser.get("/lines/support").text)[0])


def ended(support: LineMaker, run: str, **fields: Any) -> None:
    """The result of a run."""
    made = RunResult(run_id=run, flow="retrain", line="support", spec={"line": "support"}, **fields)
    write_atomic(support.store.layout.run(run).result, made.model_dump_json())


def test_what_the_store_knows_of_a_run(support: LineMaker, pages: Pages) -> None:
    """Verdict, reason and files of a run are on its page; Prefect and MLflow being away is said, and no error."""
    answer = pages().get(f"/runs/{run_id(3)}")
    assert answer.status_code == 200 and "rejected" in answer.text and "routing fell &lt;script&gt;" in answer.text
    assert "MLflow does not answer" in answer.text and f"backprop show-run {run_id(3)[:8]}" in answer.text
    text = pages().get(f"/runs/{run_id(2)}").text
    [link] = re.findall(f'href="(/runs/{run_id(2)}/files/[^"]+q8_0.gguf)"', text)
    assert pages().get(link).content == b"GGUF" + bytes([2]) * 1000
    assert pages().get(link.replace("gguf", "none")).status_code == 404


def test_an_error_says_what_to_do(support: LineMaker, pages: Pages) -> None:
    """Message, hint and code of a failed run are on its page, escaped."""
    error = ErrorRecord(code="INPUT_VALIDATION_FAILED", message=f"line 241: {EVIL}", hint="mend it", retryable=False)
    ended(support, run_id(7), status="failed", error=error)
    text = pages().get(f"/runs/{run_id(7)}").text
    assert "line 241: &lt;script&gt;" in text and "What to do: mend it." in text and "INPUT_VALIDATION_FAILED" in text


def test_which_step_was_kept(support: LineMaker, pages: Pages) -> None:
    """A run that stopped early says at which step, and which step's adapter it has kept; its dataset's name escaped."""
    place = Located(digest="a" * 64, path="/t")
    dataset = DatasetSummary(name=EVIL, task="t", digest="b" * 64, train_rows=9, heldout_rows=3, dropped={})
    made = {"run_id": "c" * 32, "dataset": dataset, "tuned": place, "merged": place, "steps": 80, "tokens": 9}
    kept = KeptStep(step=60, loss=0.5, planned=120)
    record = RunRecord(**made, seconds=1, train_loss=1, cached=False, accepted=True, kept=kept)
    ended(support, run_id(7), status="finished", runs=[record])
    text = pages().get(f"/runs/{run_id(7)}").text
    assert "stopped at step 80 of 120, best step 60, held-out loss 0.5000" in text and "&lt;script&gt;" in text
    assert "best step" not in pages().get(f"/runs/{run_id(2)}").text


@pytest.mark.parametrize(
    "run", ["none", "a" * 32, "%2e%2e%2f", "..%2f..%2fetc", "%00", "11111111-1111-4111-8111-111111111111", "A" * 32]
)
def test_unknown_runs(browser: TestClient, support: LineMaker, run: str) -> None:
    """404 with a code, never a path of the disk."""
    answer = browser.get(f"/runs/{run}")
    assert answer.status_code == 404 and str(support.store.root) not in answer.text


def test_what_prefect_knows_of_a_run(browser: TestClient, client: SyncPrefectClient, flow_run: str) -> None:
    """Name, state and the last log lines of a flow run are on its page, before it has begun a run of ours, too."""
    lines = [
        LogCreate(
            name="x", level=20 + 20 * (n == 59), message=f"line-{n} {EVIL}", timestamp=at(n), flow_run_id=flow_run
        )
        for n in range(60)
    ]
    client.create_logs(lines)
    text = browser.get(f"/runs/{flow_run}").text
    assert "support v3" in text and "line-59 &lt;script&gt;" in text and "line-10 " not in text
    assert f'href="http://127.0.0.1:4301/runs/flow-run/{flow_run}"' in text
    assert browser.get(f"/api/v1/runs/{flow_run}").json()["prefect"]["logs"][-1]["level"] == "error"


def at(second: int) -> datetime:
    return datetime(2026, 11, 30, 12, 0, second, tzinfo=UTC)


def test_stop_is_asked_once(browser: TestClient, client: SyncPrefectClient, flow_run: str) -> None:
    """Stop asks Prefect to cancel; a second click changes nothing; a run that has ended is not stopped."""
    assert f'action="/runs/{flow_run}/stop"' in browser.get("/lines/support").text
    for _ in range(2):
        assert press(browser, f"/runs/{flow_run}/stop").headers["location"] == f"/runs/{flow_run}?done=stop"
    assert states(client, flow_run)[-1:] == ["CANCELLING"] and states(client, flow_run).count("CANCELLING") == 1
    client.set_flow_run_state(UUID(flow_run), Completed(), force=True)
    assert press(browser, f"/runs/{flow_run}/stop").status_code == 409


@pytest.mark.parametrize("late", [True, False], ids=["queued", "scheduled"])
def test_stop_of_a_run_that_has_not_begun(
    browser: TestClient, client: SyncPrefectClient, flow_run: str, late: bool
) -> None:
    """Prefect cancels it at once, which is what was asked."""
    due = Late() if late else Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
    client.set_flow_run_state(UUID(flow_run), due, force=True)
    answer = press(browser, f"/runs/{flow_run}/stop")
    assert (answer.status_code, states(client, flow_run)[-1]) == (303, "CANCELLED")


def states(client: SyncPrefectClient, flow_run: str) -> list[str]:
    """The states that a flow run has had."""
    return [state.type.value for state in client.read_flow_run_states(UUID(flow_run))]


@pytest.mark.parametrize("state", [Failed(), Crashed(), Cancelled()], ids=["failed", "crashed", "stopped"])
def test_retry_runs_once(browser: TestClient, client: SyncPrefectClient, flow_run: str, state: Any) -> None:
    """A run that failed, crashed or was stopped begins again, once, however often Retry is pressed."""
    assert press(browser, f"/runs/{flow_run}/retry").status_code == 409  # it runs
    client.set_flow_run_state(UUID(flow_run), state, force=True)
    assert f'action="/runs/{flow_run}/retry"' in browser.get(f"/runs/{flow_run}").text
    data = {"token": token(browser)}

    def click(_: int) -> int:
        return int(browser.post(f"/runs/{flow_run}/retry", data=data, headers=HERE).status_code)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(click, range(4))) == [303, 409, 409, 409]
    assert client.read_flow_run(UUID(flow_run)).state_name == "AwaitingRetry"
    assert states(client, flow_run).count("SCHEDULED") == 1


@contextmanager
def forgetful(path: str) -> Iterator[str]:
    """The address of a Prefect that does the first request to a path, and breaks off before it says so."""
    real, left = str(get_current_settings().api.url).removesuffix("/api"), [path]

    class Forgetful(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept = {"Content-Type": "application/json"} if content else {}
            known = httpx.request(self.command, f"{real}{self.path}", content=content, headers=kept, timeout=BUSY)
            if left and self.path.endswith(left[0]):
                left.clear()
                return
            self.send_response(known.status_code)
            self.send_header("Content-Length", str(len(known.content)))
            self.end_headers()
            self.wfile.write(known.content)

        do_POST = do_GET

        def log_message(self, format: str, *values: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Forgetful) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
    assert not left


@pytest.mark.parametrize(("action", "wanted"), [("stop", "CANCELLING"), ("retry", "SCHEDULED")])
def test_a_click_whose_answer_is_lost_is_done_once(
    client: SyncPrefectClient, support: LineMaker, pages: Pages, flow_run: str, action: str, wanted: str
) -> None:
    """Prefect has done it and the connection broke off: the page asks again, and it is not done a second time."""
    if action == "retry":
        client.set_flow_run_state(UUID(flow_run), Failed(), force=True)
    with forgetful("/set_state") as api:
        assert press(pages(api), f"/runs/{flow_run}/{action}").status_code == 303
    assert states(client, flow_run).count(wanted) == 1


def test_who_saw_the_same_state_changes_it_once(client: SyncPrefectClient, flow_run: str, home: Path) -> None:
    """A change that reaches Prefect late, after another click has made it, is that change and no second one."""
    client.set_flow_run_state(UUID(flow_run), Failed(), force=True)
    api = PrefectApi(str(get_current_settings().api.url), None)
    sources = Sources(settings(), api, MlflowApi(NOWHERE, None, "backprop"), {}, dict)
    known = run_actions.flow_run(flow_run, sources)
    for _ in range(2):
        run_actions.set_state(known, {"type": "SCHEDULED", "name": "AwaitingRetry"}, sources)
    api.close()
    assert states(client, flow_run).count("SCHEDULED") == 1


def test_without_its_deployment_no_run_begins_again(
    browser: TestClient, client: SyncPrefectClient, flow_run: str
) -> None:
    """Nothing carries out a retry of a run whose deployment is gone: the page has no button, and a click says why."""
    client.set_flow_run_state(UUID(flow_run), Failed(), force=True)
    deployment = client.read_flow_run(UUID(flow_run)).deployment_id
    assert deployment
    client.delete_deployment(deployment)
    answer = press(browser, f"/runs/{flow_run}/retry")
    assert answer.status_code == 404 and "DEPLOYMENT_MISSING" in answer.text
    assert f'action="/runs/{flow_run}/retry"' not in browser.get(f"/runs/{flow_run}").text
    assert states(client, flow_run)[-1] == "FAILED"


def test_a_run_of_a_terminal_is_not_stopped_here(browser: TestClient) -> None:
    """Of a run that this Prefect does not know, the answer says what to do in the terminal."""
    answer = press(browser, f"/runs/{run_id(2)}/stop")
    assert answer.status_code == 404 and f"backprop resume {run_id(2)}" in answer.text


def test_without_prefect_nothing_is_stopped(support: LineMaker, pages: Pages) -> None:
    """While Prefect is away the click says so, and can be repeated."""
    browser = pages()
    for action in ("stop", "retry"):
        assert press(browser, f"/runs/{uuid4()}/{action}").status_code == 503


def test_a_run_whose_process_lives_is_running(support: LineMaker, pages: Pages) -> None:
    """An earlier result does not count while the run is resumed; a run without process and result was interrupted."""
    error = ErrorRecord(code="RUNTIME_GPU_OOM", message="no memory", hint="wait", retryable=True)
    ended(support, run_id(8), status="failed", error=error)
    lock = support.store.layout.lease_lock(run_id(8))
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        known = pages().get(f"/api/v1/runs/{run_id(8)}").json()
    assert (known["run"]["status"], known["run"]["error"]) == ("running", None)
    assert pages().get(f"/api/v1/runs/{run_id(8)}").json()["run"]["status"] == "failed"


def test_the_loss_comes_from_mlflow(mlflow: str, support: LineMaker, pages: Pages, home: Path) -> None:
    """The loss of each LoRA run is a curve on the page, with the run's page in MLflow."""
    from mlflow import MlflowClient

    track = MlflowClient(mlflow)
    tags = {"backprop.namespace": settings().namespace, "backprop.root": run_id(2), "backprop.run_id": run_id(2)}
    experiment = track.create_experiment("backprop.support", tags={"backprop.namespace": settings().namespace})
    parent = track.create_run(experiment, tags=tags)
    for name in ("1-night", "2-day"):
        child = track.create_run(experiment, tags=tags | {"backprop.run_id": uuid4().hex}, run_name=name)
        for step in range(1, 6):
            track.log_metric(child.info.run_id, "loss", 3 / step, step=step)
    track.log_metric(child.info.run_id, "heldout_loss", 2.5, step=4)
    browser = pages(mlflow=mlflow)
    text = browser.get(f"/runs/{run_id(2)}").text
    assert text.count("<polyline") == 3 and "held-out 2-day" in text
    assert "1-night" in text and "2-day" in text
    assert f"{mlflow}/#/experiments/{experiment}/runs/{parent.info.run_id}" in text
    curves = browser.get(f"/api/v1/runs/{run_id(2)}").json()["mlflow"]["curves"]
    assert curves[0] == {"name": "1-night", "points": [[step, 3 / step] for step in range(1, 6)], "heldout": []}
    assert curves[1]["heldout"] == [[4, 2.5]]
