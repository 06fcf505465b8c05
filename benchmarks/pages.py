"""The page of a line, as a browser gets it from `backprop serve`."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from backprop_core.runtime.settings import Settings
from benchmarks.measure import Row, medians
from tests.flows.server.web.conftest import LineMaker
from tests.wire.prefect_server import Served, served

NAME = "page of a line with 30 versions and 300 runs, against a bare query"
VERSIONS, RUNS, REPEATS = 30, 300, 15
LINE = "support"
API = "/api/2.0/mlflow"
ENDS = (("COMPLETED", "Completed"), ("COMPLETED", "Rejected"), ("COMPLETED", "Unchanged"), ("FAILED", "Failed"))


def against_query() -> Row:
    """The whole page over HTTP, against one page of the same runs from MLflow's server."""
    with TemporaryDirectory(dir="/var/tmp") as name, line_of_many(Path(name) / "home") as service:
        seconds = measured(service)
    return Row(NAME, seconds["page"], seconds["query"], "MLflow's runs/search of 300", "s", "less", REPEATS)


def measured(service: Served) -> dict[str, float]:
    """Seconds of each, in turns."""
    with (
        httpx.Client(base_url=service.addresses["page"], timeout=300) as page,
        httpx.Client(base_url=service.addresses["mlflow"], timeout=300) as mlflow,
    ):
        turns = {"page": turn(lambda: shown(page)), "query": turn(lambda: queried(mlflow))}
        return medians(turns, repeats=REPEATS)


def turn(ask: Callable[[], None]) -> Callable[[], float]:
    """Seconds of one question."""

    def timed() -> float:
        began = time.perf_counter()
        ask()
        return time.perf_counter() - began

    return timed


def shown(page: httpx.Client) -> None:
    text = page.get(f"/lines/{LINE}").raise_for_status().text
    assert f"v{VERSIONS}" in text and "Not known now" not in text


def queried(mlflow: httpx.Client) -> None:
    wanted = {"experiment_ids": ["1"], "max_results": RUNS}
    assert len(mlflow.post(f"{API}/runs/search", json=wanted).raise_for_status().json()["runs"]) == RUNS


@contextmanager
def line_of_many(home: Path) -> Iterator[Served]:
    """A served home with a line of many versions and runs: in the store, in Prefect, in MLflow."""
    make_line(home)
    with served(home) as service:
        in_prefect(service)
        in_mlflow(service)
        yield service


def make_line(home: Path) -> None:
    """The versions and the results of the runs."""
    maker = LineMaker(Settings(home=home))
    for number in range(1, VERSIONS + 1):
        maker.version(number, 0.5 + number / 100)
    for number in range(VERSIONS + 1, RUNS + 1):
        maker.rejected(number, "routing fell by 3 points")
    (home / "lines").mkdir()
    (home / "data" / LINE).mkdir(parents=True)
    (home / "lines" / f"{LINE}.yaml").write_text(
        json.dumps({"line": LINE, "datasets": [{"path": str(home / "data" / LINE)}], "schedule": {"cron": "0 3 * * *"}})
    )


def in_prefect(service: Served) -> None:
    """The flow runs that have ended."""
    deployment = service.prefect.deployment(f"retrain/{LINE}")
    for number in range(RUNS):
        kind, name = ENDS[number % len(ENDS)]
        body = {
            "name": f"{LINE} v{number}",
            "flow_id": deployment["flow_id"],
            "deployment_id": deployment["id"],
            "parameters": deployment["parameters"],
            "state": {"type": kind, "name": name, "message": "routing fell by 3 points"},
        }
        status, answer = service.prefect.call("POST", "/flow_runs/", body)
        assert status < 300, answer


def in_mlflow(service: Served) -> None:
    """The runs, with what a retrain records."""
    mlflow = httpx.Client(base_url=service.addresses["mlflow"], timeout=300)

    def send(path: str, body: Any) -> Any:
        return mlflow.post(f"{API}/{path}", json=body).raise_for_status().json()

    tags = [{"key": "backprop.namespace", "value": "backprop"}]
    experiment = send("experiments/create", {"name": f"backprop.{LINE}", "tags": tags})["experiment_id"]
    for number in range(RUNS):
        run_id = uuid.uuid4().hex
        own = {"backprop.run_id": run_id, "backprop.root": run_id, "backprop.role": "parent", "backprop.line": LINE}
        body = {
            "experiment_id": experiment,
            "start_time": int(time.time() * 1000) - number * 86_400_000,
            "tags": [{"key": key, "value": value} for key, value in (own | {"backprop.status": "finished"}).items()],
        }
        run = send("runs/create", body)["run"]["info"]["run_id"]
        params = [{"key": f"training.field{field}", "value": str(field)} for field in range(77)]
        metrics = [{"key": f"score.{task}", "value": 0.9, "timestamp": 0, "step": 0} for task in ("a", "b", "average")]
        send("runs/log-batch", {"run_id": run, "params": params, "metrics": metrics})
