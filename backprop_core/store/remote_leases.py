"""Locks that hold across machines: leases in the bucket, each with a token that grows with every holder.

A holder renews its lease in the background. It is taken over if it was not renewed for `LASTS` seconds, as the one
who waits has seen by its own clock, or for longer by the clock of the server. Before a line moves, its holder confirms
that it still has the lease; a holder that was cut off and replaced cannot move it.
A process of one machine takes the lock of a file first, which the kernel frees when it dies. So who has that file finds
a lease of the same machine free.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Self

from filelock import FileLock, Timeout

from backprop_core.errors import BackpropError, LeaseLost
from backprop_core.store.layout import BucketLayout
from backprop_core.store.object_store import Found, Objects

log = logging.getLogger(__name__)
KEYS = BucketLayout()
LASTS = 30.0  # seconds
RENEWED = 10.0  # seconds between two renewals
SLACK = 15.0  # seconds more for a renewal that is late, by the clock of the server
LOOK = 1.0  # seconds between two looks of one who waits
RUN = "run-"  # begins the names of the leases of runs


class Note(NamedTuple):
    """What the object of a lock says."""

    holder: str | None  # which machine's copy of the store
    token: int  # how many holders there have been
    nonce: str  # makes every content another one
    time: float  # of the last renewal, by the holder's clock: for a reader, as clocks differ

    @property
    def content(self) -> bytes:
        return json.dumps(self._asdict()).encode()


class Leases:
    """The leases that this process has in one bucket. Calls `beat` after each renewal."""

    def __init__(self, objects: Objects, me: str, beat: Callable[[], None]) -> None:
        self._objects, self._me, self._beat = objects, me, beat
        self._held: dict[str, tuple[Note, str]] = {}  # by name, with the etag
        self._lost: set[str] = set()
        self._watched: dict[str, tuple[str, float]] = {}  # of others: the etag, and since when it is the same
        self._guard = threading.RLock()
        self._thread: threading.Thread | None = None
        self._beats: threading.Thread | None = None

    def take(self, name: str) -> bool:
        """Take a lease if it is free; whether it was. Only for who has the file lock of this name."""
        found = self._objects.read(KEYS.lock(name))
        before = note_in(found) if found else Note(None, 0, "", 0)
        if found and not self._is_free(name, before, found):
            return False
        note = Note(self._me, before.token + 1, uuid.uuid4().hex, time.time())
        etag = self._write(name, note, found.etag if found else None)
        if etag is None:
            return False
        with self._guard:
            self._held[name] = (note, etag)
            self._lost.discard(name)
            self._watched.pop(name, None)
            self._renew_in_background()
        return True

    def _is_free(self, name: str, note: Note, found: Found) -> bool:
        """Whether no machine holds the lease any more."""
        if note.holder in (None, self._me):
            return True
        known, since = self._watched.get(name, ("", 0.0))
        if known != found.etag:
            self._watched[name] = (found.etag, time.monotonic())
            return self._now() - found.written > LASTS + SLACK
        return time.monotonic() - since > LASTS

    def _now(self) -> float:
        """The time by the clock of the server: those of two machines may differ by hours."""
        clock = KEYS.clock(self._me)
        self._objects.write(clock, uuid.uuid4().bytes)
        found = self._objects.read(clock)
        return found.written if found else 0.0

    def _write(self, name: str, note: Note, etag: str | None) -> str | None:
        if etag is None:
            return self._objects.create(KEYS.lock(name), note.content)
        return self._objects.change(KEYS.lock(name), note.content, etag)

    def give_back(self, name: str) -> None:
        """End a lease. Its token stays, for the next holder to raise."""
        with self._guard:
            note, etag = self._held.pop(name, (None, ""))
            self._lost.discard(name)
        if note:
            self._write(name, note._replace(holder=None, nonce=uuid.uuid4().hex), etag)

    def confirm(self, name: str) -> None:
        """Raise LeaseLost unless the lease, if this process took it, is still its own."""
        self._renew(name)
        self.check(name)

    def check(self, name: str) -> None:
        """Raise LeaseLost if the last renewal of the lease has found it with another machine. Sends no request."""
        if name in self._lost:
            raise LeaseLost(
                f"another machine has taken over {name} of the store {self._objects.address}",
                hint="this machine was cut off from the store for too long; run it again",
            )

    def is_others(self, name: str) -> bool:
        """Whether another machine has the lease, or has taken it over from this process."""
        with self._guard:
            if name in self._held or name in self._lost:
                self._renew(name)
                return name in self._lost
        found = self._objects.read(KEYS.lock(name))
        return found is not None and note_in(found).holder not in (None, self._me)

    def _renew(self, name: str) -> None:
        with self._guard:
            if name not in self._held:
                return
            note, etag = self._held[name]
            note = note._replace(nonce=uuid.uuid4().hex, time=time.time())
            renewed = self._write(name, note, etag)
            if renewed:
                self._held[name] = (note, renewed)
                return
            del self._held[name]
            self._lost.add(name)
            log.error("another machine has taken over %s of the store %s", name, self._objects.address)

    def _renew_in_background(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._keep_renewing, daemon=True, name="store-leases")
            self._thread.start()

    def _keep_renewing(self) -> None:
        """Renew every lease until there is none."""
        while True:
            time.sleep(RENEWED)
            with self._guard:
                names = list(self._held)
                if not names:
                    self._thread = None
                    return
            try:
                for name in names:
                    self._renew(name)
                self._beat_beside()
            except BackpropError as error:
                log.warning("leases of the store were not renewed, the next try is in %g s: %s", RENEWED, error.message)

    def _beat_beside(self) -> None:
        """Begin a beat unless the last one has not ended: however long it takes, leases are renewed meanwhile."""
        if self._beats is None or not self._beats.is_alive():
            self._beats = threading.Thread(target=self._one_beat, daemon=True, name="store-beat")
            self._beats.start()

    def _one_beat(self) -> None:
        try:
            self._beat()
        except BackpropError as error:
            log.warning("the records of the store will be brought up to date later: %s", error.message)

    def held(self, prefix: str) -> list[str]:
        """The names with this prefix whose lease a process has, on any machine, by the clock of the server."""
        every = [one for one in self._objects.list(KEYS.LOCKS) if one.key.startswith(prefix)]
        recent = self._now() - LASTS - SLACK if every else 0.0
        names = [one.key for one in every if one.written > recent]
        found = [(name, self._objects.read(KEYS.lock(name))) for name in names]
        return [name.removeprefix(prefix) for name, one in found if one and note_in(one).holder]


def note_in(found: Found) -> Note:
    """What the object of a lock says."""
    read: dict[str, Any] = json.loads(found.content)
    return Note(**read)


class SharedLock:
    """A lock of all machines: of a file here, then of the bucket. Calls `on_taken` and `before_return` within it."""

    def __init__(
        self,
        name: str,
        local: FileLock,
        leases: Leases,
        on_taken: Callable[[], None],
        before_return: Callable[[], None],
    ) -> None:
        self._name, self._local, self._leases = name, local, leases
        self._on_taken, self._before_return = on_taken, before_return

    def acquire(self, timeout: float = -1) -> Self:
        """Take the lock. Raises Timeout if that is not possible within so many seconds; -1: wait."""
        deadline = time.monotonic() + timeout if timeout >= 0 else float("inf")
        self._local.acquire(timeout=timeout)
        try:
            while not self._leases.take(self._name):
                if time.monotonic() >= deadline:
                    raise Timeout(self._local.lock_file)
                time.sleep(max(0.0, min(LOOK, deadline - time.monotonic())))
            self._on_taken()
        except BaseException:
            self._give_back()
            raise
        return self

    def release(self) -> None:
        """Give the lock back, here even if the bucket cannot be reached."""
        try:
            self._before_return()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        try:
            with suppress(LeaseLost):
                self._leases.give_back(self._name)
        finally:
            self._local.release()

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
