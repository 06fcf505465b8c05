"""Leases: the artifacts and checkpoint keys that an active or unfinished run uses, which pruning must keep.

A lease is there until the run is finished, whatever happens to its process; its lock is held while the process lives.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from backprop_core.errors import RunActive
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import Lock, held, is_acquired, is_held, nothing
from backprop_core.store.remote_leases import LASTS, RUN

LOOK = 1.0  # seconds: who only looks whether a run lives holds its lock for a moment


class Lease:
    """The lease of one run, held by this process. Waits for an active prune, so that no run starts during it.

    Calls `before_wait` before it waits. Raises RunActive if another process has the lease.
    """

    def __init__(self, run_id: str, store: Store, before_wait: Callable[[], None] = nothing) -> None:
        self._store, self._name = store, RUN + run_id
        self._path, self._lock_path = store.layout.lease(run_id), store.layout.lease_lock(run_id)
        self._path.parent.mkdir(exist_ok=True)
        file = FileLock(self._lock_path, thread_local=False)
        self._lock: Lock = store.shared.lock(RUN + run_id, file) if store.shared else file
        deadline = time.monotonic() + (LASTS + 5 * LOOK if store.shared else LOOK)
        while not self._taken(store, before_wait):
            if time.monotonic() > deadline:
                raise RunActive(f"run {run_id} is active", hint="wait until it ends, or stop it")
            time.sleep(LOOK if store.shared else 0.02)
        self._file = self._path.open("a", encoding="utf-8")

    def _taken(self, store: Store, before_wait: Callable[[], None]) -> bool:
        """Take the lease if it is free; the prune lock, which all runs of the store need, is held for that moment."""
        with held(store.lock("prune"), "the store is being pruned", before=before_wait):
            return is_acquired(self._lock, timeout=0)

    def add(self, *names: str) -> None:
        """Keep what has these digests or keys. Raises LeaseLost if another machine has taken the run over."""
        if self._store.shared:
            self._store.shared.leases.check(self._name)
        self._file.write("".join(f"{name}\n" for name in names))
        self._file.flush()

    def end(self, *, finished: bool) -> None:
        """The process works on the run no more; of a finished run, what it has made is kept by those who name it."""
        self._file.close()
        if finished:
            self._path.unlink(missing_ok=True)
        self._lock.release()
        with suppress(PermissionError):  # Windows keeps a file that is open
            self._lock_path.unlink(missing_ok=True)


def leased(store: Store) -> dict[str, set[str]]:
    """What each unfinished run holds, by run_id."""
    paths = store.layout.leases.glob("*.txt")
    return {path.stem: set(path.read_text(encoding="utf-8").split()) for path in paths}


def living(store: Store) -> Iterator[str]:
    """Runs whose process lives."""
    here = {path.stem for path in locks(store) if is_held(path)}
    return iter(here | set(store.shared.leases.held(RUN)) if store.shared else here)


def killed(store: Store) -> Iterator[str]:
    """Runs whose process has died before it could end them."""
    return (path.stem for path in locks(store) if not is_held(path))


def locks(store: Store) -> Iterator[Path]:
    return store.layout.leases.glob("*.lock")
