"""What Prefect and MLflow cost: a flow on a running server, and the same stages called without either.

`python -m benchmarks.flow flow|core` is a contender.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import BIN, Row, contenders, environment, medians, take_turns

if TYPE_CHECKING:
    from backprop_core.stages import Stage

NAME = "flow, against the same core calls"
LONGEST_START = 180.0  # seconds


def against_core() -> Row:
    """Three LoRA runs, all done again each time, in a home and on a server that were used before."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        home = str(Path(name) / "home")
        with (
            prefect_server(Path(name)) as api,
            contenders(*SIDES, PREFECT_API_URL=api, BACKPROPAGATE_HOME=home) as both,
        ):
            flow, core = both
            seconds = medians({"flow": lambda: flow.turn()["seconds"], "core": lambda: core.turn()["seconds"]})
    return Row(
        NAME, seconds["flow"], seconds["core"], "the same stages in the worker, no Prefect, no MLflow", "s", "less"
    )


SIDES = [("benchmarks.flow", "flow"), ("benchmarks.flow", "core")]


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """The address of a server of its own, ended with the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command: list[str | Path] = [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = environment(PREFECT_HOME=str(home), PREFECT_UI_ENABLED="false")
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health", process)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        process.wait()


def wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    """Until the server answers."""
    deadline = time.monotonic() + LONGEST_START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"no answer from {address}")


# The contenders


def as_flow() -> None:
    """As a deployment calls it."""
    from benchmarks import jobs
    from flows.multi_run import multi_run
    from flows.parameters import parameters

    result = multi_run(**parameters("multi-run", jobs.spec(), fresh=True))
    assert result.status == "finished" and result.mlflow_run_id, result


def as_calls() -> None:
    """The same stages in the same order, called one by one."""
    from backprop_core.runtime.settings import settings
    from backprop_core.store.artifacts import Store
    from benchmarks import jobs
    from flows.pipeline import pipeline
    from tasks.runs.flow_run import Run, new_run_id
    from tasks.runs.outcome import Notes
    from tasks.runs.resolve import prepare

    store = Store(settings().store_path)
    bare = Bare(store)
    made = pipeline(Run(new_run_id(), prepare("multi-run", jobs.spec(), store), store, bare, Notes()))
    bare.close()
    assert len(made.datasets) == len(jobs.TASKS)


class Bare:
    """Calls stages where they are computed; nothing is cached."""

    def __init__(self, store: Any) -> None:
        from backprop_core.worker.client import Worker

        self.store, self.worker = store, Worker(store, slots=[store.root / "locks" / "cpu.lock"])

    def call(self, stage: "Stage[Any]", **parameters: Any) -> Any:
        from backprop_core.store.cache_keys import stage_key
        from tasks.stages.parent_place import ParentPlace

        key = stage_key(stage.name, parameters)
        if stage.runs_in == "parent":
            return stage.carry_out(parameters, ParentPlace(self.store, key, stage.name))
        made = self.worker.call(stage, key=key, on_event=lambda _: None, **parameters)
        shutil.rmtree(self.store.layout.checkpoints(key), ignore_errors=True)
        return made

    def serve(self, *_: object) -> dict[str, str]:
        """Nothing is served."""
        return {}

    def close(self) -> None:
        self.worker.close()
        self.store.close()


def seconds(job: Callable[[], None]) -> dict[str, float]:
    began = time.perf_counter()
    job()
    return {"seconds": time.perf_counter() - began}


def main(side: str) -> None:
    """Import everything, then take turns."""
    import flows.multi_run  # noqa: F401

    job = {"flow": as_flow, "core": as_calls}[side]
    take_turns(lambda: seconds(job))


if __name__ == "__main__":
    main(sys.argv[1])
