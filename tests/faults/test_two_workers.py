"""Two workers of Prefect on one server and one store: two lines at once, and one worker is killed.

Only where BACKPROP_FAULTS is set, as in `make faults`.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.hold import Hold
from tests.faults.test_kill import BACKPROP, environment
from tests.wire.prefect_server import PrefectServer, free_port, wait_until

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults"),
]
POOL = "crew"
LINES = {"first": "task0", "second": "task1"}
JOB = """
model: {{name: {base}}}
datasets: [{{path: {data}}}]
training: {{steps: 6, checkpoint_seconds: 0, lora: {{rank: 4}}}}
min_new_rows: 1
"""
PREFECT = [sys.executable, "-m", "prefect"]


class Crew:
    """A Prefect server, a directory with the files of two lines, and workers with a store in common."""

    def __init__(self, place: Path, world: Path, cleanup: ExitStack) -> None:
        self._place, self._world, self._cleanup = place, world, cleanup
        (place / "lines").mkdir(parents=True)
        for line, data in LINES.items():
            job = JOB.format(base=world / "base", data=world / f"{data}.jsonl")
            (place / "lines" / f"{line}.yaml").write_text(job)
        port = str(free_port())
        self._environment = environment(place, "home") | {
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "BACKPROPAGATE_STORE": str(place / "store"),
            "BACKPROPAGATE_ALLOWED_PATHS": str(world),
        }
        self.server = PrefectServer(self._environment["PREFECT_API_URL"], self._environment)
        self._start("server", [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port], {})
        wait_until(self._is_up, 300, "Prefect server", place / "server.log")
        subprocess.run(
            [*BACKPROP, "deploy", "--pool", POOL], env=self._environment, cwd=place, check=True, capture_output=True
        )

    def _is_up(self) -> bool:
        try:
            return self.server.call("GET", "/ready")[0] == 200
        except OSError:
            return False

    def _start(self, name: str, command: list[str], more: Mapping[str, str]) -> psutil.Process:
        with (self._place / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment | more, cwd=self._place, stdout=log, stderr=log, start_new_session=True
            )
        self._cleanup.callback(process.wait)
        self._cleanup.callback(kill, psutil.Process(process.pid))
        return psutil.Process(process.pid)

    def worker(self, slot: int, hold: Hold) -> psutil.Process:
        """A worker of its own machine: a home, cores, one run at a time, and its first training is held."""
        own = {"BACKPROPAGATE_HOME": str(self._place / f"machine-{slot}"), "BACKPROPAGATE_CPU_SLOT": str(slot)}
        words = ["worker", "start", "--pool", POOL, "--type", "process", "--limit", "1", "--name", f"worker-{slot}"]
        return self._start(f"worker-{slot}", [*PREFECT, *words], own | hold.environment)

    def run(self, line: str) -> str:
        """Ask for a run of a line; the flow run's id."""
        status, flow_run = self.server.create_run(f"retrain/{line}", {})
        assert status == 201, flow_run
        return str(flow_run["id"])

    def digest(self, flow_run: str) -> str:
        """What a run that has ended well has merged."""
        ended = self.server.finished(flow_run, 900)
        assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
        return merged(json.loads(self.server.artifact(flow_run, "backprop-result").strip("`json \n")))


def merged(result: Mapping[str, Any]) -> str:
    """The digest of the last merged adapter, whatever the gate says of six steps."""
    assert result["status"] in ("finished", "rejected"), result
    return str(result["runs"][-1]["merged"]["digest"])


def kill(process: psutil.Process) -> None:
    """A machine goes down: the process with all below it, at once."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


@pytest.fixture
def crew(world: Path, tmp_path: Path) -> Iterator[Crew]:
    with ExitStack() as cleanup:
        yield Crew(tmp_path / "crew", world, cleanup)


def alone(world: Path, place: Path, line: str) -> str:
    """What a line merges on one machine, without a server."""
    env = environment(place, f"alone-{line}")
    (place / "lines").mkdir(exist_ok=True)
    job = JOB.format(base=world / "base", data=world / f"{LINES[line]}.jsonl")
    (place / "lines" / f"{line}.yaml").write_text(job)
    done = subprocess.run(
        [*BACKPROP, "retrain", "--line", line, "--json"], env=env, cwd=place, capture_output=True, text=True
    )
    assert done.returncode in (0, 3), done.stderr
    return merged(json.loads(done.stdout))


def test_two_lines_train_at_once_and_a_dead_machine_is_made_up_for(crew: Crew, world: Path, tmp_path: Path) -> None:
    """Both train at the same time. One machine dies: each line is as alone, the killed one on the other machine."""
    holds = [Hold(tmp_path / f"hold-{slot}", training=1) for slot in (1, 2)]
    workers = [crew.worker(slot, hold) for slot, hold in enumerate(holds, start=1)]
    runs = {line: crew.run(line) for line in LINES}
    for hold, worker in zip(holds, workers, strict=True):
        hold.reached(worker.is_running)  # both are in the middle of a training now
    [dead] = [line for line, flow_run in runs.items() if taken_by(crew, flow_run) == "worker-1"]
    [left] = LINES.keys() - {dead}
    kill(workers[0])
    holds[1].let_go()
    assert crew.digest(runs[left]) == alone(world, tmp_path, left)
    assert crew.server.finished(runs[dead], 600)["state_type"] == "CRASHED"
    again = crew.run(dead)
    assert crew.digest(again) == alone(world, tmp_path, dead) and taken_by(crew, again) == "worker-2"


def taken_by(crew: Crew, flow_run: str) -> str:
    """The worker of a run."""
    return str(crew.server.call("GET", f"/flow_runs/{flow_run}")[1]["labels"]["prefect.worker.name"])
