"""SIGKILL of each process of `backprop serve` during a run: it goes on, or does at the button that tries it again.

Only where BACKPROP_FAULTS is set, as in `make faults`.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from tests.faults.hold import Hold
from tests.faults.test_at_once import write_line
from tests.faults.test_kill import BACKPROP, assert_nothing_left, digests, environment
from tests.faults.test_outage import steps_by_run
from tests.wire.prefect_server import FINAL, PrefectServer, Served, served, wait_until

STEPS = 5
TRAINING = {"steps": STEPS, "batch_size": 8, "checkpoint_seconds": 0}
MINUTES = 600  # seconds for a run on a machine that does other things, too
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults"),
]


@pytest.fixture(scope="module")
def uninterrupted(world: Path) -> list[str]:
    """Digests of the job when nobody interferes."""
    data = [word for number in range(2) for word in ("--data", str(world / f"task{number}.jsonl"))]
    sets = [word for name, value in TRAINING.items() for word in ("--set", f"training.{name}={value}")]
    command = [*BACKPROP, "multi-run", *data, "--model", str(world / "base"), *sets, "--json"]
    done = subprocess.run(command, env=environment(world, "alone"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return digests(json.loads(done.stdout))


def parameters(world: Path) -> dict[str, Any]:
    """The same job as a deployment's parameters."""
    data = [{"path": str(world / f"task{number}.jsonl")} for number in range(2)]
    return {"datasets": data, "model": str(world / "base"), "training": TRAINING}


def process(service: Served, words: str) -> psutil.Process:
    """The one process of it that was started with these words."""
    every = psutil.Process(service.process.pid).children(recursive=True)
    [found] = [child for child in every if words in " ".join(child.cmdline())]
    return found


def begun(service: Served, world: Path, hold: Hold) -> str:
    """A flow run that is held in its second training."""
    status, flow_run = service.prefect.create_run("multi-run/train-on-several-datasets", parameters(world))
    assert status == 201
    hold.reached(lambda: state(service.prefect, flow_run["id"]) not in FINAL)
    return str(flow_run["id"])


def state(server: PrefectServer, flow_run: str) -> str:
    return str(server.call("GET", f"/flow_runs/{flow_run}")[1]["state_type"])


def try_again(server: PrefectServer, flow_run: str) -> None:
    """What the button `Retry` of Prefect's page does."""
    body = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
    assert server.call("POST", f"/flow_runs/{flow_run}/set_state", body)[0] == 201


def assert_done_once(home: Path, uninterrupted: list[str]) -> None:
    """One run, with the digests of an unbroken one; each step once in MLflow; nothing left over."""
    [path] = home.glob("store/runs/*/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], digests(result)) == ("finished", uninterrupted)
    told = environment(home.parent, home.name)  # what MLflow missed while it was away, if it was
    subprocess.run([*BACKPROP, "sync"], env=told, check=True, capture_output=True)
    once = dict.fromkeys(range(1, STEPS + 1), 1)
    assert steps_by_run(home) == {run["run_id"]: once for run in result["runs"]}
    [*first, _] = [stage["cached"] for stage in result["stages"] if stage["stage"] == "train"]
    assert len(first) == 1
    assert_nothing_left(home / "store")


@pytest.mark.parametrize(
    "words", ["flows.server.server_main prefect", "flows.server.server_main mlflow", "backprop_core.worker.main"]
)
def test_a_part_is_killed_and_the_run_goes_on(world, uninterrupted, tmp_path, words):
    """Prefect's server, MLflow's, the GPU's worker: nobody has to do anything, and the first training was enough."""
    hold, home = Hold(tmp_path / "hold", training=2), tmp_path / "home"
    with served(home, BACKPROPAGATE_ALLOWED_PATHS=str(world), **hold.environment) as service:
        flow_run = begun(service, world, hold)
        process(service, words).kill()
        hold.let_go()
        assert service.prefect.finished(flow_run, MINUTES)["state_type"] == "COMPLETED"
    assert_done_once(home, uninterrupted)


def test_the_worker_of_flows_is_killed(world, uninterrupted, tmp_path):
    """Its run stops at a step, and one try more ends it."""
    hold, home = Hold(tmp_path / "hold", training=2), tmp_path / "home"
    with served(home, BACKPROPAGATE_ALLOWED_PATHS=str(world), **hold.environment) as service:
        flow_run = begun(service, world, hold)
        process(service, "flows.server.flow_worker").kill()
        hold.let_go()
        if service.prefect.finished(flow_run, MINUTES)["state_type"] != "COMPLETED":
            try_again(service.prefect, flow_run)
            assert service.prefect.finished(flow_run, MINUTES)["state_type"] == "COMPLETED"
    assert_done_once(home, uninterrupted)


def test_all_of_it_is_killed_and_started_again(world, uninterrupted, tmp_path):
    """The device is free at once; the next `serve` says that the run has crashed, and one try more ends it."""
    hold, home = Hold(tmp_path / "hold", training=2), tmp_path / "home"
    told = {"BACKPROPAGATE_ALLOWED_PATHS": str(world), **hold.environment}
    with served(home, **told) as service:
        flow_run = begun(service, world, hold)
        every = [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(recursive=True)]
        for one in every:
            one.kill()
        assert psutil.wait_procs(every, timeout=60)[1] == []
        with FileLock(home / "store" / "locks" / "cpu.lock", timeout=0):
            pass
    with served(home, **told) as service:
        assert state(service.prefect, flow_run) == "CRASHED"
        try_again(service.prefect, flow_run)
        wait_until(lambda: state(service.prefect, flow_run) not in FINAL, MINUTES, "next try")
        assert service.prefect.finished(flow_run, MINUTES)["state_type"] == "COMPLETED"
    assert_done_once(home, uninterrupted)


def question(server: PrefectServer) -> list[dict[str, Any]]:
    """Every question that was asked, answered or not."""
    found: list[dict[str, Any]] = server.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["approval"]}}})[
        1
    ]
    return found


def asked(server: PrefectServer) -> dict[str, Any]:
    """The one question, once it waits."""
    wait_until(lambda: [one["state_type"] for one in question(server)] == ["PAUSED"], MINUTES, "question that waits")
    [one] = question(server)
    return one


def kill_serve_alone(service: Served) -> None:
    """SIGKILL of `serve`, and of nothing else; all that it has started ends at once."""
    started = psutil.Process(service.process.pid).children(recursive=True)
    assert any("flows.server.flow_worker" in " ".join(one.cmdline()) for one in started)
    service.process.kill()
    left = psutil.wait_procs(started, timeout=10)[1]
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []


def taken_and_left(server: PrefectServer, world: Path) -> str:
    """A flow run as a worker leaves it that is killed after it took it and before it started it."""
    deployment = server.deployment("multi-run/train-on-several-datasets")["id"]
    body = {"parameters": parameters(world), "state": {"type": "PENDING", "name": "Submitting"}}
    status, flow_run = server.call("POST", f"/deployments/{deployment}/create_flow_run", body)
    assert status == 201
    return str(flow_run["id"])


def test_a_wait_for_approval_survives_kill_and_restart(world, tmp_path):
    """`kill -9` of serve ends its children; started again, the run waits once more and the same button releases it.

    So does a restart in order. A pending run without a process is marked within a minute and does not block its line.
    """
    home = tmp_path / "home"
    write_line(home, "support", world / "base", 1, "approval: {ask: true}\n")
    told = {"BACKPROPAGATE_ALLOWED_PATHS": str(world.parent), "OMP_NUM_THREADS": "1"}
    with served(home, **told) as service:
        status, flow_run = service.prefect.create_run("retrain/support", {})
        assert status == 201
        one = asked(service.prefect)
        kill_serve_alone(service)
    for _ in range(2):  # after a kill, and after an end in order
        with served(home, **told) as service:
            server = service.prefect
            wait_until(lambda server=server: state(server, flow_run["id"]) == "RUNNING", MINUTES, "run that goes on")
            assert asked(server)["id"] == one["id"]
            pending = taken_and_left(server, world)
            wait_until(lambda server=server, run=pending: state(server, run) == "CRASHED", 70, "end of a dead run")
    with served(home, **told) as service:
        answer = {"run_input": {"answer": "approve", "reason": "fine"}}
        wait_until(lambda: state(service.prefect, flow_run["id"]) == "RUNNING", MINUTES, "run that goes on")
        assert service.prefect.call("POST", f"/flow_runs/{one['id']}/resume", answer)[0] == 201
        assert service.prefect.finished(flow_run["id"], MINUTES)["state_type"] == "COMPLETED"
        assert [state(service.prefect, one["id"]), len(question(service.prefect))] == ["COMPLETED", 1]
        assert service.prefect.call("GET", f"/flow_runs/{flow_run['id']}")[1]["deployment_id"]
    [path] = home.glob("store/runs/*/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["version"], result["reason"]) == ("finished", 1, "approved by a person: fine")


def test_a_cancelled_run_does_not_come_back(world, tmp_path):
    """Who cancels a retrain that waits for approval has ended it: nothing tries it again."""
    home = tmp_path / "home"
    write_line(home, "support", world / "base", 1, "approval: {ask: true}\n")
    with served(home, BACKPROPAGATE_ALLOWED_PATHS=str(world.parent), OMP_NUM_THREADS="1") as service:
        _, flow_run = service.prefect.create_run("retrain/support", {})
        asked(service.prefect)
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        assert service.prefect.call("POST", f"/flow_runs/{flow_run['id']}/set_state", body)[0] == 201
        assert service.prefect.finished(flow_run["id"], MINUTES)["state_type"] == "CANCELLED"
        time.sleep(40)
        assert state(service.prefect, flow_run["id"]) == "CANCELLED"
