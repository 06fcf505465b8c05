"""The run's side of the process that sends journals to the trackers."""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress

from pydantic import Field

from backprop_core.runtime import subprocesses
from backprop_core.runtime.optional_packages import require
from backprop_core.runtime.settings import Settings
from tasks.tracking.sender import SyncReport
from tasks.tracking.trackers import notes
from tasks.tracking.trackers.forwarding import Forwarded

PATIENCE = 30.0  # seconds after the end of a run
LONG = 600.0  # seconds of `backprop sync`
COMMAND = [sys.executable, "-m", "tasks.tracking.trackers.main"]
NEEDED = {
    "tensorboard": (["tensorboard"], "monitoring"),
    "wandb": (["wandb"], "monitoring"),
    notes.OTLP: (["opentelemetry.exporter"], "otel"),
}
log = logging.getLogger(__name__)


class Synced(SyncReport):
    """The result of one sync: of MLflow, and of each other tracker that lacked something."""

    trackers: list[Forwarded] = Field(default_factory=list)


class Trackers:
    """Sends one run to the trackers that are set while it works; without one, nothing is started.

    Raises ExtraMissing if a tracker's package is not installed.
    """

    def __init__(self, settings: Settings, run_id: str) -> None:
        self._settings, self._run_id = settings, run_id
        self._process: subprocess.Popen[bytes] | None = None
        check(settings)

    def start(self) -> None:
        """Note the run for each tracker, then start to send it."""
        if notes.wanted(self._settings):
            notes.watch(self._settings, self._run_id)
            self._process = started([self._run_id])

    def end(self) -> None:
        """Nothing more comes: the process sends the rest, beside what the run still does."""
        if self._process and self._process.stdin:
            self._process.stdin.close()

    def finish(self, timeout: float = PATIENCE) -> None:
        """Wait for the rest, for at most `timeout` seconds. What is not sent by then stays in the journal."""
        if not self._process:
            return
        for tracker in reports(self._process, timeout, notes.wanted(self._settings)):
            if tracker.error:
                log.warning("%s; what it lacks is kept and will be sent by `backprop sync`", tracker.error)


def check(settings: Settings) -> None:
    """Raise ExtraMissing if a tracker's package is not installed."""
    for name in notes.wanted(settings):
        packages, extra = NEEDED[name]
        require(packages, what=f"reporting to {name}", extra=extra)


def sync(settings: Settings) -> list[Forwarded]:
    """Send what the trackers lack. Raises ExtraMissing if a tracker's package is not installed."""
    if not any(notes.waiting(settings)):
        return []
    check(settings)
    process = started([])
    assert process.stdin
    process.stdin.close()
    return reports(process, LONG, notes.wanted(settings))


def started(arguments: list[str]) -> "subprocess.Popen[bytes]":
    return subprocesses.start(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the run
    )


def reports(process: "subprocess.Popen[bytes]", timeout: float, names: list[str]) -> list[Forwarded]:
    """What the process says at its end; it is ended if that takes longer than `timeout` seconds."""
    if not subprocesses.ends(process, within=timeout):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout
    with process.stdout as output:
        told = {report.tracker: report for report in map(Forwarded.model_validate_json, output)}
    slow = f"took longer than {timeout:g} s, or ended early"
    return [told.get(name) or Forwarded(tracker=name, sent=0, waiting=1, error=f"{name} {slow}") for name in names]
