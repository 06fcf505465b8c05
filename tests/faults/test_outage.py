"""The job without MLflow, and without a network: the work is done, the record follows, nobody is told anything."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.wire.prefect_server import free_port

BACKPROP = str(Path(sys.executable).with_name("backprop"))
# Every Python process of the job runs this first: what goes anywhere but this machine is noted and refused.
NO_NETWORK = """
import os, sys
def audit(event, arguments):
    host = None
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    if host not in (None, "", "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1", "0.0.0.0"):
        with open(os.environ["ATTEMPTS"], "a") as file:
            print(event, host, sys.argv[:3], file=file)
        raise OSError("no network here")
sys.addaudithook(audit)
"""


@pytest.fixture(scope="module", autouse=True)
def site(world) -> None:
    """A directory whose sitecustomize refuses the network."""
    (world / "site").mkdir()
    (world / "site" / "sitecustomize.py").write_text(NO_NETWORK)


def user_environment(root: Path, **changes: str) -> dict[str, str]:
    """A user's environment: no switch of ours against telemetry, no server."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    places = {"BACKPROPAGATE_HOME": str(root / "home"), "PREFECT_HOME": str(root / "prefect"), "OMP_NUM_THREADS": "1"}
    return kept | places | changes


def job(root: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    data = [word for number in range(2) for word in ("--data", str(root / f"task{number}.jsonl"))]
    options = ["--model", str(root / "base"), "--steps", "5", "--set", "training.lora.rank=4", "--json"]
    command = [BACKPROP, "multi-run", *data, *options]
    return subprocess.run(command, env=user_environment(root, **changes), capture_output=True, text=True, cwd=root)


def test_nothing_goes_out(world):
    """The whole job with every connection refused: done, and not one was tried, by it or by its children."""
    attempts = world / "attempts"
    environment = {"PYTHONPATH": str(world / "site"), "ATTEMPTS": str(attempts)}
    done = job(world, **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    assert not attempts.exists(), attempts.read_text()
    control = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    refused = subprocess.run(
        [sys.executable, "-c", control], env=user_environment(world, **environment), capture_output=True
    )
    assert b"no network here" in refused.stderr
    assert "192.0.2.1" in attempts.read_text()


def test_mlflow_away_and_back(world):
    """Exit 0 with one warning while it is away; when it is back, one command brings every step, once."""
    away = f"http://127.0.0.1:{free_port()}"
    done = job(world, BACKPROPAGATE_HOME=str(world / "other"), MLFLOW_TRACKING_URI=away)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("backprop sync") == 1
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert result["mlflow_run_id"] is None
    environment = user_environment(world, BACKPROPAGATE_HOME=str(world / "other"))
    history = [BACKPROP, "show-run", result["run_id"], "--json"]
    shown = subprocess.run(history, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["merged"] == result["merged"]
    assert steps_by_run(world / "other") == {run["run_id"]: dict.fromkeys(range(1, 6), 1) for run in result["runs"]}


def steps_by_run(home: Path) -> dict[str, Counter[int]]:
    """How often MLflow has the loss of each step, by our run_id."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    histories = {
        run.data.tags["backprop.run_id"]: client.get_metric_history(run.info.run_id, "loss")
        for run in runs
        if "backprop.run_id" in run.data.tags
    }
    return {run_id: Counter(metric.step for metric in history) for run_id, history in histories.items() if history}
