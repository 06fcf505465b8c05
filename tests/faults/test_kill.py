"""SIGKILL of the whole process group in the middle of the job, then resume: the same bits, and nothing left over.

Workers are warm, but for the one that is interrupted; in `make faults`, `test_kill_anywhere.py` kills cold ones.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from backprop_core.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("warm_worker")
BACKPROP = [str(Path(sys.executable).with_name("backprop"))]


def environment(root: Path, home: str) -> dict[str, str]:
    return {
        **os.environ,
        "BACKPROPAGATE_HOME": str(root / home),
        "PREFECT_HOME": str(root / "prefect"),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }


def command(root: Path) -> list[str]:
    """Three runs of a few hundred quick steps, a checkpoint after every one of them."""
    data = [word for number in range(3) for word in ("--data", str(root / f"task{number}.jsonl"))]
    options = ["--model", str(root / "base"), "--steps", "30", "--batch-size", "8", "--json"]
    return [*BACKPROP, "multi-run", *data, *options, "--set", "training.checkpoint_seconds=0"]


def digests(result: dict) -> list[str]:
    return [run[kind]["digest"] for run in result["runs"] for kind in ("tuned", "merged")]


@pytest.fixture(scope="module")
def uninterrupted(world) -> dict:
    """What comes out when nobody interferes."""
    done = subprocess.run(command(world), env=environment(world, "whole"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(900)
def test_killed_three_times_and_resumed(world, uninterrupted):
    """In the second training, after it, and in the third: what is finished is cached, what is not goes on.

    The digests are those of an unbroken run, and it stays one run.
    """
    env, store = environment(world, "killed"), world / "killed" / "store"
    kill(command(world), env, lambda: trained(store) == 1 and is_training(store))
    [run] = [path.name for path in (store / "runs").iterdir()]
    kill([*BACKPROP, "resume", run], env, lambda: trained(store) == 2)
    kill([*BACKPROP, "resume", run], env, lambda: is_training(store))
    done = subprocess.run([*BACKPROP, "resume", run[:12], "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["run_id"] == run
    assert digests(result) == digests(uninterrupted)
    assert [one["cached"] for one in result["runs"]] == [True, True, False]
    assert_nothing_left(store)


def kill(command: list[str], env: dict[str, str], moment: Callable[[], bool]) -> None:
    """Start a command, and SIGKILL its whole process group when the moment has come."""
    with subprocess.Popen(
        command, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as job:
        deadline = time.monotonic() + 240
        while not moment():
            assert time.monotonic() < deadline and job.poll() is None, job.stderr.read().decode()
            time.sleep(0.02)
        os.killpg(job.pid, signal.SIGKILL)


def said(job: "subprocess.Popen[str]") -> tuple[str, str]:
    """What a job says until it ends. One that does not end is aborted, and says where it stands."""
    try:
        return job.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        job.send_signal(signal.SIGABRT)
        return job.communicate()


def trained(store: Path) -> int:
    """How many LoRA runs are in the cache."""
    recorded = [store / "cache" / "results" / path.name for path in store.glob("cache/keys/*")]
    return sum("TrainResult" in path.read_text() for path in recorded if path.is_file())


def is_training(store: Path) -> bool:
    """A run has checkpoints and is not committed."""
    return any(store.glob("checkpoints/*/step-*"))


def assert_nothing_left(store: Path) -> None:
    """No held lock, no temporary directory, no checkpoint, nothing damaged."""
    assert list(store.glob("tmp/*")) == []
    assert list(store.glob("checkpoints/*")) == []
    locks = list(store.glob("locks/*.lock"))
    assert locks
    for lock in locks:
        with FileLock(lock, timeout=0):
            pass
    assert list(Store(store).check()) == []


@pytest.mark.timeout(600)
def test_the_first_interrupt_saves_and_says_how_to_go_on(world, uninterrupted):
    """Ctrl-C: exit 130, a line with the command to resume, and that command ends with the unbroken run's digests."""
    env, store = environment(world, "stopped") | {"BACKPROPAGATE_WORKER_PYTHON": ""}, world / "stopped" / "store"
    with subprocess.Popen(
        command(world), env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        deadline = time.monotonic() + 240
        while not any(store.glob("checkpoints/*/step-*")):
            assert time.monotonic() < deadline and job.poll() is None, job.stderr.read()
            time.sleep(0.02)
        os.killpg(job.pid, signal.SIGINT)
        out, err = said(job)
    assert job.returncode == 130, err
    [run] = [path.name for path in (store / "runs").iterdir()]
    assert f"backprop resume {run}" in err
    assert json.loads(out)["error"]["code"] == "RUNTIME_INTERRUPTED"
    done = subprocess.run([*BACKPROP, "resume", run, "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(json.loads(done.stdout)) == digests(uninterrupted)
    assert_nothing_left(store)
