"""What `backprop serve` starts, with the tools' own commands: Prefect's server, MLflow's, a worker for processes."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.flow import LONGEST_START, wait_for
from benchmarks.measure import BIN, CORES, environment, threads
from tests.wire.prefect_server import PrefectServer, free_port, wait_until

NAME = "prefect server, mlflow server and prefect worker"
POOL = "by-hand"


@contextmanager
def by_hand(home: Path) -> Iterator[list[int]]:
    """The process ids, once everything answers: SQLite, and the settings that the tools have of themselves."""
    home.mkdir(exist_ok=True)
    prefect, mlflow = free_port(), free_port()
    api, tracking = f"http://127.0.0.1:{prefect}/api", f"http://127.0.0.1:{mlflow}"
    own = environment(PREFECT_HOME=str(home), PREFECT_API_URL=api, **threads(CORES))
    database = f"sqlite:///{home}/mlflow.db"
    server = PrefectServer(api, own)
    with ExitStack() as running:
        first = running.enter_context(process(home, own, "prefect", "server", "start", "--port", str(prefect)))
        options = ["--port", str(mlflow), "--backend-store-uri", database]
        second = running.enter_context(process(home, own, "mlflow", "server", *options))
        wait_for(f"{api}/health", first)
        wait_for(f"{tracking}/health", second)
        worker = running.enter_context(
            process(home, own, "prefect", "worker", "start", "--pool", POOL, "--type", "process")
        )
        wait_until(lambda: is_ready(server), LONGEST_START, "worker")
        yield [first.pid, second.pid, worker.pid]


def is_ready(server: PrefectServer) -> bool:
    """Whether the pool is there and a worker asks it for runs."""
    status, pool = server.call("GET", f"/work_pools/{POOL}")
    return status == 200 and pool["status"] == "READY"


@contextmanager
def process(home: Path, own: dict[str, str], program: str, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A program and all that it starts, ended with the block."""
    with (home / "log").open("ab") as log:
        started = subprocess.Popen(
            [BIN / program, *arguments],
            env=own,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait()
