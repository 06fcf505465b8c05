"""Two machines with homes of their own and one shared store. Only where BACKPROP_FAULTS is set, as in `make faults`."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.store.artifacts import Store
from tests.faults.hold import Hold
from tests.faults.test_kill import BACKPROP, assert_nothing_left, digests, environment
from tests.flows.test_retrain import batch
from tests.wire.prefect_server import wait_until

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults"),
]
QUICK = ["--batch-size", "8", "--set", "training.checkpoint_seconds=0", "--json"]


def told(world: Path, name: str, store: str) -> dict[str, str]:
    """The environment of a machine: its home, and the store."""
    return environment(world, name) | {"BACKPROPAGATE_STORE": str(world / store)}


def command(world: Path) -> list[str]:
    """One quick training, a checkpoint after each of its steps."""
    data, base = str(world / "task0.jsonl"), str(world / "base")
    return [*BACKPROP, "train", "--data", data, "--model", base, "--steps", "5", *QUICK]


def done(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    finished = subprocess.run(command, env=env, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout))


def started(cleanup: ExitStack, command: list[str], **options: Any) -> "subprocess.Popen[str]":
    """A job in a process group of its own; if it still runs when the stack closes, the group is killed."""
    job: subprocess.Popen[str] = cleanup.enter_context(
        subprocess.Popen(command, start_new_session=True, text=True, **options)
    )
    cleanup.callback(kill, job)
    return job


def kill(job: "subprocess.Popen[str]") -> None:
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)


def test_a_run_of_one_machine_is_resumed_on_the_other(world, tmp_path):
    """Killed on the first, it ends on the second with the unbroken run's bits; the first then has it from the cache."""
    hold = Hold(tmp_path / "hold", training=1)
    first, second = told(world, "first", "shared"), told(world, "second", "shared")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as killing:
        job = started(killing, command(world), env=first | hold.environment, **quiet)
        hold.reached(lambda: job.poll() is None)
    [run] = [path.name for path in (world / "shared" / "runs").iterdir()]
    resumed = done([*BACKPROP, "resume", run, "--json"], second)
    assert (resumed["run_id"], resumed["status"]) == (run, "finished")
    again = done(command(world), first)
    assert all(stage["cached"] for stage in again["stages"])
    unbroken = done(command(world), told(world, "third", "alone"))
    assert digests(resumed) == digests(again) == digests(unbroken)
    assert_nothing_left(world / "shared")


def test_two_machines_retrain_one_line(world, tmp_path):
    """Two nights of one line at once: the second waits, and continues what the first has made."""
    options = ["--model", str(world / "base"), "--steps", "6", "--set", "training.learning_rate=0.01", *QUICK]
    options += ["--set", "training.lora.rank=8", "--line", "shared"]
    hold = Hold(tmp_path / "hold", training=1)
    with ExitStack() as cleanup:
        first = retrain(cleanup, world, tmp_path, "fourth", 1, options, hold.environment)
        hold.reached(lambda: first.poll() is None)
        second = retrain(cleanup, world, tmp_path, "fifth", 2, options)
        said = tmp_path / "fifth.err"
        wait_until(lambda: "working on line shared" in said.read_text(), 1500, "second machine that waits", said)
        assert second.poll() is None
        hold.let_go()
        results = [json.loads(job.communicate()[0]) for job in (first, second)]
    assert [job.returncode for job in (first, second)] in ([0, 0], [0, 3])
    assert (results[0]["status"], results[0]["version"]) == ("finished", 1)
    lines = Lines(Store(world / "line"))
    parents = [lines.version("shared", number).parent for number in lines.versions("shared")]
    assert parents == ([None, 1] if results[1]["status"] == "finished" else [None])
    assert results[1]["gate"]["against"] == "champion"


def retrain(
    cleanup: ExitStack,
    world: Path,
    place: Path,
    name: str,
    night: int,
    options: list[str],
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[str]":
    """A machine at work on the line; what it says to people is in a file."""
    command = [*BACKPROP, "retrain", "--data", batch(place, night), *options]
    env = told(world, name, "line") | (environment or {})
    with (place / f"{name}.err").open("w") as errors:
        return started(cleanup, command, env=env, stdout=subprocess.PIPE, stderr=errors)
