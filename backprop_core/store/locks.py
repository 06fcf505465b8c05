"""Waits for file locks held by other processes: logs what it waits for, and stays interruptible.

The order of all locks stands in `backprop_core.store.layout`.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)
BEAT = 1.0  # seconds between two signs of life of one who waits
REMINDER = 300.0  # seconds between two log lines of one who waits


class Lock(Protocol):
    """A lock of one machine, or of all that share a store."""

    def acquire(self, timeout: float = -1) -> Any:
        """Take it. Raises filelock's Timeout if that is not possible within so many seconds."""

    def release(self) -> None:
        """Give it back."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def nothing() -> None:
    """There is nothing to do."""


@contextmanager
def held(
    lock: Lock, what: str, *, before: Callable[[], None] = nothing, beat: Callable[[], None] = nothing
) -> Iterator[None]:
    """Hold the lock while the block runs. If it is taken, `before` is called once, then `beat` every second.

    `what` says who has the lock: "another run is working on line support".
    """
    acquire(lock, what, before=before, beat=beat)
    try:
        yield
    finally:
        lock.release()


def acquire(lock: Lock, what: str, *, before: Callable[[], None] = nothing, beat: Callable[[], None] = nothing) -> None:
    """Take the lock, as `held` does."""
    if is_acquired(lock, timeout=0):
        return
    before()
    log.warning("%s; waiting until it ends", what)
    began = said = time.monotonic()
    while not is_acquired(lock, timeout=BEAT):
        beat()
        if time.monotonic() - said > REMINDER:
            said = time.monotonic()
            log.warning("%s; waiting for %d minutes now", what, (said - began) / 60)


def is_acquired(lock: Lock, *, timeout: float) -> bool:
    """Take the lock if that is possible within so many seconds; whether it was."""
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether another process holds the lock of this file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    if not is_acquired(lock, timeout=0):
        return True
    lock.release()
    return False
