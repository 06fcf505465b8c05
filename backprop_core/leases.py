"""What a run has used so far: artifacts that must not go, and the keys under which its checkpoints lie.

leases/<run_id>.txt     one digest or key a line; there until the run is finished, whatever happens to its process
leases/<run_id>.lock    held while the process lives
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from backprop_core.store import Store


class Lease:
    """The lease of one run, held by this process. A prune that goes on is waited for, so that none begins in it."""

    def __init__(self, run_id: str, store: Store) -> None:
        self._path = store.root / "leases" / f"{run_id}.txt"
        self._path.parent.mkdir(exist_ok=True)
        self._lock = FileLock(self._path.with_suffix(".lock"), thread_local=False)
        with store.lock("prune"):
            self._lock.acquire()
            self._file = self._path.open("a", encoding="utf-8")

    def add(self, name: str) -> None:
        """Keep what has this digest or this key."""
        self._file.write(name + "\n")
        self._file.flush()

    def end(self, *, finished: bool) -> None:
        """The process works on the run no more; of a finished run, what it has made is kept by those who name it."""
        self._file.close()
        if finished:
            self._path.unlink()
        self._lock.release()
        with suppress(PermissionError):  # Windows keeps a file that is open
            self._path.with_suffix(".lock").unlink(missing_ok=True)


def leased(store: Store) -> dict[str, set[str]]:
    """What each unfinished run holds, by run_id."""
    paths = (store.root / "leases").glob("*.txt")
    return {path.stem: set(path.read_text(encoding="utf-8").split()) for path in paths}


def living(store: Store) -> Iterator[str]:
    """Runs whose process lives."""
    return (path.stem for path in locks(store) if is_held(path))


def killed(store: Store) -> Iterator[str]:
    """Runs whose process has died before it could end them."""
    return (path.stem for path in locks(store) if not is_held(path))


def locks(store: Store) -> Iterator[Path]:
    return (store.root / "leases").glob("*.lock")


def is_held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
