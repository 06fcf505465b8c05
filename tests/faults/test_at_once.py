"""A schedule that fires during a run, and two lines on one device. Only where BACKPROP_FAULTS is set: `make faults`."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.store.artifacts import Store
from tests.faults.hold import Hold
from tests.faults.lock_order import LockOrder
from tests.faults.test_kill import BACKPROP, assert_nothing_left, environment
from tests.faults.test_kill import digests as digests_of
from tests.flows.test_retrain import batch
from tests.wire.prefect_server import Served, served, wait_until

JOB = """
model: {{name: {base}}}
datasets: [{{path: {data}}}]
training: {{steps: 6, batch_size: 8, learning_rate: 0.01, checkpoint_seconds: 0, lora: {{rank: 8}}}}
evaluation: {{heldout_max: 20}}
gate: {{max_drop: 1}}
min_new_rows: 1
"""
MINUTES = 900  # seconds
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults"),
]


def write_line(home: Path, name: str, base: Path, night: int, more: str = "") -> None:
    """A line's file in a home, with a night's rows."""
    for folder in ("data", "lines"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    data = batch(home / "data", night)
    (home / "lines" / f"{name}.yaml").write_text(JOB.format(base=base, data=data) + more)


def runs(service: Served, line: str, *states: str) -> list[dict[str, Any]]:
    """Flow runs of a line's deployment in the states of these names, the oldest first."""
    deployment = service.prefect.deployment(f"retrain/{line}")["id"]
    wanted = {"deployment_id": {"any_": [deployment]}, "state": {"name": {"any_": list(states)}}}
    body = {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_ASC"}
    found: list[dict[str, Any]] = service.prefect.call("POST", "/flow_runs/filter", body)[1]
    return found


def result(service: Served, flow_run: Mapping[str, Any]) -> dict[str, Any]:
    """The RunResult on a flow run."""
    text = service.prefect.artifact(flow_run["id"], "backprop-result")
    return dict(json.loads(text.removeprefix("```json").removesuffix("```")))


def ended(service: Served, line: str) -> dict[str, Any]:
    """What the first run of a line has come to, once it is there."""
    wait_until(lambda: bool(runs(service, line, "Completed")), MINUTES, f"end of {line}")
    return result(service, runs(service, line, "Completed")[0])


def told(world: Path, hold: Hold) -> dict[str, str]:
    return {"BACKPROPAGATE_ALLOWED_PATHS": str(world.parent), **hold.environment}


def test_a_schedule_fires_while_the_last_run_goes_on(world, tmp_path):
    """Its run waits until the line is free, then finds nothing new: one version."""
    hold, home = Hold(tmp_path / "hold", training=1), tmp_path / "home"
    write_line(home, "support", world / "base", 1, "schedule: {cron: '* * * * *'}\n")
    with served(home, **told(world, hold)) as service:
        hold.reached(lambda: service.process.poll() is None)
        wait_until(lambda: bool(runs(service, "support", "AwaitingConcurrencySlot")), MINUTES, "run that waits")
        assert len(runs(service, "support", "Running")) == 1
        hold.let_go()
        over = lambda: runs(service, "support", "Completed", "Unchanged")  # noqa: E731
        wait_until(lambda: len(over()) >= 2, MINUTES, "second end")
        first, second, *_ = (result(service, run) for run in over())
    assert (first["status"], first["version"]) == ("finished", 1)
    assert (second["status"], second["version"]) == ("unchanged", 1)  # the one that is live
    assert Lines(Store(home / "store")).versions("support") == [1]


def test_two_lines_share_one_device(world, tmp_path):
    """One waits while the other trains, and each ends with what it has when it is alone."""
    hold, home, lines = Hold(tmp_path / "hold", training=1), tmp_path / "home", {"first": 1, "second": 2}
    for name, night in lines.items():
        write_line(home, name, world / "base", night)
    with served(home, **told(world, hold)) as service:
        assert service.prefect.create_run("retrain/first", {})[0] == 201
        hold.reached(lambda: service.process.poll() is None)
        assert service.prefect.create_run("retrain/second", {})[0] == 201
        log = home / "worker.log"
        wait_until(lambda: "another run uses the device" in log.read_text(), MINUTES, "line that waits", log)
        assert not runs(service, "first", "Completed") and not runs(service, "second", "Completed")
        hold.let_go()
        together = {name: digests_of(ended(service, name)) for name in lines}
    assert together == {name: alone(tmp_path, name, world / "base", night) for name, night in lines.items()}
    assert_nothing_left(home / "store")


def alone(place: Path, name: str, base: Path, night: int) -> list[str]:
    """The digests of a line's first night with nobody else on the machine."""
    home = place / f"{name}-alone"
    write_line(home, name, base, night)
    command = [*BACKPROP, "retrain", "--line", name, "--json"]
    done = subprocess.run(command, env=environment(place, home.name), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[str] = digests_of(json.loads(done.stdout))
    return found


def retraining(home: Path, base: Path, line: str, order: LockOrder) -> "subprocess.Popen[str]":
    """A quick `backprop retrain` in a process group of its own."""
    command = [*BACKPROP, "retrain", "--line", line, "--data", str(home / "rows.jsonl"), "--model", str(base)]
    options = ["--steps", "1", "--batch-size", "8", "--set", f"training.seed={line.removeprefix('line')}", "--json"]
    told = environment(home.parent, home.name) | order.environment
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *options], env=told, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def ended_in_time(job: "subprocess.Popen[str]", seconds: float) -> str:
    """What a job says on stderr; one that waits for ever is killed, and fails the test."""
    try:
        return job.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        pytest.fail("it waits for ever")


def test_twenty_pairs_of_runs_of_one_line(world, tmp_path):
    """Two retrains of a line that start at once both end, twenty times; no wait is out of the order of locks."""
    home, order = tmp_path / "home", LockOrder(tmp_path / "order")
    home.mkdir()
    (home / "rows.jsonl").write_text((world / "task0.jsonl").read_text())
    for number in range(20):
        pair = [retraining(home, world / "base", f"line{number}", order) for _ in range(2)]
        said = [ended_in_time(job, 300) for job in pair]
        assert {job.returncode for job in pair} <= {0, 3}, "".join(said)
    waits = list(order.waits(home))
    assert any("/line-line" in path for path, _ in waits)
    assert order.wrong(home) == []


def test_a_wait_for_a_line_is_ended_by_an_interrupt(world, tmp_path):
    """Ctrl-C while another run has the line: exit 130 and an error in two lines; the device was free meanwhile."""
    home, order = tmp_path / "home", LockOrder(tmp_path / "order")
    home.mkdir()
    (home / "rows.jsonl").write_text((world / "task0.jsonl").read_text())
    with Store(home / "store").lock("line-line0"):
        job = retraining(home, world / "base", "line0", order)
        try:
            assert job.stderr
            while "another run is working on line line0" not in (line := job.stderr.readline()):
                assert line, "it ended"
            with Store(home / "store").lock("cpu").acquire(timeout=1):
                pass
            os.killpg(job.pid, signal.SIGINT)
            said = ended_in_time(job, 60)
        finally:
            job.kill()
    assert job.returncode == 130 and "[RUNTIME_INTERRUPTED]" in said, said
