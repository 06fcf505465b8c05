"""A run over several Dask workers makes what a run on one machine makes. Only where BACKPROP_FAULTS is set."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.test_kill import BACKPROP, assert_nothing_left, environment
from tests.wire.prefect_server import free_port, wait_until

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults"),
]
RATES = "training.learning_rate=1e-4,1e-3,1e-2,3e-2"
TABLE = ("settings", "is_default", "standing", "steps", "train_loss", "cached", "code")


@pytest.fixture(scope="module")
def sweep(world: Path) -> list[str]:
    """Four short trainings."""
    options = ["--data", str(world / "task0.jsonl"), "--model", str(world / "base"), "--steps", "6", "--json"]
    return [*BACKPROP, "sweep", *options, "--set", RATES, "--set", "training.checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def alone(world: Path, sweep: list[str]) -> dict[str, Any]:
    """The sweep on one machine, one after another."""
    return done(sweep, environment(world, "sweep-alone"))


def done(command: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    finished = subprocess.run(command, env=env, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout))


def stages(result: Mapping[str, Any]) -> list[tuple[str, str, bool, str]]:
    return [(one["stage"], one["key"], one["cached"], one["digest"]) for one in result["stages"]]


def table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in TABLE} for row in result["sweep"]["cells"]]


def test_two_processes_make_what_one_makes(world: Path, sweep: list[str], alone: dict[str, Any]) -> None:
    """The same stages in the same order with the same digests, the same table, and nothing is left running."""
    env = environment(world, "sweep-two")
    made = done(sweep, env | {"BACKPROPAGATE_FAN_OUT": "local:2"})
    assert stages(made) == stages(alone) and table(made) == table(alone)
    assert_nothing_left(Path(env["BACKPROPAGATE_HOME"]) / "store")
    again = done(sweep, env)
    assert all(stage["cached"] for stage in again["stages"])


@pytest.fixture
def cluster(world: Path) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"], dict[str, str]]]:
    """A Dask scheduler and two workers with one store, as on three machines: address, processes, their environment."""
    port, store = free_port(), str(world / "dask-store")
    env = environment(world, "dask") | {"BACKPROPAGATE_STORE": store}
    program = [sys.executable, "-m", "dask"]
    address = f"tcp://127.0.0.1:{port}"
    options = ["--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
    scheduler = [*program, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    with (world / "dask.log").open("wb") as log:
        started = [subprocess.Popen(scheduler, env=env, stdout=log, stderr=log)]
        for slot in (1, 2):
            places = {"BACKPROPAGATE_STORE": store, "BACKPROPAGATE_CPU_SLOT": str(slot)}
            own = environment(world, f"dask-{slot}") | places
            started.append(subprocess.Popen([*program, "worker", address, *options], env=own, stdout=log, stderr=log))
        try:
            yield address, started, env
        finally:
            for process in started:
                for one in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else ():
                    one.kill()
                process.kill()
                process.wait()


def test_a_killed_worker_costs_nothing_but_time(
    world: Path,
    sweep: list[str],
    alone: dict[str, Any],
    cluster: tuple[str, list["subprocess.Popen[bytes]"], dict[str, str]],
) -> None:
    """One of two workers elsewhere is killed in the middle of its training: the other does it, to the same digests."""
    address, processes, env = cluster
    checkpoints = world / "dask-store" / "checkpoints"
    with subprocess.Popen(
        sweep, env=env | {"BACKPROPAGATE_FAN_OUT": address}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        wait_until(lambda: checkpoints.is_dir() and any(checkpoints.glob("*/*")), 300, "checkpoint")
        nanny = psutil.Process(processes[1].pid)
        for process in [nanny, *nanny.children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
        out, errors = job.communicate(timeout=900)
    assert job.returncode == 0, errors
    made = json.loads(out)
    assert stages(made) == stages(alone) and table(made) == table(alone)
