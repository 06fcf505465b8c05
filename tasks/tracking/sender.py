"""Sends the journals to MLflow exactly once, in chunks, and records the progress after each.

After a crash between a chunk and the note of it, the chunk is sent again. That changes nothing: MLflow keeps an
identical (metric, step, time, value) once, a tag or artifact replaces the earlier one, and runs are looked up before
they are created.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from backprop_core.errors import BackpropError, system_error
from backprop_core.runtime.redaction import blank_address, excerpt
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import write_atomic
from backprop_core.store.layout import JournalLayout
from tasks.tracking.artifact_copies import send_copies
from tasks.tracking.connection import (
    answering,
    connect,
    experiment_of,
    is_empty,
    is_own,
    prepare,
    tracking_uri,
)
from tasks.tracking.journal import SECONDS, Clock, bring_back, is_written, read_journal, retire
from tasks.tracking.journal_lines import AnyLine, Ended, Started
from tasks.tracking.record import close, deliver, find_or_create
from tasks.tracking.registry import is_mirrored, mirror, set_back

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHUNK = 500  # lines
log = logging.getLogger(__name__)


class SyncReport(Record):
    """The result of one sync, counted in journals."""

    sent: int = Field(description="Journals of which something was sent.")
    waiting: int = Field(description="Journals of which something is still to be sent.")
    error: str | None


class Sent(Record):
    """How much of a journal was sent, and to which MLflow."""

    uri: str
    offset: int = 0
    experiment: str | None = None
    runs: dict[str, str] = Field(default_factory=dict, description="run_id -> MLflow's id")


def load_sent(journals: JournalLayout, run_id: str, uri: str) -> Sent:
    """The progress for this MLflow; nothing was sent to another MLflow yet."""
    known = load_note(journals.sent_note(run_id), uri)
    return known if known.uri == uri else Sent(uri=uri)


def load_note(path: Path, uri: str) -> Sent:
    """The stored note; if it is missing or unreadable, a note that nothing was sent to `uri`."""
    try:
        return Sent.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return Sent(uri=uri)


def sync(settings: Settings, *, look: bool = False) -> SyncReport:
    """Send what MLflow lacks, and mirror the lines. Never raises: an outage or a full disk is in the report.

    With `look`, also set back champion aliases that were moved in MLflow.
    """
    sent, error = 0, None
    try:
        if not (any(unsent(settings)) or is_lost(settings) or look) and is_mirrored(settings):
            return SyncReport(sent=0, waiting=0, error=None)
        settings.journal_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(settings.layout.journal.sync_lock).acquire(timeout=2):
            restore(settings)
            if look or any(unsent(settings)) or not is_mirrored(settings):
                sent, error = send_all(settings)
                if not error and (look or not is_mirrored(settings)):
                    error = attempt(settings, set_back if look else mirror)
        waiting = sum(1 for _ in unsent(settings))
    except Timeout:
        waiting = sum(1 for _ in unsent(settings))  # another process is sending
    except (OSError, ValueError) as failed:
        coded = system_error(failed)
        return SyncReport(sent=sent, waiting=0, error=coded.message if coded else str(failed))
    return SyncReport(sent=sent, waiting=waiting, error=error)


def is_lost(settings: Settings) -> bool:
    """Whether the home's database is missing although journals were sent to it."""
    here = is_own(settings) and is_empty(settings.layout.mlflow_database)
    return here and any(settings.journal_path.rglob("*.sent"))


def restore(settings: Settings) -> None:
    """If the home's database is missing, mark all journals to be sent again to a new one."""
    journals = settings.layout.journal
    if not is_lost(settings):
        return
    for note in list(journals.root.rglob("*.sent")):
        if load_note(note, "").uri == blank_address(tracking_uri(settings)):
            note.unlink(missing_ok=True)
            bring_back(journals, note.stem)
    journals.registry.unlink(missing_ok=True)


def unsent(settings: Settings) -> Iterator[str]:
    """Journals with unsent lines, or whose writer is gone; oldest first."""
    uri, journals = blank_address(tracking_uri(settings)), settings.layout.journal
    for path in by_age(journals.root):
        with suppress(FileNotFoundError):  # another process has sent it meanwhile, and put it away
            offset = load_sent(journals, path.stem, uri).offset
            if path.stat().st_size > offset or not is_written(journals, path.stem):
                yield path.stem


def by_age(directory: Path) -> list[Path]:
    """The journals of a directory, the oldest first; leaves out those that another process moves away meanwhile."""
    ages: dict[Path, int] = {}
    for path in directory.glob("*.jsonl"):
        with suppress(FileNotFoundError):
            ages[path] = path.stat().st_mtime_ns
    return sorted(ages, key=ages.__getitem__)


def send_all(settings: Settings) -> tuple[int, str | None]:
    """Send all journals; returns how many were sent, and the first error."""
    sent, first_error = 0, None
    for run_id in list(unsent(settings)):
        error = attempt(settings, partial(send, run_id=run_id))
        sent += error is None
        first_error = first_error or error
        if error and attempt(settings, lambda *_: None):
            break
    return sent, first_error


def attempt(settings: Settings, work: "Callable[[MlflowClient, Settings], None]") -> str | None:
    """Connect and call `work`. Returns an error as text instead of raising it: a run must not fail by its record."""
    try:
        client = connect(settings)
        with answering(settings, "refused what was sent"):
            work(client, settings)
    except BackpropError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the work goes on
        return str(system_error(error) or excerpt(str(error), 300) or type(error).__name__)
    return None


def send(client: "MlflowClient", settings: Settings, run_id: str) -> None:
    """Send the rest of one journal, and retire it if its writer is gone."""
    journals = settings.layout.journal
    path, note = journals.lines(run_id), journals.sent_note(run_id)
    sent = load_sent(journals, run_id, blank_address(tracking_uri(settings)))
    while chunk := list(islice(read_journal(path, sent.offset), CHUNK)):
        with from_the_start_if_lost(note):
            sent = send_chunk(client, settings, sent, [line for _, line in chunk], chunk[-1][0])
        write_atomic(note, sent.model_dump_json())
    if not is_written(journals, run_id):
        for run, (last, seconds) in unfinished(path).items():
            if not ended_since(client, sent.runs[run], last):
                client.set_tag(sent.runs[run], SECONDS, f"{seconds:.3f}")
                close(client, sent.runs[run], "interrupted", last)
        retire(journals, run_id, sent.offset)


def ended_since(client: "MlflowClient", run: str, last: int) -> bool:
    """Whether another machine continued the run after our last line, and ended it."""
    info = client.get_run(run).info
    return info.status != "RUNNING" and (info.end_time or 0) > last


@contextmanager
def from_the_start_if_lost(note: Path) -> Iterator[None]:
    """If MLflow no longer knows a run, its database was replaced: the next sync sends everything."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            note.unlink(missing_ok=True)
        raise


def send_chunk(client: "MlflowClient", settings: Settings, sent: Sent, lines: list[AnyLine], offset: int) -> Sent:
    runs, experiment = dict(sent.runs), sent.experiment
    for line in lines:
        if isinstance(line, Started) and line.run not in runs:
            experiment = experiment or experiment_of(client, settings, line.line)
            runs[line.run] = find_or_create(client, experiment, line, parent=runs.get(line.parent or ""))
    for run in dict.fromkeys(line.run for line in lines if line.run in runs):
        deliver(client, runs[run], [line for line in lines if line.run == run])
    if experiment:
        send_copies(client, settings, experiment, runs, [line for line in lines if line.run in runs])
    return Sent(uri=sent.uri, offset=offset, experiment=experiment, runs=runs)


def unfinished(path: Path) -> dict[str, tuple[int, float]]:
    """Runs that were started and have no end, with the time of their last line and the seconds that they worked."""
    last: dict[str, AnyLine] = {}
    times: dict[str, int] = {}
    clock = Clock()
    for _, line in read_journal(path):
        clock.see(line)
        times[line.run] = line.time
        if isinstance(line, Started | Ended):
            last[line.run] = line
    return {run: (times[run], clock.seconds(run)) for run, line in last.items() if isinstance(line, Started)}


def noted(settings: Settings, run_id: str) -> Sent | None:
    journals = settings.layout.journal
    places = (journals.sent_note(run_id), journals.sent.sent_note(run_id))
    return next((load_note(path, "") for path in places if path.is_file()), None)


def mlflow_run_id(settings: Settings, run_id: str) -> str | None:
    """MLflow's id of a root run, once it has one."""
    sent = noted(settings, run_id)
    return sent.runs.get(run_id) if sent else None


def run_link(settings: Settings, run_id: str) -> str | None:
    """Where an MLflow server shows a root run; None without a server, or before the run was sent."""
    sent = noted(settings, run_id)
    if sent is None or not sent.uri.startswith("http") or run_id not in sent.runs:
        return None
    return f"{sent.uri.rstrip('/')}/#/experiments/{sent.experiment}/runs/{sent.runs[run_id]}"


class Sender:
    """Sends in the background while a flow runs; warns once if MLflow fails.

    It sends after `after` seconds, or at the end of the flow if that is sooner, and then every `every` seconds.
    """

    def __init__(self, settings: Settings, *, after: float = 0.0, every: float = 3.0) -> None:
        self._settings = settings
        self._after, self._every = after, every
        self._warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-sender", daemon=True)

    def start(self) -> None:
        """Start the thread. It imports mlflow first, which takes seconds; the flow does not wait for it."""
        self._thread.start()

    def finish(self, timeout: float = 30.0) -> None:
        """Send the rest, for at most `timeout` seconds. What is not sent by then stays in the journal."""
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._warn(f"MLflow took longer than {timeout:g} s")

    def _work(self) -> None:
        self._stop.wait(self._after)
        prepare()
        while not self._stop.is_set():
            self._sync()
            self._stop.wait(self._every)
        self._sync(look=True)

    def _sync(self, *, look: bool = False) -> None:
        if error := sync(self._settings, look=look).error:
            self._warn(error)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            kept = self._settings.journal_path
            log.warning("%s; the record is kept in %s and will be sent by `backprop sync`", reason, kept)
        self._warned = True
