"""SIGKILL of the whole process group at random moments of a multi-run with export, then `resume`: the same bits.

`BACKPROP_FAULTS` is the number of moments: none if it is not set, 200 in `make faults`.
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

POINTS = int(os.environ.get("BACKPROP_FAULTS", "0"))


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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", range(POINTS))
def test_killed_anywhere_and_resumed(world, uninterrupted, point):
    """One moment drawn from each part of the job's time; what had no run_id yet is simply run again."""
    expected, seconds = uninterrupted
    home = f"anywhere-{point}"
    env, store = environment(world, home), world / home / "store"
    moment = (point + random.Random(point).random()) / POINTS * seconds
    with subprocess.Popen(
        command(world), env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        time.sleep(moment)
        os.killpg(job.pid, signal.SIGKILL)
    runs = [path.name for path in store.glob("runs/*")]
    again = [*BACKPROP, "resume", runs[0], "--json"] if runs else command(world)
    result = result_of(again, env)
    assert result["status"] == "finished"
    assert digests(result) == expected
    assert runs in ([], [result["run_id"]])
    assert_nothing_left(store)
    shutil.rmtree(world / home)
