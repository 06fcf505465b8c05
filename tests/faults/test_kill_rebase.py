"""SIGKILL in the middle of a rebase, then resume: the version of an unbroken rebase, and the line untouched before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano
from tests.faults.test_kill import assert_nothing_left, environment, is_training, kill, trained

pytestmark = pytest.mark.usefixtures("warm_worker")
GATE = ["--set", "gate.max_drop=1"]
BACKPROP = [sys.executable, "-m", "flows"]
HOMES = ("rebased", "rebased-killed")


@pytest.fixture(scope="module")
def other(world: Path) -> Path:
    """Another base."""
    return nano.build(world / "other", seed=1)


def said(words: list[str], env: dict[str, str]) -> dict:
    done = subprocess.run([*BACKPROP, *words, "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def line_of_two_datasets(world: Path, env: dict[str, str]) -> None:
    """A line that has learned next to nothing of two files."""
    data = [word for number in range(2) for word in ("--data", str(world / f"task{number}.jsonl"))]
    training = ["--steps", "1", "--batch-size", "8", "--set", "training.learning_rate=1e-9"]
    made = said(["multi-run", "--model", str(world / "base"), *data, *training], env)
    said(["promote", made["run_id"], "--line", "support", "--force", "--reason", "it begins a line"], env)


def command(other: Path) -> list[str]:
    steps = ["--set", "training.steps=40", "--set", "training.learning_rate=1e-2"]
    steps += ["--set", "training.checkpoint_seconds=0"]
    return ["rebase", "support", "--model", str(other), *steps, *GATE, "--json"]


@pytest.mark.timeout(900)
def test_a_killed_rebase_is_resumed(world: Path, other: Path) -> None:
    """Killed in its second training: the champion stays; resumed, the version has the digests of an unbroken one."""
    whole, killed = (environment(world, home) for home in HOMES)
    for env in (whole, killed):
        line_of_two_datasets(world, env)
    result = said(command(other)[:-1], whole)
    store = Store(world / HOMES[1] / "store")
    kill([*BACKPROP, *command(other)], killed, lambda: trained(store.root) == 3 and is_training(store.root))
    lines = Lines(store)
    assert (lines.champion("support"), lines.versions("support")) == (1, [1])
    [run] = [one.run_id for one in store.layout.begun() if not one.result.is_file()]
    resumed = said(["resume", run], killed)
    assert (resumed["run_id"], resumed["status"], resumed["version"]) == (run, "finished", 2)
    assert [one["merged"]["digest"] for one in resumed["runs"]] == [one["merged"]["digest"] for one in result["runs"]]
    assert [one["cached"] for one in resumed["runs"]] == [True, False]
    assert lines.champion("support") == 2 and os.path.samefile(lines.live("support").version.base.name, other)
    assert_nothing_left(store.root)
