"""The worker of `serve`: `python -m flows.server.flow_worker` deploys, prints "up", and executes scheduled runs.

It also watches for new data of lines and for runs whose process is gone. When its parent stops it, it takes no more
runs, interrupts its own, which record that, and ends with them. When it or its parent is killed, its runs end at once.
"""

import asyncio
import logging
import os
import threading
from abc import ABC
from contextlib import suppress

import httpx
import psutil
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from backprop_core.errors import BackpropError
from backprop_core.runtime import parent_watch
from backprop_core.runtime.settings import Settings, settings
from flows.cli import lines_file
from flows.cli.console import configure_logging
from flows.server.dead_runs import give_up, worker_name
from flows.server.deploy import deploy
from flows.server.server_process import START
from flows.server.watch import Watches, watching

log = logging.getLogger("flows.server.flow_worker")
PATIENCE = 75.0  # seconds for a run to finish its step, save it, and record the interruption
LOOK = 15.0  # seconds between two checks for runs whose process is gone
READ = 2.0  # seconds between two looks at the job files
ending = threading.Event()  # set when `serve` ends, and read by a class that Prefect makes


class Worker(ProcessWorker, ABC):  # Prefect does not list an ABC as a type of worker
    """Takes no more runs when it is ending."""

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        return [] if ending.is_set() else await super().get_and_submit_flow_runs()


def end() -> None:
    """End the runs and the worker."""
    ending.set()
    runs = psutil.Process().children()
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.terminate()
    for left in psutil.wait_procs(runs, timeout=PATIENCE)[1]:
        left.kill()
    os._exit(0)


def look(config: Settings, name: str) -> None:
    """Check for runs whose process is gone, at regular intervals."""
    while not ending.wait(LOOK):
        try:
            give_up(config, name)
        except (httpx.HTTPError, PrefectException, BackpropError, OSError) as error:
            log.warning("cannot check for dead runs: %s", error)


def follow(config: Settings, watches: Watches) -> None:
    """Watch what the job files say now, whenever one is added, changed or removed."""
    known = lines_file.states(config)
    while not ending.wait(READ):
        now = lines_file.states(config)
        if now == known:
            continue
        known = now
        try:
            watches.update(file.job for file in lines_file.every(config).values())
        except BackpropError as error:
            log.warning("the watches stay as they are: %s", error)


def wait_for_prefect() -> None:
    """Wait until Prefect answers: while its server starts, its socket is open already. One that is down fails later."""
    if api := get_current_settings().api.url:
        with suppress(httpx.HTTPError):
            httpx.get(f"{api}/health", timeout=START)


def main() -> None:
    """Deploy, then work until the parent stops it."""
    parent_watch.hold(stop=end)
    config = settings()
    configure_logging(config, verbose=False)
    wait_for_prefect()
    jobs = {name: file.job for name, file in lines_file.every(config).items()}
    for change in deploy(config, jobs, pool=config.pool, dry_run=False):
        for detail in change.details if not change.new else ():
            log.info("%s: %s", change.what, detail)
    name = worker_name(config)
    give_up(config, name)
    os.environ[parent_watch.FOLLOWS] = parent_watch.name_self()  # for its runs
    print("up", flush=True)
    threading.Thread(target=look, args=[config, name], daemon=True).start()
    worker = Worker(work_pool_name=config.pool, create_pool_if_not_found=False, name=name)
    with watching(jobs.values()) as watches:
        threading.Thread(target=follow, args=[config, watches], daemon=True).start()
        asyncio.run(worker.start(printer=lambda _: None))


if __name__ == "__main__":
    main()
