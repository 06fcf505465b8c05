"""The worker of `serve`: `python -m flows.serve_worker` makes the deployments, says "up", and runs what is asked for.

It looks for the lines' new data, too. Runs that were killed with an earlier worker are said to be, so that they can be
tried again. When stdin closes, its own runs are interrupted, which they note in their records, and it ends with them.
"""

import asyncio
import logging
import os
import sys
import threading
from contextlib import suppress

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from backprop_core.settings import Settings, settings
from flows import lines_file
from flows.console import configure_logging
from flows.deploy import deploy
from flows.watch import watching
from tasks.tries import has_died

log = logging.getLogger("flows.serve_worker")
PATIENCE = 75.0  # seconds for a run to finish its step, save it, and note that it was interrupted
RUNNING = {"state": {"type": {"any_": ["RUNNING"]}}}


def give_up_the_dead(config: Settings) -> None:
    """Mark runs whose process was killed: their deployments' slots are free at once, and they can be tried again."""
    running = FlowRunFilter.model_validate(RUNNING | {"tags": {"all_": [config.namespace]}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running):
            if has_died(str(run.id), config):
                client.set_flow_run_state(run.id, Crashed(message="its process was killed; try it again: it goes on"))


def end_with_stdin() -> None:
    """Wait until the parent has no more use for the worker, or is dead; then end its runs, and it."""
    sys.stdin.buffer.read()
    runs = psutil.Process().children()
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.terminate()
    for left in psutil.wait_procs(runs, timeout=PATIENCE)[1]:
        left.kill()
    os._exit(0)


def main() -> None:
    """Deploy, then work until stdin closes."""
    config = settings()
    configure_logging(config, verbose=False)
    jobs = {name: file.job for name, file in lines_file.every(config).items()}
    for change in deploy(config, jobs, pool=config.pool, dry_run=False):
        for detail in change.details if not change.new else ():
            log.info("%s: %s", change.what, detail)
    give_up_the_dead(config)
    print("up", flush=True)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    worker = ProcessWorker(work_pool_name=config.pool, create_pool_if_not_found=False)
    with watching(jobs.values()):
        asyncio.run(worker.start(printer=lambda _: None))


if __name__ == "__main__":
    main()
