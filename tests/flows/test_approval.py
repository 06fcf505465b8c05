"""A person's word before a release: asked once, in a form or at the terminal, and nothing is done twice."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Paused

from backprop_core.errors import ApprovalUnattended, BackpropError, Interrupted
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import ApprovalSpec, ExportSpec, GateSpec, LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store, write_atomic
from flows import approval
from flows.cli import prefect_environment
from flows.retrain import retrain
from tasks import tracking

pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")
JOB = {
    "training": TrainSpec(steps=2, batch_size=8, learning_rate=1e-2, lora=LoraSpec(rank=4)),
    "gate": GateSpec(max_drop=1),
    "export": ExportSpec(quantizations=["f16"]),
}
ASKED = ApprovalSpec(ask=True)
CHILD = """
import sys
from tests.flows.test_approval import ASKED, JOB, retrain
retrain("killed", sys.argv[1], model=sys.argv[2], approval=ASKED, **JOB)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for these tests: they share what is cached."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("BACKPROPAGATE_HOME", str(home))
        patch.setattr(approval, "POLL", 0.1)
        yield home


@pytest.fixture(scope="module")
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


class Retrain(threading.Thread):
    """A retrain that goes on beside the test."""

    def __init__(self, line: str, data: str, base: Path, **parameters: Any) -> None:
        super().__init__(daemon=True)
        self._call = lambda: retrain(line, data, model=str(base), **JOB, **parameters)
        self.start()

    def run(self) -> None:
        try:
            self._result: RunResult | BackpropError = self._call()
        except BackpropError as error:
            self._result = error

    def result(self) -> RunResult:
        """What came of it; raises what it raised."""
        self.join()
        if isinstance(self._result, BackpropError):
            raise self._result
        return self._result


def question(client: SyncPrefectClient, line: str) -> FlowRun:
    """The flow run that waits for an answer."""
    waiting = FlowRunFilter(state=FlowRunFilterState.model_validate({"type": {"any_": ["PAUSED"]}}))
    asking = FlowFilter(name=FlowFilterName(any_=["approval"]))
    for _ in range(600):
        found = client.read_flow_runs(flow_filter=asking, flow_run_filter=waiting)
        if mine := [run for run in found if run.parameters["line"] == line]:
            return mine[0]
        time.sleep(0.1)
    raise AssertionError("no question was asked")


def questions(client: SyncPrefectClient, line: str) -> list[FlowRun]:
    """Every question of a line, answered or not."""
    asking = FlowFilter(name=FlowFilterName(any_=["approval"]))
    return [run for run in client.read_flow_runs(flow_filter=asking) if run.parameters["line"] == line]


def stages(result: RunResult) -> dict[bool, int]:
    """How many stages ran, and how many were cached."""
    return {cached: sum(stage.cached is cached for stage in result.stages) for cached in (False, True)}


def test_a_rejected_version_does_not_go_live(client, base, data, home):
    """The form takes nothing but an answer; meanwhile the device is free and another line goes on; a no is recorded."""
    asked = Retrain("support", data[0], base, approval=ASKED)
    one = question(client, "support")
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[one.id])))
    report, candidate = sorted(found, key=lambda artifact: str(artifact.key))
    assert [report.key, candidate.key] == ["backprop-approval", "backprop-candidate"]
    assert '"status": "running"' in candidate.data
    assert all(part in report.data for part in ("**accepted**", "| token accuracy, % |", "| f16 |", "data:image/png"))
    with FileLock(settings().store_path / "locks" / "cpu.lock", timeout=1):
        pass
    other = retrain("other", data[0], model=str(base), **JOB)
    assert (other.status, other.version, other.reason) == ("finished", 1, None)
    assert client.resume_flow_run(one.id, run_input={"answer": "maybe"}).status == SetStateStatus.REJECT
    client.resume_flow_run(one.id, run_input={"answer": "reject", "reason": "too blue"})
    result = asked.result()
    assert (result.status, result.reason) == ("rejected", "rejected by a person: too blue")
    assert result.gate and result.gate.accepted and not result.runs[0].accepted and result.version is None
    assert Lines(Store(settings().store_path)).versions("support") == []
    assert tracking.show_run(settings(), result.run_id) == result


def test_no_answer_is_a_no(base, data, home):
    """When the time is over the version is rejected, with nothing computed again; the run keeps that answer."""
    hurry = ApprovalSpec(ask=True, hours=1e-4)
    result = retrain("late", data[0], model=str(base), approval=hurry, **JOB)
    assert (result.status, result.reason) == ("rejected", "rejected: no answer in time")
    assert {stage.stage for stage in result.stages if not stage.cached} <= {"split", "gate"}  # by the name of the task
    again = retrain("late", data[0], run_id=result.run_id)
    assert (again.status, again.reason) == (result.status, result.reason)
    assert stages(again)[False] == 0


def test_a_no_is_not_asked_again(client, base, data, home):
    """What a person has rejected is neither trained nor asked again the next night: `unchanged`, with the day."""
    asked = len(questions(client, "support"))
    result = retrain("support", data[0], model=str(base), approval=ASKED, **JOB)
    assert result.status == "unchanged" and "rejected on" in (result.reason or "") and result.runs == []
    assert len(questions(client, "support")) == asked


def test_an_answer_counts_after_a_kill(client, base, data, home):
    """What was asked by a process that is killed can still be answered: the run takes the answer and goes on."""
    told = {"PREFECT_API_URL": str(get_current_settings().api.url), "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen([sys.executable, "-c", CHILD, data[0], str(base)], env=os.environ | told)
    one = question(client, "killed")
    child.send_signal(signal.SIGKILL)
    child.wait()
    client.resume_flow_run(one.id, run_input={"answer": "approve", "reason": "fine"})
    result = retrain("killed", data[0], run_id=one.parameters["run_id"])
    assert (result.status, result.reason) == ("finished", "approved by a person: fine")
    assert stages(result)[False] == 0 and result.version == 1 == Lines(Store(settings().store_path)).champion("killed")
    assert client.read_flow_run(one.id).state.is_final()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_question_outlives_the_run_that_asked(client, base, data, home, how):
    """However a run is ended while it waits, its question stays open: resumed, it takes the answer of that page."""
    line = f"ended-{how.name.lower()}"
    told = {"PREFECT_API_URL": str(get_current_settings().api.url), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", CHILD.replace("killed", line), data[0], str(base)]
    child = subprocess.Popen(command, env=os.environ | told, stderr=subprocess.PIPE)
    one = question(client, line)
    child.send_signal(how)
    child.communicate()
    assert client.read_flow_run(one.id).state.is_paused()
    again = Retrain(line, data[0], base, run_id=one.parameters["run_id"])
    time.sleep(3)
    assert [run.id for run in questions(client, line)] == [one.id]
    assert client.read_flow_run(one.id).state.state_details.pause_timeout == one.state.state_details.pause_timeout
    assert client.resume_flow_run(one.id, run_input={"answer": "approve"}).status == SetStateStatus.ACCEPT
    result = again.result()
    assert (result.status, result.version, result.reason) == ("finished", 1, "approved by a person")
    assert stages(result)[False] == 0
    assert client.read_flow_run(one.id).state.is_completed()


def test_a_cancelled_question_is_asked_again(client, base, data, home):
    """Who cancels the question interrupts the run; one that nobody waits for any more is withdrawn."""
    dead = client.create_flow_run(approval.approval, parameters={"line": "dead"}, state=Paused())
    write_atomic(settings().store_path / "questions" / "cancelled", str(dead.id))  # as an older version did
    asked = Retrain("cancelled", data[0], base, approval=ASKED)
    one = question(client, "cancelled")
    assert client.read_flow_run(dead.id).state.is_cancelled()
    client.set_flow_run_state(one.id, Cancelled(), force=True)
    with pytest.raises(Interrupted, match="cancelled") as stopped:
        asked.result()
    again = Retrain("cancelled", data[0], base, run_id=stopped.value.run_id)
    client.resume_flow_run(question(client, "cancelled").id, run_input={"answer": "reject"})
    assert again.result().reason == "rejected by a person"


def test_at_a_terminal(base, data, home, prefect_home):
    """Without a Prefect server the terminal is asked, and what is no answer is asked again."""
    command = [sys.executable, "-m", "flows", "retrain", "--line", "terminal", "--data", data[0], "--model", str(base)]
    command += ["--steps", "2", "--batch-size", "8", "--export", "f16", "--set", "training.learning_rate=0.01"]
    command += ["--set", "training.lora.rank=4", "--set", "gate.max_drop=1", "--set", "approval.ask=true"]
    own = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_API_KEY")}
    terminal, ours = pty.openpty()
    os.write(terminal, b"maybe\nno  too blue\n")
    done = subprocess.run(command, env=own, capture_output=True, text=True, stdin=ours)
    assert done.returncode == 3 and done.stderr.count("May this go live in line terminal?") == 2, done.stderr
    assert "rejected by a person: too blue" in done.stdout


def test_somebody_can_be_asked(monkeypatch):
    """A run that shall ask, without a terminal and with a Prefect server that nobody sees, is an error."""
    approval.check(ASKED)
    monkeypatch.setattr(prefect_environment, "_server", SimpleNamespace(url="http://ours"))
    monkeypatch.setenv("PREFECT_API_URL", "http://ours")
    approval.check(ApprovalSpec())
    with pytest.raises(ApprovalUnattended):
        approval.check(ASKED)
