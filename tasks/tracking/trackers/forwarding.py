"""Sends journals to one tracker, each part once, and notes how far it got."""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, TypeAlias

from filelock import FileLock, Timeout

from backprop_core.runtime.redaction import excerpt
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from tasks.tracking.journal import is_written, read_journal
from tasks.tracking.journal_lines import AnyLine
from tasks.tracking.trackers import notes
from tasks.tracking.trackers.notes import Note

CHUNK = 500  # lines
State: TypeAlias = dict[str, Any]
log = logging.getLogger(__name__)


class Stream(Protocol):
    """One journal on its way to a tracker. Its methods raise if the tracker cannot be reached."""

    def write(self, lines: Sequence[AnyLine]) -> None:
        """Send the next lines."""

    def settle(self, *, over: bool) -> State | None:
        """Where to go on once everything that was written has arrived; None while that is not known.

        If it is `over`, nothing more comes for now: wait until it is known.
        """


class Forwarded(Record):
    """What came of sending to one tracker, counted in journals."""

    tracker: str
    sent: int
    waiting: int
    error: str | None


class Reading:
    """A journal that this process sends, and no other one while it holds the lock."""

    def __init__(self, lock: FileLock, note: Note, stream: Stream) -> None:
        self.lock, self.offset, self.stream, self.noted = lock, note.offset, stream, note


class Forwarder:
    """Sends journals to one tracker. `own` is the run of this process: it may have been sent before, and goes on."""

    def __init__(self, settings: Settings, name: str, own: str | None) -> None:
        self.name, self._settings, self._own = name, settings, own
        self._place = settings.layout.journal.tracker(name)
        self._open: Callable[[Settings, str, State], Stream] = opener(name)
        self._readings: dict[str, Reading] = {}
        self._sent: set[str] = set()
        self._error: str | None = None

    def round(self) -> None:
        """Send what there is now. Never raises: after an error a journal is sent again from its note."""
        self._error = None
        for run_id in self._runs():
            try:
                self._forward(run_id)
            except Exception as error:  # noqa: BLE001 - where journals are sent
                self._let_go(run_id)
                self._error = f"{self.name}: {excerpt(str(error), 200) or type(error).__name__}"

    def report(self) -> Forwarded:
        waiting = len(self._place.waiting())
        return Forwarded(tracker=self.name, sent=len(self._sent), waiting=waiting, error=self._error)

    def _runs(self) -> list[str]:
        """This process's own run first: the others are left over from an outage."""
        waiting = self._place.waiting()
        return [self._own, *(run for run in waiting if run != self._own)] if self._own else waiting

    def _forward(self, run_id: str) -> None:
        reading = self._readings.get(run_id) or self._begin(run_id)
        if reading is None:
            return
        over = not is_written(self._settings.layout.journal, run_id)  # looked at first: then what is read is all
        for offset, lines in self._chunks(run_id, reading.offset):
            reading.stream.write(lines)
            reading.offset = offset
            self._note(run_id, reading, over=False)
            self._sent.add(run_id)
        if over:
            self._note(run_id, reading, over=True)
            notes.done(self._place, run_id)
            self._let_go(run_id)
            self._own = None if run_id == self._own else self._own

    def _begin(self, run_id: str) -> Reading | None:
        """Take a journal that no other process sends, with its lock."""
        self._place.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(self._place.lock(run_id), thread_local=False)
        with suppress(Timeout):
            lock.acquire(timeout=0)
            if run_id == self._own:
                notes.bring_back(self._place, run_id)
            note = notes.load(self._place, run_id)
            self._readings[run_id] = Reading(lock, note, self._open(self._settings, run_id, note.state))
            return self._readings[run_id]
        return None

    def _let_go(self, run_id: str) -> None:
        if reading := self._readings.pop(run_id, None):
            with suppress(OSError):
                self._place.lock(run_id).unlink()
            reading.lock.release()

    def _chunks(self, run_id: str, offset: int) -> Iterator[tuple[int, list[AnyLine]]]:
        path = notes.journal_of(self._settings.layout.journal, run_id)
        lines = read_journal(path, offset) if path else iter(())
        while chunk := list(islice(lines, CHUNK)):
            yield chunk[-1][0], [line for _, line in chunk]

    def _note(self, run_id: str, reading: Reading, *, over: bool) -> None:
        state = reading.stream.settle(over=over)
        if state is not None:
            notes.save(self._place, run_id, Note(offset=reading.offset, state=state))


def opener(name: str) -> Callable[[Settings, str, State], Stream]:
    """What opens a journal's way to a tracker. Its packages are imported only here."""
    modules = {"tensorboard": "event_files", "wandb": "wandb_runs", notes.OTLP: "otlp_spans"}
    opened: Callable[[Settings, str, State], Stream] = importlib.import_module(
        f"tasks.tracking.trackers.{modules[name]}"
    ).open_stream
    return opened
