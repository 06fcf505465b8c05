"""Starts a line's retrain when its data changes. A changed source that is stable for `poll_seconds` starts a run.

The idempotency key of the run is made of line and state of the source, so that the Prefect server starts one run per
state, even with several watchers and after restarts.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from backprop_core.errors import BackpropError, DeploymentMissing
from backprop_core.schema.specs import LineSpec
from flows.cli.prefect_environment import refusals
from tasks.runs.source_fingerprint import fingerprint

log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds for a check to end
AGAIN = 60.0  # seconds before a watch restarts after an unknown error
TAG = "new-data"  # tag of the runs that a watch starts
WATCH = "watch "  # prefix of the names of watching threads
Hook = Callable[[threading.ExceptHookArgs], object]


@dataclass
class Watch:
    """The source of one line: its last state, the state of the last run, and the last error."""

    job: LineSpec
    seen: str = ""
    handed: str = ""
    complaint: str = ""

    def settled(self, state: str) -> bool:
        """Whether two checks in a row saw `state`, and no run was started for it."""
        same, self.seen = state == self.seen, state
        return same and state != self.handed

    def look(self) -> None:
        """Check once. An error is logged once, and the next check tries again."""
        try:
            state = fingerprint(self.job.datasets[0])
            if self.settled(state):
                run = ask(self.job.line, state)
                self.handed = state
                log.info("line %s: flow run %s trains the current data", self.job.line, run)
            self.complaint = ""
        except BackpropError as error:
            if error.message != self.complaint:
                log.warning("line %s waits for new data: %s", self.job.line, error)
            self.complaint = error.message

    def go_on(self, stop: threading.Event) -> None:
        """Check now, and again every `poll_seconds` until it is stopped."""
        self.look()
        while not stop.wait(self.job.poll_seconds):
            self.look()

    def keep_on(self, stop: threading.Event) -> None:
        """Run until it is stopped, whatever a check raises: packages for protocols raise anything."""
        while not stop.is_set():
            thread = threading.Thread(target=self.go_on, args=[stop], name=WATCH + self.job.line, daemon=True)
            thread.start()
            thread.join()
            stop.wait(AGAIN)


def ask(line: str, state: str) -> str:
    """The name of the run of retrain/LINE for this state of its source; created if it does not exist.

    Raises DeploymentMissing, DeploymentRefused, PrefectUnreachable.
    """
    try:
        with refusals("update its deployments: backprop deploy"), get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"retrain/{line}")
            key = f"{TAG}:{line}:{state}"
            return client.create_flow_run_from_deployment(deployment.id, idempotency_key=key, tags=[TAG]).name
    except ObjectNotFound as error:
        raise DeploymentMissing(
            f"the Prefect server has no deployment retrain/{line}", hint="create it: backprop deploy"
        ) from error


def saying(before: Hook) -> Hook:
    """Log an exception in a watching thread; pass those of other threads to `before`."""

    def say(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else ""
        if not name.startswith(WATCH):
            before(args)
            return
        what = "line %s: its watch has failed and restarts in %g s"
        log.error(what, name.removeprefix(WATCH), AGAIN, exc_info=args.exc_value)

    return say


class Watches:
    """The watches of lines that set poll_seconds, each in a thread."""

    def __init__(self) -> None:
        self._running: dict[str, Running] = {}

    @property
    def running(self) -> list[str]:
        """The lines that are watched."""
        return sorted(self._running)

    def update(self, jobs: Iterable[LineSpec]) -> None:
        """Watch the sources of these jobs. A watch whose job is as before goes on; others end or begin."""
        wanted = {job.line: job for job in jobs if job.poll_seconds}
        changed = [line for line, running in self._running.items() if wanted.get(line) != running.job]
        ended = [self._running.pop(line) for line in changed]
        for running in ended:
            running.stop.set()
        for running in ended:
            running.thread.join(PATIENCE)
        for line in wanted.keys() - self._running.keys():
            self._running[line] = begun(wanted[line])


class Running(NamedTuple):
    """A watch at work."""

    job: LineSpec
    stop: threading.Event
    thread: threading.Thread


def begun(job: LineSpec) -> Running:
    """Start the watch of a line."""
    stop = threading.Event()
    thread = threading.Thread(target=Watch(job).keep_on, args=[stop], daemon=True)
    thread.start()
    return Running(job, stop, thread)


@contextmanager
def watching(jobs: Iterable[LineSpec]) -> Iterator[Watches]:
    """Watch the sources of all lines that set poll_seconds while the block runs.

    Exceptions in these threads are logged.
    """
    before, watches = threading.excepthook, Watches()
    threading.excepthook = saying(before)
    watches.update(jobs)
    try:
        yield watches
    finally:
        watches.update([])
        threading.excepthook = before
