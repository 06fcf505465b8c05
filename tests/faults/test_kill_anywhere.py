"""SIGKILL of the whole process group at random moments of a multi-run with export and of its resumes: the same bits.

`BACKPROP_FAULTS` is the number of kills, ten to a chain: none if it is not set, 200 in `make faults`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.test_kill import BACKPROP, assert_nothing_left, environment

EACH = 10  # kills of a chain
CHAINS = int(os.environ.get("BACKPROP_FAULTS", "0")) // EACH


def command(root: Path) -> list[str]:
    """Two runs of quick steps, a checkpoint after every one of them, and a GGUF file."""
    data = [word for number in range(2) for word in ("--data", str(root / f"task{number}.jsonl"))]
    options = ["--model", str(root / "base"), "--steps", "20", "--batch-size", "8", "--export", "f16", "--json"]
    return [*BACKPROP, "multi-run", *data, *options, "--set", "training.checkpoint_seconds=0"]


def result_of(arguments: list[str], env: dict[str, str]) -> dict:
    done = subprocess.run(arguments, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def digests(result: dict) -> list[str]:
    adapters = [run[kind]["digest"] for run in result["runs"] for kind in ("tuned", "merged")]
    return [*adapters, *(file["digest"] for file in result["gguf"])]


@pytest.fixture(scope="module")
def uninterrupted(world) -> tuple[list[str], float]:
    """Digests of the job when nobody interferes, and its seconds."""
    began = time.monotonic()
    result = result_of(command(world), environment(world, "unbroken"))
    return digests(result), time.monotonic() - began


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chain", range(CHAINS))
def test_killed_again_and_again(world, uninterrupted, chain):
    """Every resume is killed too, at moments from the job's whole time; what had no run_id yet is simply run again.

    A job that ends before its moment is looked at, and another begun.
    """
    expected, seconds = uninterrupted
    drawn = random.Random(chain)
    env, store = environment(world, f"anywhere-{chain}"), world / f"anywhere-{chain}" / "store"
    kills = 0
    while kills < EACH:
        if killed(next_command(world, store), env, drawn.uniform(0, seconds)):
            kills += 1
        else:
            check(world, env, store, expected)
    check(world, env, store, expected)


def next_command(root: Path, store: Path) -> list[str]:
    """What a user would type: the job, or to resume it."""
    runs = [path.name for path in store.glob("runs/*")]
    assert len(runs) <= 1
    return [*BACKPROP, "resume", runs[0], "--json"] if runs else command(root)


def killed(arguments: list[str], env: dict[str, str], seconds: float) -> bool:
    """Whether it was still at work then."""
    with subprocess.Popen(
        arguments, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        try:
            job.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            return True
    assert job.returncode == 0, arguments
    return False


def check(root: Path, env: dict[str, str], store: Path, expected: list[str]) -> None:
    """Let the job end, look at what it made, and make place for the next."""
    again = next_command(root, store)
    result = result_of(again, env)
    assert result["status"] == "finished"
    assert digests(result) == expected
    assert "resume" not in again or result["run_id"] in again
    assert_nothing_left(store)
    shutil.rmtree(store.parent)
