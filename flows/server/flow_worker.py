"""The worker of `serve`: `python -m flows.server.flow_worker` deploys, prints "up", and executes scheduled runs.

It also follows the job files of lines, and watches for new data and for runs whose process is gone. When its parent
stops it, it takes no more runs, interrupts its own, which record that, and ends with them. When it or its parent is
killed, its runs end at once.
"""

import asyncio
import logging
import os
import sys
import threading
from abc import ABC
from contextlib import suppress

import httpx
import psutil
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from backprop_core.errors import BackpropError, PrefectUnreachable
from backprop_core.runtime import parent_watch
from backprop_core.runtime.redaction import blank_address
from backprop_core.runtime.settings import Settings, settings
from flows.cli.console import configure_logging
from flows.server.dead_runs import give_up, worker_name
from flows.server.line_files import LineFiles, say
from flows.server.server_process import START, STARTING
from flows.server.watch import watching

log = logging.getLogger("flows.server.flow_worker")
PATIENCE = 75.0  # seconds for a run to finish its step, save it, and record the interruption
LOOK = 15.0  # seconds between two checks for runs whose process is gone
ANSWER = 30.0  # seconds for a Prefect server that runs already to answer
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


def wait_for_prefect(*, starting: bool) -> None:
    """Wait until Prefect answers. One that is down fails later.

    `starting`: `serve` has just started it; its socket is open already. Raises PrefectUnreachable for another one that
    accepts connections and does not answer.
    """
    api = get_current_settings().api.url
    if api is None:
        return
    try:
        httpx.get(f"{api}/health", timeout=START if starting else ANSWER)
    except httpx.TimeoutException as error:
        if not starting:
            raise PrefectUnreachable(
                f"the Prefect server at {blank_address(api)} does not answer within {ANSWER:g} s",
                hint="check it and PREFECT_API_URL, then run `backprop serve` again",
            ) from error
    except httpx.HTTPError:
        pass


def main() -> None:
    """Deploy, then work until the parent stops it."""
    parent_watch.hold(stop=end)
    config = settings()
    configure_logging(config, verbose=False)
    wait_for_prefect(starting=STARTING in sys.argv)
    name = worker_name(config)
    with watching([]) as watches:
        lines = LineFiles(config, config.pool, watches)
        say(change for change in lines.update() if not change.new)
        give_up(config, name)
        os.environ[parent_watch.FOLLOWS] = parent_watch.name_self()  # for its runs
        print("up", flush=True)
        threading.Thread(target=look, args=[config, name], daemon=True).start()
        threading.Thread(target=lines.follow, args=[ending], daemon=True).start()
        worker = Worker(work_pool_name=config.pool, create_pool_if_not_found=False, name=name)
        asyncio.run(worker.start(printer=lambda _: None))


if __name__ == "__main__":
    main()
