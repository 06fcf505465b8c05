"""Keeps the small files that machines share (lines, runs, pins, …) the same here and in a bucket.

The index says which etag and which local file were last seen together, so that a change on either side is seen, a
removal too. If both sides changed, the bucket wins, and the log says so.

A guarded file is written, and removed, only over the content that was last seen. S3 deletes on no condition, so what
removes such a file writes no content over it. That a guarded file is not here removes nothing: a process that moved it
may have been killed, and another machine may have continued the line.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from backprop_core.errors import StoreConflict
from backprop_core.store import disk_files
from backprop_core.store.layout import BucketLayout, StoreLayout
from backprop_core.store.object_store import Objects
from backprop_core.store.remote_leases import RUN, Leases

log = logging.getLogger(__name__)
KEYS = BucketLayout()
GUARDED = ("lines/", "forgotten.jsonl", "restored.txt")  # written only over the content that was last seen
REMOVED = b""  # what a guarded file has in the bucket once it is removed
AT_ONCE = 8  # requests
Stat = tuple[int, int] | None  # size and time of a local file; None: there is none


class Seen(NamedTuple):
    """A file and an object of the same content."""

    etag: str
    stat: Stat


class Index:
    """What was seen, by path. Losing it costs comparisons, no data."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, etag TEXT, size INT, time INT)")
            yield connection

    def every(self) -> dict[str, Seen]:
        """All that was seen."""
        with self._open() as connection:
            rows = connection.execute("SELECT path, etag, size, time FROM seen").fetchall()
        return {path: Seen(etag, stat_in(size, time)) for path, etag, size, time in rows}

    def get(self, path: str) -> Seen | None:
        """What was seen of one file."""
        with self._open() as connection:
            row = connection.execute("SELECT etag, size, time FROM seen WHERE path = ?", (path,)).fetchone()
        return Seen(row[0], stat_in(row[1], row[2])) if row else None

    def note(self, path: str, etag: str, stat: Stat) -> None:
        """This file and the object with this etag are the same; None: both are removed."""
        with self._open() as connection:
            row = (path, etag, *(stat or (None, None)))
            connection.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", row)

    def drop(self, path: str) -> None:
        """The file is neither here nor there."""
        with self._open() as connection:
            connection.execute("DELETE FROM seen WHERE path = ?", (path,))


class Mirror:
    """The shared files of one store. Calls `on_tombstone` with a digest when another machine removed an artifact."""

    def __init__(
        self, objects: Objects, layout: StoreLayout, leases: Leases, on_tombstone: Callable[[str], None]
    ) -> None:
        self._objects, self._layout, self._leases, self._on_tombstone = objects, layout, leases, on_tombstone
        self._index = Index(layout.shared_index)
        self._guard = threading.RLock()
        path = layout.lock("shared")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path, thread_local=False)  # processes of this machine take turns

    def put(self, path: Path, content: bytes) -> None:
        """Write a file, in the bucket first.

        Raises StoreConflict if another machine changed a record of a line, LeaseLost if one has taken over the run of
        this process.
        """
        name = self._name(path)
        with self._guard, self._lock:
            if run := self._layout.run_of(path):
                self._leases.confirm(RUN + run)
            etag = self._sent(name, content)
            disk_files.replace(path, content)
            self._index.note(name, etag, stat_of(path))

    def _sent(self, name: str, content: bytes) -> str:
        if not name.startswith(GUARDED):
            return self._objects.write(KEYS.state(name), content)
        known = self._index.get(name)
        if known:
            etag = self._objects.change(KEYS.state(name), content, known.etag)
        else:
            etag = self._objects.create(KEYS.state(name), content)
        if etag is None:
            raise self._conflict(name)
        return etag

    def remove(self, path: Path) -> None:
        """Remove a file here and there. Raises StoreConflict if another machine changed it."""
        name = self._name(path)
        with self._guard, self._lock:
            known = self._index.get(name)
            if not self._removed(name, known.etag if known else None):
                raise self._conflict(name)

    def _removed(self, name: str, etag: str | None) -> bool:
        """Remove a file here and there, the index last, if the object has this etag or is gone; whether it was."""
        path, key = self._layout.root / name, KEYS.state(name)
        if etag and name.startswith(GUARDED):
            left = self._objects.change(key, REMOVED, etag)
            if left:
                self._take_away(path)
                self._index.note(name, left, None)
            return left is not None
        found = self._objects.read(key)
        if found and found.etag != etag:
            return False
        self._objects.delete([key])
        self._take_away(path)
        self._index.drop(name)
        return True

    def seen(self, directory: Path) -> dict[str, str]:
        """The files of a directory with their etags, as both sides last had them."""
        prefix = f"{self._name(directory)}/"
        found = {path: seen.etag for path, seen in self._index.every().items() if seen.stat}
        return {path.removeprefix(prefix): etag for path, etag in found.items() if path.startswith(prefix)}

    def _conflict(self, name: str) -> StoreConflict:
        return StoreConflict(
            f"another machine changed {name} of the store {self._objects.address} first",
            hint="run it again: it starts from what the other machine wrote",
        )

    def sync(self, *, logs: bool) -> None:
        """Bring both sides to the same state. A log that has grown here, which S3 takes only as a whole, may wait."""
        with self._guard, self._lock:
            there = {one.key: one.etag for one in self._objects.list(KEYS.STATE)}
            here = {self._name(path): path for path in self._layout.shared()}
            seen = self._index.every()
            names = sorted(there.keys() | here.keys() | seen.keys())
            stats = {name: stat_of(self._layout.root / name) for name in names}
            due = [name for name in names if seen.get(name) != Seen(there.get(name, ""), stats[name])]
            due = [name for name in due if logs or not self._has_grown(name, there.get(name), seen.get(name))]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name: self._settle(name, there.get(name), seen.get(name)), due))

    def _has_grown(self, name: str, etag: str | None, seen: Seen | None) -> bool:
        """Whether this is the log of a run that is the same in the bucket as it was."""
        return self._layout.is_log(self._layout.root / name) and etag == (seen.etag if seen else None)

    def _settle(self, name: str, etag: str | None, seen: Seen | None) -> None:
        """Make one file the same on both sides."""
        path = self._layout.root / name
        changed_here = stat_of(path) != (seen.stat if seen else None)
        changed_there = etag != (seen.etag if seen else None)
        run = self._layout.run_of(path) if changed_here else None
        if run and self._leases.is_others(RUN + run):
            self._pull(name, path, both=False)
        elif changed_here and not changed_there:
            self._push(name, path, etag)
        elif changed_there:
            self._pull(name, path, both=changed_here)

    def _push(self, name: str, path: Path, etag: str | None) -> None:
        stat = stat_of(path)
        if stat is None and name.startswith(GUARDED):
            self._pull(name, path, both=False)
            return
        if stat is None:
            self._removed(name, etag)  # else another machine has just changed it, and the next look brings that
            return
        with suppress(FileNotFoundError):  # it has moved meanwhile
            etag = self._sent(name, path.read_bytes())
            self._index.note(name, etag, stat)

    def _pull(self, name: str, path: Path, *, both: bool) -> None:
        found = self._objects.read(KEYS.state(name))
        if found is None or (found.content == REMOVED and name.startswith(GUARDED)):
            if found:
                self._index.note(name, found.etag, None)
            else:
                self._index.drop(name)
            if both and path.is_file():
                self._push(name, path, None)
            else:
                self._take_away(path)
            return
        if both and path.is_file() and path.read_bytes() != found.content:
            log.warning("%s was changed here and on another machine; the other machine's stays", name)
        if not path.is_file() or path.read_bytes() != found.content:
            disk_files.replace(path, found.content)
            os.utime(path, (found.written, found.written))  # the time of a run's result says when the run ended
        self._index.note(name, found.etag, stat_of(path))
        if path.parent == self._layout.tombstone("").parent:
            self._on_tombstone(path.stem)

    def _take_away(self, path: Path) -> None:
        """Remove a file, and the directories that it leaves empty."""
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent.parent == self._layout.root:
                return
            with suppress(OSError):
                parent.rmdir()

    def _name(self, path: Path) -> str:
        return path.relative_to(self._layout.root).as_posix()


def stat_in(size: int | None, time: int | None) -> Stat:
    """What the index has of a local file."""
    return None if size is None or time is None else (size, time)


def stat_of(path: Path) -> Stat:
    """Size and time of a file; None if there is none."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_size, stat.st_mtime_ns
