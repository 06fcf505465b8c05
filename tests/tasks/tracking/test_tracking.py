"""MLflow as the journals' copy: real databases, a real server, real kills."""

import gc
import json
import logging
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backprop_core.errors import HistoryDamaged, MLflowUnreachable, NameTaken, PlaceUnusable, RefAmbiguous, RunUnknown
from backprop_core.runtime import garbage
from backprop_core.runtime.settings import Settings
from backprop_core.schema.dataset_reports import CuratedReport, DroppedRows
from backprop_core.schema.gate_report import GateReport, TaskVerdict
from backprop_core.schema.refs import DatasetSummary, Drift, ErrorRecord, Evaluation, Located, RunResult
from tasks.tracking import RunFilter, Sender, list_runs, mlflow_run_id, run_link, show_run, sync, tracking_uri
from tasks.tracking.connection import connect, experiment_of
from tasks.tracking.journal import Journal
from tasks.tracking.sender import unsent

ROOT, CHILD, OTHER = "a1" * 16, "b2" * 16, "a3" * 16
DATASET = DatasetSummary(
    name="news", task="news", digest="1" * 64, train_rows=90, heldout_rows=10, dropped={"duplicate": 2}
)
ROWS = CuratedReport(
    name="news",
    task="news",
    digest="1" * 64,
    read=102,
    usable=100,
    train=90,
    heldout=10,
    dropped=[DroppedRows(reason="duplicate", rows=2, first=["line 2"])],
    not_trained={},
    steps=[],
)
GATE = GateReport(
    accepted=False,
    reason="news fell by 0.1",
    against="champion",
    metric="token_accuracy",
    average=0.55,
    rival_average=0.5,
    base_average=0.15,
    tasks=[
        TaskVerdict(
            **{"task": "news", "rows": 9, "candidate": 0.4, "rival": 0.5, "difference": -0.1},
            **{"low": -0.2, "high": -0.05, "worse": True, "too_small": False},
        )
    ],
)
MATRIX = Evaluation(
    tasks=["news", "chat"],
    watch=[],
    metric="token_accuracy",
    matrix=[[0.5, None], [0.4, 0.7]],
    loss=[[1.0, None], [1.1, 0.9]],
    exact_match=[[0.0, None], [0.0, 0.1]],
    base=[0.1, 0.2],
    base_exact_match=[0.0, 0.0],
    average=0.55,
    backward_transfer=-0.1,
    forgetting=[0.1, 0.0],
)


FIRST_USE = """
import sys
from pathlib import Path
from backprop_core.runtime.settings import Settings
from tasks.tracking.connection import connect
assert "mlflow" not in sys.modules and "matplotlib" not in sys.modules
client = connect(Settings(home=Path(sys.argv[1])))
client.get_experiment("0")
from mlflow.telemetry.client import get_telemetry_client
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled() and get_telemetry_client() is None
"""


@pytest.fixture(scope="module")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A home where MLflow was used once, in a process that nothing marks as a test; its database takes seconds."""
    home = tmp_path_factory.mktemp("template")
    for_a_user = ("PATH", "HOME", "LANG", "PYTHONPATH")
    environment = {name: os.environ[name] for name in for_a_user if name in os.environ}
    command = [sys.executable, "-c", FIRST_USE, str(home)]
    return home, subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def new_database(first_use: tuple[Path, object]) -> Path:
    return first_use[0] / "mlflow.db"


@pytest.fixture
def config(tmp_path: Path, new_database: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mlflow.db").write_bytes(new_database.read_bytes())
    return Settings(home=tmp_path / "home")


def record(config: Settings, run_id: str = ROOT, *, steps: int = 30, line: str = "support") -> RunResult:
    """A whole run with one child, as a flow journals it."""
    adapter = config.home_path / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "adapter_model.safetensors").chmod(0o444)
    result = RunResult(
        run_id=run_id,
        line=line,
        status="finished",
        spec={"line": line},
        evaluation=MATRIX,
        merged=Located(digest="2" * 64, path=str(adapter)),
        gate=GATE,
    )
    with Journal(config.journal_path, run_id) as journal:
        journal.start(line=line, name="multi-run", params={"training.steps": str(steps)}, tags={"version": "0.1"})
        journal.document("spec.json", {"line": line})
        child = journal.child(run_id[::-1])
        child.start(line=line, name="1-news")
        child.inputs([DATASET])
        for step in range(steps):
            child.metrics(step, {"loss": 1 / (step + 1), "tokens": step * 100.0})
        child.end("finished")
        journal.inputs([DATASET])
        journal.datasets([ROWS])
        journal.evaluation(MATRIX)
        journal.drift(2, Drift(a=1.2, b=0.04, weight=0.7))
        journal.result(result)
    return result


def database(config: Settings) -> sqlite3.Connection:
    """MLflow's database, read without MLflow."""
    return sqlite3.connect(config.home_path / "mlflow.db")


def counts(config: Settings) -> dict[str, int]:
    with database(config) as rows:
        tables = ("runs", "metrics", "params", "tags", "datasets", "inputs")
        return {table: rows.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_mlflow_is_quiet_and_tells_nobody(first_use: tuple[object, subprocess.CompletedProcess[str]]) -> None:
    """Telemetry is off also where MLflow does not take us for a test, and a new database says nothing."""
    done = first_use[1]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_run_is_recorded_whole(config: Settings) -> None:
    """Parent and child, parameters, tags, every metric with its step, inputs and artifacts reach MLflow."""
    record(config)
    report = sync(config)
    assert (report.sent, report.waiting, report.error) == (1, 0, None)
    client = connect(config)
    parent = client.get_run(str(mlflow_run_id(config, ROOT)))
    (child,) = client.search_runs([parent.info.experiment_id], "tags.`backprop.role` = 'child'")
    assert client.get_experiment(parent.info.experiment_id).name == "backprop.support"
    assert (parent.info.status, parent.info.run_name, child.info.run_name) == ("FINISHED", "multi-run", "1-news")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.params == {"training.steps": "30"}
    assert parent.data.tags["backprop.merged"] == "2" * 64 and parent.data.tags["version"] == "0.1"
    history = client.get_metric_history(child.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / (step + 1)) for step in range(30)]
    history = client.get_metric_history(parent.info.run_id, "token_accuracy.news")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.1), (1, 0.5), (2, 0.4)]
    names = ("forgetting.news", "gate.difference.news", "gate.low.news", "gate.high.news", "merge.weight")
    assert [parent.data.metrics[name] for name in names] == [0.1, -0.1, -0.2, -0.05, 0.7]
    assert parent.data.metrics["perplexity.news"] == pytest.approx(math.exp(parent.data.metrics["loss.news"]))
    assert (parent.data.tags["backprop.gate"], parent.data.tags["backprop.gate.reason"]) == ("rejected", GATE.reason)
    (given,) = child.inputs.dataset_inputs
    assert given.dataset.name == "news" and given.dataset.digest == "1" * 36
    assert "1" * 64 in given.dataset.source
    artifacts = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(config.home_path / "mlruns")
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert files == {
        "spec.json",
        "result.json",
        "gate.json",
        "dataset-report.json",
        "dataset-report.html",
        "matrix.json",
        "forgetting.png",
        "merged/adapter_model.safetensors",
    }
    assert [CuratedReport(**one) for one in json.loads((artifacts / "dataset-report.json").read_text())] == [ROWS]
    table = json.loads((artifacts / "matrix.json").read_text())
    assert table["data"] == [["base", 0.1, 0.2], ["1", 0.5, None], ["2", 0.4, 0.7]]


def test_sending_again_changes_nothing(config: Settings) -> None:
    """A crash after MLflow took a batch and before that was noted costs no duplicate."""
    record(config, steps=600)
    sync(config)
    before = counts(config)
    assert before["metrics"] == 1200 + sum(len(row) for row in ([0] * 4, [0] * 4, [0] * 12, [0] * 8))
    sent = config.journal_path / "sent"
    (sent / f"{ROOT}.jsonl").rename(config.journal_path / f"{ROOT}.jsonl")
    config.layout.journal.sent.sent_note(ROOT).unlink()
    assert sync(config).sent == 1
    assert counts(config) == before


SYNC_ON_COMMAND = """
import sys
from pathlib import Path
from backprop_core.runtime.settings import Settings
from tasks.tracking import sync
from tasks.tracking.connection import connect
config = Settings(home=Path(sys.argv[1]))
connect(config)
print("ready", flush=True)
sys.stdin.readline()
print(sync(config).error)
"""


def test_two_processes_send_once(config: Settings) -> None:
    """Senders of several processes at the same time do not make a run twice."""
    command = [sys.executable, "-c", SYNC_ON_COMMAND, str(config.home_path)]
    other = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    assert other.stdin and other.stdout and other.stdout.readline() == "ready\n"
    record(config, ROOT)
    record(config, OTHER)
    other.stdin.write("go\n")
    other.stdin.flush()
    assert sync(config).error is None
    assert other.communicate()[0] == "None\n"
    assert counts(config)["runs"] == 4


def test_a_database_that_was_lost_is_filled_again(config: Settings, new_database: Path) -> None:
    """When MLflow no longer knows a run that goes on, its whole journal is sent to where MLflow is now."""
    with Journal(config.journal_path, ROOT) as journal:
        journal.start(line="support", name="train")
        journal.metrics(1, {"loss": 1.0})
        assert sync(config).error is None
        with sqlite3.connect(new_database) as empty, database(config) as lost:
            empty.backup(lost)
        journal.metrics(2, {"loss": 0.5})
        assert sync(config).error
        assert sync(config).error is None
    assert counts(config)["metrics"] == 2


WRITE_AND_WAIT = """
import sys
from pathlib import Path
from tasks.tracking.journal import Journal
journal = Journal(Path(sys.argv[1]), sys.argv[2])
journal.start(line="support", name="multi-run")
journal.child(sys.argv[3]).start(line="support", name="1-news")
journal.document("spec.json", {"line": "support"})
print("written", flush=True)
sys.stdin.read()
"""


def test_a_killed_run_is_interrupted_until_it_goes_on(config: Settings) -> None:
    """A run is `running` while its process lives, `interrupted` when it was killed, and what it became in the end."""
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(config.journal_path), ROOT, CHILD]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout and writer.stdout.readline() == "written\n"
    assert [(run["status"], run["seconds"]) for run in list_runs(config)] == [("running", None)]
    writer.kill()
    writer.communicate()
    (run,) = list_runs(config)
    assert run["status"] == "interrupted" and run["seconds"] is not None
    shown = show_run(config, ROOT[:6])
    assert (shown.status, shown.spec, shown.run_id) == ("interrupted", {"line": "support"}, ROOT)
    with database(config) as rows:
        assert {state for (state,) in rows.execute("SELECT status FROM runs")} == {"KILLED"}
    with Journal(config.journal_path, ROOT) as journal:
        journal.start(line="support", name="multi-run")
        assert [run["status"] for run in list_runs(config)] == ["running"]
        assert show_run(config, ROOT).status == "running"
        error = ErrorRecord(code="RUNTIME_GPU_OOM", message="too large", hint="less", retryable=False)
        result = RunResult(run_id=ROOT, line="support", status="failed", spec={"line": "support"}, error=error)
        journal.result(result)
    assert [(run["status"], run["error"]) for run in list_runs(config)] == [("failed", "RUNTIME_GPU_OOM")]
    assert show_run(config, ROOT).error == error


def test_what_another_machine_has_finished_stays_so(
    config: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed here and finished elsewhere, on one MLflow, is not interrupted by what is sent from here later."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{config.home_path / 'mlflow.db'}")
    other = Settings(home=tmp_path / "other")
    other.home_path.mkdir()
    with Journal(config.journal_path, ROOT) as journal:
        journal.start(line="support", name="multi-run")
        assert sync(config).error is None
        time.sleep(0.01)  # the times of a record are in milliseconds
        record(other)
        assert sync(other).error is None
    assert sync(config).sent == 1
    with database(config) as rows:
        assert {state for (state,) in rows.execute("SELECT status FROM runs")} == {"FINISHED"}


def test_history_lists_parents_newest_first(config: Settings) -> None:
    """Parents of every line of our namespace, their children when asked, the summary as journaled."""
    record(config, ROOT)
    record(config, OTHER, line="sales")
    connect(config).create_run(connect(config).create_experiment("somebody-else"))
    runs = list_runs(config)
    assert [run["run_id"] for run in runs] == [OTHER, ROOT]
    assert {name: runs[1][name] for name in ("line", "status", "datasets", "average", "error")} == {  # type: ignore[literal-required]
        "line": "support",
        "status": "finished",
        "datasets": ["news"],
        "average": 0.55,
        "error": None,
    }
    assert len(list_runs(config, RunFilter(children=True))) == 4 and len(list_runs(config, limit=1)) == 1
    assert list_runs(Settings(home=config.home, namespace="another")) == []


def test_a_run_is_found_by_prefix_child_or_mlflow_id(config: Settings) -> None:
    """Whatever names one run shows its result; what names none or two is refused with the candidates."""
    result = record(config, ROOT)
    record(config, OTHER)
    sync(config)
    known = result.model_copy(update={"mlflow_run_id": mlflow_run_id(config, ROOT)})
    for name in ("a1", ROOT, ROOT[::-1], str(known.mlflow_run_id)):
        assert show_run(config, name) == known
    with pytest.raises(RefAmbiguous, match=f"{ROOT}, {OTHER}"):
        show_run(config, "a")
    for unknown in ("ffff", "%", "' OR '1'='1", ""):
        with pytest.raises((RunUnknown, RefAmbiguous) if unknown == "" else RunUnknown):
            show_run(config, unknown)


def test_a_fresh_home_has_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking into an empty history makes no database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = Settings(home=tmp_path / "home")
    assert list_runs(config) == []
    with pytest.raises(RunUnknown):
        show_run(config, "a1")
    assert not config.home_path.exists()


def test_a_foreign_experiment_is_refused(config: Settings) -> None:
    """An experiment of our name without our tag is not written into; other lines are sent all the same."""
    connect(config).create_experiment("backprop.support")
    with pytest.raises(NameTaken):
        experiment_of(connect(config), config, "support")
    record(config, ROOT)
    record(config, OTHER, line="sales")
    report = sync(config)
    assert report.sent == report.waiting == 1 and "backprop.support" in str(report.error)


def test_what_is_too_large_or_gone_is_named(config: Settings) -> None:
    """An artifact above 1 GiB, or one that was removed meanwhile, is recorded by digest and place."""
    large = config.home_path / "large"
    large.mkdir()
    with (large / "adapter_model.safetensors").open("wb") as file:
        file.truncate(2**30 + 1)
    with Journal(config.journal_path, ROOT) as journal:
        journal.start(line="support", name="train")
        journal.directory("merged", Located(digest="3" * 64, path=str(large)))
        journal.directory("tuned", Located(digest="4" * 64, path=str(config.home_path / "gone")))
        journal.end("finished")
    assert sync(config).error is None
    run = connect(config).get_run(str(mlflow_run_id(config, ROOT)))
    assert run.data.tags["backprop.merged"] == "3" * 64 and run.data.tags["backprop.merged.uri"] == large.as_uri()
    assert run.data.tags["backprop.tuned"] == "4" * 64
    assert not list((config.home_path / "mlruns").rglob("*.safetensors"))


def test_no_secret_reaches_mlflow(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary from the environment is neither in the database nor in an artifact."""
    monkeypatch.setenv("HF_TOKEN", "canary-90125")
    with Journal(config.journal_path, ROOT) as journal:
        journal.start(line="support", name="train", params={"path": "x?token=canary-90125", "name": "plainly-there"})
        journal.document("spec.json", {"path": "canary-90125"})
        journal.end("finished")
    sync(config)
    texts = [path.read_bytes() for path in config.home_path.rglob("*") if path.is_file()]
    assert any(b"plainly-there" in text for text in texts)
    assert not any(b"canary-90125" in text for text in texts)


@pytest.mark.parametrize("place", ["http", "sqlite"])
def test_without_mlflow_the_work_goes_on(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody answering, or a database that cannot be written: one warning, nothing raised, soon over."""
    (tmp_path / "file").write_text("")
    uri = {"http": f"http://127.0.0.1:{free_port()}", "sqlite": f"sqlite:///{tmp_path}/file/mlflow.db"}[place]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = Settings(home=tmp_path / "home")
    config.home_path.mkdir()
    record(config)
    before = time.monotonic()
    report = sync(config)
    assert time.monotonic() - before < 5
    assert (report.sent, report.waiting) == (0, 1) and "does not answer" in str(report.error)
    with caplog.at_level(logging.WARNING):
        sender = Sender(config, every=0.05)
        sender.start()
        time.sleep(0.3)
        sender.finish(10)
    (warning,) = [entry for entry in caplog.records if entry.name.startswith("tasks")]
    assert "backprop sync" in warning.message and not warning.exc_info
    with pytest.raises(MLflowUnreachable):
        list_runs(config)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """`mlflow server` on a port of its own, that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.uri = f"http://127.0.0.1:{free_port()}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port = self.uri.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._directory}/mlflow.db"]
        command += ["--artifacts-destination", str(self._directory / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self._directory / "server.log").read_text())

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path, new_database: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "mlflow.db").write_bytes(new_database.read_bytes())
    server = Server(tmp_path / "server")
    yield server
    server.kill()


def test_a_run_that_is_over_before_mlflow_was_due_is_recorded(config: Settings) -> None:
    """A sender that leaves the processor to others first waits no longer than the run takes."""
    record(config)
    sender = Sender(config, after=600)
    sender.start()
    assert not config.layout.journal.sent_note(ROOT).exists()
    sender.finish(60)
    assert not list(config.journal_path.glob("*.jsonl")) and len(list_runs(config)) == 1


@pytest.mark.parametrize("collecting", [True, False])
def test_an_import_leaves_the_search_for_garbage_as_it_was(collecting: bool) -> None:
    """Off while the block runs, also where it fails; then as before."""
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    with pytest.raises(ImportError), garbage.none():
        assert not gc.isenabled()
        raise ImportError
    after = gc.isenabled()
    (gc.enable if before else gc.disable)()
    assert after is collecting


def test_a_server_that_goes_and_comes_gets_every_step_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down before the run, up, killed while it is sent, back again: the record is whole, every step is there once."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    config = Settings(home=tmp_path / "home")
    config.home_path.mkdir()
    steps = 4000
    result = record(config, steps=steps)
    assert tracking_uri(config) == server.uri and sync(config).error
    server.start()
    server.wait()
    sender = Sender(config, every=0.1)
    sender.start()
    while not config.layout.journal.sent_note(ROOT).exists():
        time.sleep(0.01)
    server.kill()
    sender.finish(20)
    assert sync(config).waiting == 1 and list((config.journal_path).glob("*.jsonl"))
    server.start()
    server.wait()
    assert sync(config).error is None
    client = connect(config)
    (child,) = client.search_runs([experiment_of(client, config, "support")], "tags.`backprop.role` = 'child'")
    seen = Counter(metric.step for metric in client.get_metric_history(child.info.run_id, "loss"))
    assert seen == Counter(range(steps))
    known = result.model_copy(update={"mlflow_run_id": mlflow_run_id(config, ROOT)})
    assert show_run(config, ROOT) == known
    assert str(run_link(config, ROOT)).endswith(f"/runs/{known.mlflow_run_id}")


def test_the_history_leaves_waits_out(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`took` of a run that waited for a person is the time that it worked."""
    path = config.journal_path / f"{ROOT}.jsonl"
    with Journal(config.journal_path, ROOT) as journal:
        journal.start(line="support", name="retrain")
    begin = json.loads(path.read_text())["time"]
    waited = {"kind": "waited", "time": begin + 7_204_000, "run": ROOT, "since": begin + 4_000, "on": "person"}
    with path.open("a") as file:
        file.write(json.dumps(waited) + "\n")
    with Journal(config.journal_path, ROOT) as journal, monkeypatch.context() as later:
        later.setattr("tasks.tracking.journal.now", lambda: begin + 7_210_000)
        journal.end("finished")
    [run] = list_runs(config)
    assert (run["status"], run["seconds"]) == ("finished", 10.0)


def test_a_dead_run_is_not_running_where_its_end_could_not_be_recorded(
    config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While MLflow's database takes nothing, the journal tells how its runs ended; what lives is running."""
    at_once = SimpleNamespace(**(vars(time) | {"sleep": lambda _: None}))  # MLflow waits a minute between its tries
    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.time", at_once)
    living = Journal(config.journal_path, OTHER)
    living.start(line="support", name="train")
    with Journal(config.journal_path, ROOT) as journal:
        journal.start(line="support", name="train")
        sync(config)
        journal.end("failed", ErrorRecord(code="RUNTIME_DISK_FULL", message="x", hint="y", retryable=True))
    with database(config) as rows:
        for what in ("UPDATE ON runs", "INSERT ON tags", "UPDATE ON tags"):
            name = what.replace(" ", "_")
            rows.execute(
                f"CREATE TRIGGER {name} BEFORE {what} BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
            )
    assert sync(config).error
    assert {run["run_id"]: run["status"] for run in list_runs(config)} == {ROOT: "failed", OTHER: "running"}
    assert show_run(config, ROOT).status == "failed"
    living.close()
    assert {run["status"] for run in list_runs(config)} == {"failed", "interrupted"}


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def overwritten(path: Path) -> None:
    path.write_bytes(b"this is no database\n" * 500)


def torn(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def of_another_version(path: Path) -> None:
    with sqlite3.connect(path) as rows:
        rows.execute("UPDATE alembic_version SET version_num = 'feedbeef'")


BREAK = {"truncated": truncated, "overwritten": overwritten, "torn": torn, "another version": of_another_version}


@pytest.mark.parametrize("harm", BREAK.values(), ids=BREAK)
def test_a_broken_database_costs_no_run(config: Settings, harm: Callable[[Path], None]) -> None:
    """The error names the file and what to do, and the next run is recorded in the journal."""
    record(config)
    assert sync(config).error is None and len(list_runs(config)) == 1
    own = config.home_path / "mlflow.db"
    harm(own)
    error = by_another_command(config, "list-runs", status=2)["error"]
    assert (error["code"], error["retryable"]) == (HistoryDamaged.code, False)
    assert str(own) in error["message"] and f"mv {own} {own}.broken" in error["hint"]
    assert len(error["message"]) < 300 and "sqlalche" not in error["message"]
    record(config, OTHER)
    report = by_another_command(config, "sync", status=3)
    assert str(own) in report["error"] and report["waiting"] == 1


def test_a_broken_database_put_aside_is_made_again(config: Settings) -> None:
    """What the error says to do brings every run back: those that were sent and those that waited."""
    before = record(config)
    assert sync(config).error is None
    own = config.home_path / "mlflow.db"
    truncated(own)
    record(config, OTHER)
    assert by_another_command(config, "sync", status=3)["waiting"] == 1
    own.rename(f"{own}.broken")
    assert {run["run_id"] for run in by_another_command(config, "list-runs")} == {ROOT, OTHER}
    again = by_another_command(config, "show-run", ROOT)
    assert {**again, "mlflow_run_id": None} == before.model_dump(mode="json")
    assert not list(config.journal_path.glob("*.jsonl"))


def by_another_command(config: Settings, *words: str, status: int = 0) -> Any:
    """What a command says in JSON; MLflow keeps databases open, so a new one needs a new process."""
    code = "import sys; from flows.cli.main import main; sys.exit(main(sys.argv[1:]))"
    told = os.environ | {"BACKPROPAGATE_HOME": str(config.home_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--json"], env=told, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_a_database_of_no_bytes_is_filled_again(config: Settings) -> None:
    """To SQLite that is a database without tables; the journals that it had are sent again."""
    record(config)
    assert sync(config).error is None
    (config.home_path / "mlflow.db").write_bytes(b"")
    assert [run["run_id"] for run in by_another_command(config, "list-runs")] == [ROOT]


def test_a_database_that_cannot_be_opened_is_named(config: Settings) -> None:
    """A directory in its place is the user's to mend, and no reason to wait for a server."""
    own = config.home_path / "mlflow.db"
    own.unlink()
    own.mkdir()
    with pytest.raises(PlaceUnusable):
        list_runs(config)


RETIRE = """
import sys
from pathlib import Path
from backprop_core.store.layout import JournalLayout
from tasks.tracking.journal import bring_back, retire
journals = JournalLayout(Path(sys.argv[1]))
print("at it", flush=True)
for _ in range(400):
    for number in range(8):
        retire(journals, f"{number:032x}", 10**9)
    for number in range(8):
        bring_back(journals, f"{number:032x}")
"""


def test_a_sync_beside_another_that_puts_journals_away_never_raises(config: Settings) -> None:
    """Journals vanish and come back while they are listed, sorted and looked at."""
    config.journal_path.mkdir()
    for number in range(8):
        (config.journal_path / f"{number:032x}.jsonl").write_text("")
    other = subprocess.Popen(
        [sys.executable, "-c", RETIRE, str(config.journal_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout and other.stdout.readline()
    while other.poll() is None:
        list(unsent(config))
    assert other.returncode == 0
    other.stdout.close()


@pytest.mark.parametrize("harm", ["registry.json", "sync.lock", ".sent"])
def test_a_note_that_cannot_be_read_stops_no_sync(config: Settings, harm: str) -> None:
    """Half a note, or a directory in its place: it is said, or found out again, and nothing is raised."""
    record(config)
    path = config.layout.journal.sent_note(ROOT) if harm == ".sent" else config.journal_path / harm
    if harm == "sync.lock":
        path.mkdir()
        assert sync(config).error
    else:
        path.write_text('{"uri": "sqli')
        assert sync(config).error is None


FIRST = """
import sys
from pathlib import Path
from backprop_core.runtime.settings import Settings
from tasks.tracking.connection import connect, prepare
prepare()
print("ready", flush=True)
sys.stdin.readline()
connect(Settings(home=Path(sys.argv[1])))
"""


def test_several_first_commands_make_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh home one makes the tables, and the others wait for it; nobody fails."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-c", FIRST, str(tmp_path / "home")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    several = [subprocess.Popen(command, **pipes, text=True) for _ in range(4)]  # type: ignore[call-overload]
    for one in several:
        assert one.stdout.readline() == "ready\n"
    for one in several:
        one.stdin.write("go\n")
        one.stdin.flush()
    ended = [(one.communicate()[1], one.returncode) for one in several]
    assert [status for _, status in ended] == [0] * 4, ended
