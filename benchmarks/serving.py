"""`backprop serve`, as it comes: how soon it is up, what it holds when idle, and a job through it."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import by_hand, jobs
from benchmarks.flow import SIDES
from benchmarks.measure import CORES, Row, contenders, medians, threads
from flows.parameters import differing, parameters
from flows.server.serve import LOOKS
from tests.wire.prefect_server import PrefectServer, served, wait_until

UP = "serve until it is up, against the same servers by hand"
IDLE = "memory of serve when idle, against the same servers by hand"
JOB = "a flow through serve, against the same core calls"
FIRST = "from schedule to first task, against an empty flow in the same pool"
LOADED = "the same stages in a process that has everything loaded, no Prefect, no MLflow"
SETTLED = 20.0  # seconds from the start until memory is read
OURS = ("multi-run/train-on-several-datasets", differing(parameters("multi-run", jobs.spec(), fresh=True), {}))
EMPTY = "empty/empty"
Side = Callable[[Path], AbstractContextManager[list[int]]]


@contextmanager
def ours(home: Path) -> Iterator[list[int]]:
    """`serve` with nothing set."""
    with served(home, **threads(CORES), PREFECT_WORKER_QUERY_SECONDS=LOOKS) as service:
        yield [service.process.pid]


def until_up() -> Row:
    """From the command to the moment when everything answers and the worker takes runs, in homes used before."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        homes = {"ours": (ours, Path(name) / "ours"), "other": (by_hand.by_hand, Path(name) / "other")}
        seconds = medians({side: partial(start, *given) for side, given in homes.items()})
    return Row(UP, seconds["ours"], seconds["other"], by_hand.NAME, "s", "less")


def start(side: Side, home: Path) -> float:
    """Seconds until it is up."""
    began = time.perf_counter()
    with side(home):
        return time.perf_counter() - began


def memory() -> Row:
    """One side after the other, in new homes."""
    return Row(IDLE, idle(ours), idle(by_hand.by_hand), by_hand.NAME, "bytes", "less")


def idle(side: Side) -> float:
    """Bytes of all its processes, what they share counted once (PSS)."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, side(Path(name) / "home") as roots:
        time.sleep(SETTLED)
        return medians({"bytes": lambda: sum(map(held, roots))})["bytes"]


def held(root: int) -> float:
    """Bytes of a process and what it started."""
    process = psutil.Process(root)
    return float(sum(each.memory_full_info().pss for each in (process, *process.children(recursive=True))))


def through_serve() -> Row:
    """A deployment's run, from its scheduled time to its end; the worker starts a new process for each."""
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as name,
        one_thread(Path(name)) as server,
        contenders(SIDES[1], BACKPROPAGATE_HOME=f"{name}/core") as [core],
    ):
        turns = {"serve": partial(lasted, server, *OURS), "core": lambda: core.turn()["seconds"]}
        seconds = medians(turns)
    return Row(JOB, seconds["serve"], seconds["core"], LOADED, "s", "less")


def to_first_task() -> Row:
    """Of a training and of a flow without anything of ours, both by the worker of `serve`."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, one_thread(Path(name)) as server:
        deploy_empty(server)
        turns = {"ours": partial(waited, server, *OURS), "empty": partial(waited, server, EMPTY, {})}
        seconds = medians(turns)
    return Row(FIRST, seconds["ours"], seconds["empty"], "a flow with one task that does nothing", "s", "less")


@contextmanager
def one_thread(place: Path) -> Iterator[PrefectServer]:
    """The server of a `serve` that may read the examples, its runs with one thread as the other side has."""
    settings = {"BACKPROPAGATE_ALLOWED_PATHS": str(jobs.EXAMPLES), "PREFECT_WORKER_QUERY_SECONDS": LOOKS}
    with served(place / "served", OMP_NUM_THREADS="1", **settings) as service:
        yield service.prefect


def deploy_empty(server: PrefectServer) -> None:
    """A deployment of it in our pool."""
    status, flow = server.call("POST", "/flows/", {"name": "empty"})
    assert status in (200, 201), flow
    wanted = {
        "name": "empty",
        "flow_id": flow["id"],
        "entrypoint": "benchmarks.empty_task:empty",
        "work_pool_name": server.deployment(OURS[0])["work_pool_name"],
        "pull_steps": [],
    }
    status, deployment = server.call("POST", "/deployments/", wanted)
    assert status in (200, 201), deployment


def run(server: PrefectServer, deployment: str, given: dict[str, Any]) -> dict[str, Any]:
    """A flow run that was asked for now and has ended well."""
    status, flow_run = server.create_run(deployment, given)
    assert status == 201, flow_run
    done = server.finished(flow_run["id"])
    assert done["state_type"] == "COMPLETED", done["state"]
    return done


def lasted(server: PrefectServer, deployment: str, given: dict[str, Any]) -> float:
    """Seconds from the time of a run to its end."""
    flow_run = run(server, deployment, given)
    return seconds_between(flow_run["expected_start_time"], flow_run["end_time"])


def waited(server: PrefectServer, deployment: str, given: dict[str, Any]) -> float:
    """Seconds from the time of a run to the start of its first task."""
    flow_run = run(server, deployment, given)
    wanted = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    starts: list[str] = []

    def is_known() -> bool:
        starts[:] = [task["start_time"] for task in server.call("POST", "/task_runs/filter", wanted)[1]]
        return bool(starts) and all(starts)

    wait_until(is_known, 60, "task")
    return seconds_between(flow_run["expected_start_time"], min(starts))


def seconds_between(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
