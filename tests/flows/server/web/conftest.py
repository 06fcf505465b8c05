"""A home with a line of two versions, and its pages without a network."""

import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from starlette.testclient import TestClient
from werkzeug.serving import make_server

from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.lines.votes import Vote
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.gate_report import Decision, GateReport, TaskVerdict
from backprop_core.schema.refs import (
    AdapterRef,
    BaseRef,
    DatasetRef,
    Evaluation,
    FileAnswer,
    GGUFRecord,
    GGUFRef,
    RowsRef,
    RunResult,
    Scores,
)
from backprop_core.schema.specs import GenerationSpec, LoraSpec, MergeSpec
from backprop_core.store.artifacts import Store, write_atomic
from flows.server import passwords, private_files
from flows.server.users import Role, User, UsersFile
from flows.server.web import mlflow_api, prefect_api
from flows.server.web.app import application
from flows.server.web.mlflow_api import MlflowApi
from flows.server.web.prefect_api import PrefectApi
from flows.server.web.state import Sources
from tasks.tracking.connection import prepare

SECRET = "horse staple"  # of every user
EVIL = "<script>alert('x')</script>"
BUSY = httpx.Timeout(120.0)  # seconds: on a busy machine a server is slow, and not away
NOWHERE = "http://127.0.0.1:9/api"  # the discard port: nothing listens there
Pages = Callable[..., TestClient]


def run_id(number: int) -> str:
    return f"{number:032x}"


class LineMaker:
    """Writes versions of the line `support` as a retrain leaves them, without training anything."""

    def __init__(self, config: Settings) -> None:
        self.store = Store(config.store_path)
        self.lines = Lines(self.store)

    def version(self, number: int, score: float, reason: str = "better on average", said: str = "") -> LineVersion:
        """Append a version and make it the champion; `said` is the reason of the person who approved it."""
        gguf = self.file("model.gguf", b"GGUF" + bytes([number]) * 1000, GGUFRef, quantization="q8_0", bytes=1004)
        merged = self.adapter(number)
        tasks = {"routing": score, f"{EVIL}": score / 2}
        report = gate(reason, tasks)
        earlier = [self.lines.version("support", before) for before in range(1, number)]
        version = LineVersion(
            run_id=run_id(number),
            base=BaseRef(name="acme/base", digest="a" * 64),
            lora=LoraSpec(),
            merge=MergeSpec(),
            tuned=merged,
            merged=merged,
            count=number,
            datasets=[*(earlier[-1].datasets if earlier else []), self.dataset(number)],
            heldout={task: RowsRef(digest="b" * 64, rows=20) for task in tasks},
            scores={task: scores(value) for task, value in tasks.items()},
            parent=number - 1 or None,
            gate=report,
        )
        self.result(version, gguf, report)
        if said:
            decision = Decision(approved=True, reason=said)
            write_atomic(self.store.layout.run(version.run_id).decision, decision.model_dump_json())
        self.lines.append("support", version, after=number - 1)
        self.lines.set_champion("support", number)
        return version

    def file(self, name: str, content: bytes, ref: Any, **fields: Any) -> Any:
        """An artifact of one file."""
        with self.store.begin(ref.artifact) as directory:
            (directory / name).write_bytes(content)
            return self.store.commit(directory, ref, record={}, **fields)

    def adapter(self, number: int) -> AdapterRef:
        with self.store.begin("adapter") as directory:
            (directory / "adapter_model.safetensors").write_bytes(b"adapter %d" % number)
            (directory / "adapter_config.json").write_text("{}")
            return self.store.commit(directory, AdapterRef, record={}, kind="merged")

    def dataset(self, number: int) -> DatasetRef:
        """Rows that try to run in a page."""
        turns = [{"role": "user", "content": f"row {number} {EVIL}"}, {"role": "assistant", "content": "**ok**"}]
        text = json.dumps({"messages": turns}) + "\n"
        rows = self.file("rows.jsonl", text.encode(), RowsRef, rows=1)
        return DatasetRef(
            name=f"night{number}{EVIL}", task="routing", train=rows, heldout=rows, read=12, dropped={"malformed": 2}
        )

    def result(self, version: LineVersion, gguf: GGUFRef, report: GateReport) -> None:
        """The result of the run that made a version."""
        made = result(version.run_id, gguf, report, list(version.scores), steps=10 * version.count)
        write_atomic(self.store.layout.run(version.run_id).result, made.model_dump_json())

    def rejected(self, number: int, reason: str) -> None:
        """The result of a run whose candidate was rejected."""
        made = result(run_id(number), None, gate(reason, {"routing": 0.1}, accepted=False), ["routing"], steps=1)
        write_atomic(self.store.layout.run(made.run_id).result, made.model_dump_json())


def scores(value: float) -> Scores:
    return Scores(digest="c" * 64, rows=20, tokens=100, loss=1 - value, token_accuracy=value, exact_match=0)


def gate(reason: str, tasks: dict[str, float], *, accepted: bool = True) -> GateReport:
    """A verdict on these scores."""
    verdicts = [
        TaskVerdict(
            task=task, rows=20, candidate=score, rival=score - 0.05, difference=0.05, worse=False, too_small=False
        )
        for task, score in tasks.items()
    ]
    average = sum(tasks.values()) / len(tasks)
    return GateReport(
        accepted=accepted,
        reason=reason,
        against="champion",
        metric="token_accuracy",
        average=average,
        rival_average=average - 0.05,
        base_average=0.2,
        gain_low=0.01,
        tasks=verdicts,
    )


def result(run: str, gguf: GGUFRef | None, report: GateReport, tasks: list[str], *, steps: int) -> RunResult:
    """A retrain's result; its file answers with a script."""
    answer = FileAnswer(prompt="which team?", answer=f"run {run[-1]} {EVIL}", reference="", stopped=True)
    file = GGUFRecord(**gguf.model_dump(), path="", fidelity={"answers": [answer.model_dump()]}) if gguf else None
    row: list[float | None] = [each.candidate for each in report.tasks]
    return RunResult(
        run_id=run,
        flow="retrain",
        line="support",
        status="finished" if report.accepted else "rejected",
        spec={"line": "support", "training": {"steps": steps}},
        evaluation=Evaluation(
            tasks=tasks,
            watch=[],
            metric="token_accuracy",
            matrix=[row],
            loss=[row],
            exact_match=[row],
            base=[0.2] * len(tasks),
            base_exact_match=[0.0] * len(tasks),
            average=report.average,
            backward_transfer=None,
            forgetting=[0.01] * len(tasks),
        ),
        gate=report,
        gguf=[file] if file else [],
    )


def vote(run: str) -> Vote:
    """A vote on what a run made."""
    return Vote(
        run_id=run,
        against="Live v2",
        verdict="better",
        note=f"right team {EVIL}",
        by="ann",
        at=datetime.now(UTC),
        blind=True,
        seed=1,
        messages=[{"role": "user", "content": "a"}],
        answer="b",
        other="c",
        generation=GenerationSpec(),
    )


@pytest.fixture
def made(home: Path) -> LineMaker:
    """An empty home's line."""
    return LineMaker(settings())


@pytest.fixture
def support(made: LineMaker) -> LineMaker:
    """The line `support` with two versions, the second approved by a person, and a rejected candidate."""
    made.version(1, 0.8)
    made.version(2, 0.9, said=f"good {EVIL}")
    made.rejected(3, f"routing fell {EVIL}")
    return made


@pytest.fixture
def pages(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    """The pages as a browser gets them; without Prefect, unless its address is given."""
    cleanup = ExitStack()
    for api in (prefect_api, mlflow_api):
        monkeypatch.setattr(api, "PATIENCE", BUSY)

    def make(api: str = NOWHERE, password: str | None = None, mlflow: str = NOWHERE) -> TestClient:
        addresses = {"prefect": "http://127.0.0.1:4301", "mlflow": "http://127.0.0.1:4302"}
        alive = {"prefect": True, "mlflow": True, "worker": True}
        servers = PrefectApi(api, None), MlflowApi(mlflow, None, settings().namespace)
        for server in servers:
            cleanup.callback(server.close)
        sources = Sources(settings(), *servers, addresses, lambda: alive)
        app = application(sources, hosts=["testserver"], password=password)
        return TestClient(app, follow_redirects=False)

    with cleanup:
        yield make


@pytest.fixture
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    """Prefect's own client."""
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own server, in this process."""
    place = tmp_path_factory.mktemp("mlflow")
    os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{place / 'mlflow.db'}"
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = str(place / "artifacts")
    prepare()
    with warnings.catch_warnings(action="ignore"):  # a part of Starlette that MLflow uses is deprecated
        import starlette.middleware.wsgi  # noqa: F401
    from mlflow.server import app

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as during:  # the first request makes its database that of this process
        during.setenv("MLFLOW_TRACKING_URI", "")
        during.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        search = f"{address}/api/2.0/mlflow/experiments/search"
        httpx.get(search, params={"max_results": 1}, timeout=BUSY).raise_for_status()
    yield address
    server.shutdown()
    thread.join()


@cache
def hashed() -> str:
    """A hash that takes its time once."""
    return passwords.hashed(SECRET)


def people(**roles: Role) -> None:
    """Users of these names and roles, with one password."""
    config = settings()
    config.layout.root.mkdir(exist_ok=True)
    named = {name: User(name=name, role=role, password=hashed()) for name, role in roles.items()}
    private_files.replace(config.layout.users, UsersFile(users=named).model_dump_json())


def sign_in(browser: TestClient, name: str, secret: str = SECRET, then: str = "/") -> Any:
    """Fill in the login page."""
    page = browser.get("/login", params={"then": then}, headers={"Accept": "text/html"}).text
    [given] = re.findall('name="token" value="([0-9a-f]{64})"', page)
    [after] = re.findall('name="then" value="([^"]*)"', page)
    data = {"token": given, "then": after, "name": name, "password": secret}
    return browser.post("/login", data=data, headers={"Accept": "text/html", "Origin": "http://testserver"})
