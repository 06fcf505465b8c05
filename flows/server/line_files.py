"""Keeps deployments, schedules and watches as the job files say, while files are added, changed and removed."""

import logging
import threading
from collections.abc import Iterable

import httpx
from prefect.exceptions import PrefectException

from backprop_core.errors import BackpropError
from backprop_core.runtime.settings import Settings
from flows.cli import lines_file
from flows.server.deploy import Change, deploy
from flows.server.watch import Watches

log = logging.getLogger(__name__)
READ = 2.0  # seconds between two looks at the job files


class LineFiles:
    """The job files of all lines, and what follows from them in a work pool."""

    def __init__(self, config: Settings, pool: str, watches: Watches) -> None:
        self._config, self._pool, self._watches = config, pool, watches
        self._known: dict[str, tuple[int, int]] | None = None
        self._complaint = ""

    def update(self) -> list[Change]:
        """Deploy and watch what the files say, if one has changed. Returns what changed.

        Raises what reading the files and deploying raise; the next call tries again.
        """
        now = lines_file.states(self._config)
        if now == self._known:
            return []
        jobs = {name: file.job for name, file in lines_file.every(self._config).items()}
        changes = deploy(self._config, jobs, pool=self._pool, dry_run=False)
        self._watches.update(jobs.values())
        self._known = now
        return changes

    def look(self) -> None:
        """Update, and log what changed. An error is logged once, and the next look tries again."""
        try:
            say(self.update())
            self._complaint = ""
        except (BackpropError, httpx.HTTPError, PrefectException, OSError) as error:
            if str(error) != self._complaint:
                log.warning("deployments and watches stay as they are: %s", error)
            self._complaint = str(error)

    def follow(self, stop: threading.Event) -> None:
        """Look again and again until it is stopped."""
        while not stop.wait(READ):
            self.look()


def say(changes: Iterable[Change]) -> None:
    """Log what has changed on the server."""
    for change in changes:
        for detail in change.details or (["created"] if change.new else []):
            log.info("%s: %s", change.what, detail)
