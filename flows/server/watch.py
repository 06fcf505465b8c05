"""New data starts a line's retrain: its source is looked at every `poll_seconds`, and a state that stays is handed on.

A run is asked for under a key that is made of line and state, so the Prefect server knows which states it has had. Who
looks needs no memory: looking from two places, or again after a restart, starts nothing twice.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from backprop_core.errors import BackpropError, DeploymentMissing
from backprop_core.schema.specs import LineSpec
from flows.cli.prefect_environment import refusals
from tasks.runs.source_fingerprint import fingerprint

log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds for a look to end
AGAIN = 60.0  # seconds after which a watch goes on that something unknown has ended
TAG = "new-data"  # of the runs that are asked for here
WATCH = "watch "  # how the names of threads that look begin
Hook = Callable[[threading.ExceptHookArgs], object]


@dataclass
class Watch:
    """One line's source: what the last look saw, what was handed on, what was complained of."""

    job: LineSpec
    seen: str = ""
    handed: str = ""
    complaint: str = ""

    def settled(self, state: str) -> bool:
        """Whether a look that sees `state` is the second in a row to do so, and it was not handed on yet."""
        same, self.seen = state == self.seen, state
        return same and state != self.handed

    def look(self) -> None:
        """Look once. What goes wrong is said once, and tried again at the next look."""
        try:
            state = fingerprint(self.job.datasets[0])
            if self.settled(state):
                run = ask(self.job.line, state)
                self.handed = state
                log.info("line %s: flow run %s is for the data that is there now", self.job.line, run)
            self.complaint = ""
        except BackpropError as error:
            if error.message != self.complaint:
                log.warning("line %s waits for new data: %s", self.job.line, error)
            self.complaint = error.message

    def go_on(self, stop: threading.Event) -> None:
        """Look now, and again every `poll_seconds` until it is stopped."""
        self.look()
        while not stop.wait(self.job.poll_seconds):
            self.look()

    def keep_on(self, stop: threading.Event) -> None:
        """Go on until it is stopped, whatever ends a look: a protocol's package raises what it likes."""
        while not stop.is_set():
            thread = threading.Thread(target=self.go_on, args=[stop], name=WATCH + self.job.line, daemon=True)
            thread.start()
            thread.join()
            stop.wait(AGAIN)


def ask(line: str, state: str) -> str:
    """The name of the run of retrain/LINE that is for this state of its source; it is made if there is none yet.

    Raises DeploymentMissing, DeploymentRefused, PrefectUnreachable.
    """
    try:
        with refusals("backprop deploy brings its deployments up to date"), get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"retrain/{line}")
            key = f"{TAG}:{line}:{state}"
            return client.create_flow_run_from_deployment(deployment.id, idempotency_key=key, tags=[TAG]).name
    except ObjectNotFound as error:
        raise DeploymentMissing(
            f"the Prefect server has no deployment retrain/{line}", hint="make it: backprop deploy"
        ) from error


def saying(before: Hook) -> Hook:
    """Log what has ended a watch; what has ended another thread is left to the hook `before`."""

    def say(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else ""
        if not name.startswith(WATCH):
            before(args)
            return
        what = "line %s: its watch has ended by itself and goes on in %g s"
        log.error(what, name.removeprefix(WATCH), AGAIN, exc_info=args.exc_value)

    return say


@contextmanager
def watching(jobs: Iterable[LineSpec]) -> Iterator[None]:
    """Look at the sources of all lines that say how often, each in a thread, while the block runs.

    What ends such a thread is logged.
    """
    stop, before = threading.Event(), threading.excepthook
    threading.excepthook = saying(before)
    watches = [Watch(job) for job in jobs if job.poll_seconds]
    threads = [threading.Thread(target=watch.keep_on, args=[stop], daemon=True) for watch in watches]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        threading.excepthook = before
