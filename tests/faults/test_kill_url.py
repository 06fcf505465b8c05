"""SIGKILL of a run on an address, and the server gone: the run holds what it has hashed, and goes on."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults.test_kill import BACKPROP, environment, kill
from tests.wire.rows_server import Rows


@pytest.mark.usefixtures("warm_worker")
@pytest.mark.timeout(600)
def test_a_run_on_an_address_goes_on_without_the_server(world: Path) -> None:
    """The address is fetched once for the command; killed, and the cache lost, the run is resumed from its own copy."""
    env, store = environment(world, "fetched"), world / "fetched" / "store"
    options = ["--model", str(world / "base"), "--steps", "4", "--batch-size", "8", "--json"]
    with Rows({"/task.jsonl": (world / "task0.jsonl").read_bytes()}).running() as server:
        command = [*BACKPROP, "train", "--data", f"{server.url}/task.jsonl", *options]
        kill(command, env, lambda: any(store.glob("runs/*/spec.json")))
        assert server.count("GET") == 1
    shutil.rmtree(store / "cache", ignore_errors=True)
    [run] = [path.name for path in (store / "runs").iterdir()]
    done = subprocess.run([*BACKPROP, "resume", run, "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    assert not (store / "runs" / run / "sources").exists()
