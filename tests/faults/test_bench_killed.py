"""SIGKILL in the middle of a comparison, then resume: only the rest is trained."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.faults.test_kill import BACKPROP, assert_nothing_left, environment, kill, trained

pytestmark = pytest.mark.usefixtures("warm_worker")
EVERY = 6  # trainings: three in a row, the last two of them again with replay, and all at once


@pytest.mark.timeout(600)
def test_killed_and_resumed(world: Path) -> None:
    """What was trained before the kill is not trained again, by `resume` or by the same command."""
    env, store = environment(world, "compared"), world / "compared" / "store"
    words = [*BACKPROP, "bench", str(world), "--model", str(world / "base"), "--set", "training.steps=20", "--json"]
    words += ["--strategies", "slao+a", "--replay", "0,3", "--orders", "1", "--set", "evaluation.metric=token_accuracy"]
    words += ["--set", "merge.strategy=slao"]
    kill(words, env, lambda: trained(store) == 3)
    [run] = [path.name for path in (store / "runs").iterdir()]
    resumed = answer([*BACKPROP, "resume", run, "--json"], env)
    assert resumed["run_id"] == run and resumed["status"] == "finished" and len(resumed["bench"]["results"]) == 4
    assert len(new(resumed)) <= EVERY - 3 and trained(store) == EVERY
    again = answer(words, env)
    assert not new(again) and again["bench"] == resumed["bench"]
    assert_nothing_left(store)


def answer(words: list[str], env: dict[str, str]) -> dict:
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)
    return found


def new(result: dict) -> list[str]:
    """The trainings that were not in the cache."""
    return [stage["key"] for stage in result["stages"] if stage["stage"] == "train" and not stage["cached"]]
