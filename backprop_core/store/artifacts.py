"""The artifact store: commits, verifies, removes and checks artifacts, read-only directories named by their digest."""

import errno
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from filelock import FileLock, Timeout

from backprop_core.errors import ArtifactDamaged, ArtifactMissing, DiskFull, system_error
from backprop_core.runtime import log_context
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ArtifactRef
from backprop_core.store import cache_limit, disk_files, shared_moves, sharing
from backprop_core.store.cache_keys import canonical, digest_of
from backprop_core.store.disk_files import fsync as fsync
from backprop_core.store.disk_files import size_of
from backprop_core.store.layout import MANIFEST, StoreLayout
from backprop_core.store.locks import Lock, is_acquired
from backprop_core.store.sharing import Shared

LARGE = 64 * 2**20  # bytes
Stat = tuple[object, ...]  # names, sizes, times and inodes of a directory's files
# by store, what this process has verified: Prefect calls the cache without a Store, so the object cannot be passed
_verified: dict[Path, dict[str, Stat]] = {}
Ref = TypeVar("Ref", bound=ArtifactRef)


class Finding(Record):
    """Something that `store check` found wrong."""

    digest: str
    what: str
    missing: bool = False


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside, fsync, rename: `path` holds the old content or the new one, never a part, and keeps its mode.

    A file that all machines share is written in the bucket of its store first. Raises StoreConflict.
    """
    data = content.encode() if isinstance(content, str) else content
    if shared := sharing.keeper(path):
        shared.mirror.put(path, data)
    else:
        disk_files.replace(path, data)


def remove_file(path: Path) -> None:
    """Remove a file, if there is one; one that all machines share in the bucket first. Raises StoreConflict."""
    if (shared := sharing.keeper(path)) and path.is_file():
        shared.mirror.remove(path)
    path.unlink(missing_ok=True)


def remove_records(directory: Path) -> None:
    """Remove a directory of records, if there is one, as `remove_file` does."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            remove_file(path)
    shutil.rmtree(directory, ignore_errors=True)


def manifest_of(directory: Path, kind: str, version: int) -> dict[str, Any]:
    """Kind, format and the (name, size, sha256) of every payload file, by name."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = [[path.relative_to(directory).as_posix(), path.stat().st_size, file_digest(path)] for path in paths]
    return {"kind": kind, "format": version, "files": files}


class Store:
    """A directory of artifacts. Safe for any number of processes.

    If it is the local copy of a store in a bucket, artifacts go there when they are committed and come from there when
    they are read, unless this process works `alone`: a worker, whose parent does that.
    """

    # brings an artifact that is not here, with `adopt`, if it knows it: it needs what the core does not know
    elsewhere: ClassVar["Callable[[Store, str], None] | None"] = None

    def __init__(self, root: Path, *, alone: bool = False) -> None:
        self.root = root.absolute()
        self.layout = StoreLayout(self.root)
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._session: Path | None = None
        self._verified = _verified.setdefault(self.root, {})
        self._guard = threading.Lock()
        self.shared = None if alone else sharing.at(self.root)
        if self.shared:
            self.shared.refresh()
            self._end_moves(self.shared)

    def _end_moves(self, shared: Shared) -> None:
        """Finish or undo moves of records that were cut off: their lock, if it is free, does that."""
        for name in shared_moves.locks(shared):
            lock = self.lock(name)
            if is_acquired(lock, timeout=0):
                lock.release()

    def move_records(self, old: Path, new: Path, lock: str) -> None:
        """Give a directory of records another place: all of them, or none. Only for who has the lock.

        Raises LeaseLost, StoreConflict.
        """
        if self.shared:
            shared_moves.move(self.shared, old, new, lock)
        else:
            old.rename(new)
        for place in {old.parent, new.parent}:
            fsync(place)

    # Writing

    @contextmanager
    def begin(self, kind: str) -> Iterator[Path]:
        """A directory to write an artifact into; gone afterwards unless `commit` took it."""
        directory = self.scratch(kind)
        try:
            yield directory
        except OSError as error:
            if isinstance(coded := system_error(error), DiskFull):
                raise coded from error
            raise
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def using(self, digests: Collection[str]) -> Iterator[None]:
        """Keep the copies of artifacts here while the block runs, whatever the limit of the local copy."""
        if self.shared is None:
            yield
            return
        with self.begin(cache_limit.USED) as directory:
            (directory / cache_limit.DIGESTS).write_text("\n".join(digests), encoding="utf-8")
            yield

    def commit(self, directory: Path, ref: type[Ref], *, record: dict[str, Any], **fields: Any) -> Ref:
        """Make a directory from `begin` an artifact: hash, fsync, rename. The same payload gives the same digest.

        `record` says where it came from (run, stage, versions); it stands beside the artifact, outside the digest.
        Raises OSError if anything could not be forced to disk; then nothing is visible.
        """
        manifest = manifest_of(directory, ref.artifact, ref.format)
        text = canonical(manifest)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if not self._intact(digest):
            self._publish(directory, digest, text)
        self._clear_tombstone(digest)
        if not self.layout.record(digest).is_file():  # the first origin stays: a first merge is its tuned adapter
            made_by = {"format": 1, "kind": ref.artifact, "run_id": log_context.current()["run_id"]}
            write_atomic(self.layout.record(digest), canonical({**made_by, **record}))
        self.share(digest)
        return ref(digest=digest, **fields)

    def take(self, directory: Path, digest: str, record: bytes | None) -> None:
        """Make a directory from `begin`, with an artifact of another store and its manifest, one of this store."""
        manifest = (directory / MANIFEST).read_text(encoding="utf-8")
        if not self._intact(digest):
            (directory / MANIFEST).unlink()
            self._publish(directory, digest, manifest)
        if record and not self.layout.record(digest).is_file():
            write_atomic(self.layout.record(digest), record)
        self.share(digest)

    def share(self, digest: str) -> None:
        """Copy an artifact that is here to the bucket, if the store has one."""
        if self.shared:
            self._clear_tombstone(digest)
            self.shared.send(digest)

    def _clear_tombstone(self, digest: str) -> None:
        """The artifact that was removed is there again."""
        tombstone = self.layout.tombstone(digest)
        if self.shared and tombstone.is_file():
            self.shared.look_again(digest)
            self.shared.mirror.remove(tombstone)
        tombstone.unlink(missing_ok=True)

    def adopt(self, directory: Path, digest: str, record: dict[str, Any]) -> None:
        """Make a directory from `begin` an artifact that was committed to another store, its manifest included.

        Raises ArtifactDamaged if it is not what this digest names.
        """
        self._verify_bytes(directory, digest)
        self._publish(directory, digest, (directory / MANIFEST).read_text(encoding="utf-8"))
        if record and not self.layout.record(digest).is_file():
            write_atomic(self.layout.record(digest), canonical(record))
        self.share(digest)

    def _intact(self, digest: str) -> bool:
        try:
            self._verify_here(digest)
        except ArtifactMissing:
            return False
        except ArtifactDamaged:
            self.set_aside(digest)
            return False
        return True

    def _publish(self, directory: Path, digest: str, manifest: str) -> None:
        (directory / MANIFEST).write_text(manifest, encoding="utf-8", newline="\n")
        for path in sorted(directory.rglob("*")):
            fsync(path)
            if path.is_file():
                path.chmod(0o444)
        fsync(directory)
        target = self.layout.artifact(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process committed the same bytes first
                raise
        fsync(target.parent)

    def scratch(self, purpose: str) -> Path:
        """A directory of this process for temporary files, swept after its death."""
        with self._guard:
            if self._session is None:
                self._session = self._open_session()
        directory = self._session / f"{purpose}-{uuid.uuid4().hex[:12]}"
        directory.mkdir()
        return directory

    def _open_session(self) -> Path:
        self.sweep()
        while True:
            session = self.layout.session(uuid.uuid4().hex)
            session.mkdir(parents=True)
            self._session_lock = FileLock(self.layout.session_lock(session.name), thread_local=False)
            with suppress(FileNotFoundError, FileExistsError):  # another process swept it before there was a lock
                self._session_lock.acquire()
                if self.layout.session_lock(session.name).is_file():  # else it was swept between the two lines above
                    return session

    def sweep(self) -> None:
        """Remove the temporary directories of processes that are gone."""
        for session in self.layout.sessions.glob("*"):
            gone = (
                FileNotFoundError,
                FileExistsError,
            )  # swept by another; FileLock makes a directory that is not there
            with suppress(Timeout, *gone), FileLock(self.layout.session_lock(session.name), timeout=0):
                shutil.rmtree(session, ignore_errors=True)

    def close(self) -> None:
        """Remove this process's temporary directory, and those of processes that are gone: it may have had none."""
        with self._guard:
            if self._session is not None:
                shutil.rmtree(self._session, ignore_errors=True)
                self._session_lock.release()
                self._session = None
        self.sweep()
        if self.shared:
            cache_limit.keep(self.layout, self.shared)

    # Reading

    def local(self, ref: ArtifactRef) -> Path:
        """The artifact's directory on this machine, verified."""
        self.verify(ref.digest)
        return self.layout.artifact(ref.digest)

    def verify(self, digest: str) -> None:
        """Read every byte and compare. Once per process, unless a file's size or time changed since.

        What is only in the bucket is copied here first.
        """
        if not self.has(digest) and Store.elsewhere and not self.was_removed(digest):
            Store.elsewhere(self, digest)
        self._verify_here(digest)

    def has(self, digest: str) -> bool:
        """Whether the store has an artifact; what is only in the bucket is copied here."""
        directory = self.layout.artifact(digest)
        if self.shared and not directory.is_dir():
            if self.was_removed(digest):
                self.shared.refresh()  # another machine may have made it again
            if not self.was_removed(digest):
                self._fetch(digest, self.shared)
        return directory.is_dir()

    def _fetch(self, digest: str, shared: Shared) -> None:
        with self.begin("fetched") as directory:
            text = shared.fetch(digest, directory)
            if text is None or hashlib.sha256(text.encode()).hexdigest() != digest:
                return  # there is none, or what is there is none
            self._publish(directory, digest, text)
            self._verified[digest] = stat_of(self.layout.artifact(digest))  # each file was, as it came

    def _verify_here(self, digest: str) -> None:
        directory = self.layout.artifact(digest)
        if not directory.is_dir():
            raise ArtifactMissing(f"the store has no artifact {digest[:12]}", hint=self._missing_hint(digest))
        state = stat_of(directory)
        if self._verified.get(digest) != state:
            self._verify_bytes(directory, digest)
            self._verified[digest] = state
        if self.shared:
            os.utime(directory)  # read now: `cache_limit` removes what was read longest ago

    def bring(self, digest: str) -> None:
        """Make sure that an artifact is here, but do not read it again. Raises ArtifactMissing."""
        if not self.layout.artifact(digest).is_dir():
            self.verify(digest)
        elif self.shared:
            os.utime(self.layout.artifact(digest))  # it is about to be read

    def _verify_bytes(self, directory: Path, digest: str) -> None:
        hint = "run the command that made it again; `backprop store check` lists everything that is damaged"
        text = (directory / MANIFEST).read_bytes() if (directory / MANIFEST).is_file() else b""
        if hashlib.sha256(text).hexdigest() != digest:
            raise ArtifactDamaged(f"artifact {digest[:12]}: {MANIFEST} is not what was committed", hint=hint)
        manifest = json.loads(text)
        found = manifest_of(directory, manifest["kind"], manifest["format"])
        if found != manifest:
            names = sorted({name for name, *_ in differing(found["files"], manifest["files"])})
            raise ArtifactDamaged(f"artifact {digest[:12]}: {', '.join(names)} is not what was committed", hint=hint)

    def _missing_hint(self, digest: str) -> str:
        tombstone = self.layout.tombstone(digest)
        if tombstone.is_file():
            return f"it was removed: {json.loads(tombstone.read_text())['reason']}"
        return "run the command that made it again"

    def record(self, digest: str) -> dict[str, Any]:
        """The record of an artifact's origin; empty if there is none."""
        path = self.layout.record(digest)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def digest_of_file(self, path: Path) -> str:
        """sha256 of a file outside the store; a large one is read again only when its size, times or inode changed."""
        stat = path.stat()
        if stat.st_size < LARGE:
            return file_digest(path)
        state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        note = self.layout.hashed(digest_of(state[0]))
        known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if known.get("state") != state:
            known = {"state": state, "sha256": file_digest(path)}
            write_atomic(note, canonical(known))
        return str(known["sha256"])

    # Keeping house

    def set_aside(self, digest: str) -> None:
        """Move a damaged artifact out of sight, so that it can be made again; in the bucket, if it is not here."""
        if self.shared and not self.layout.artifact(digest).is_dir():
            self.shared.set_aside(digest)
        damaged = self.layout.damaged
        damaged.mkdir(exist_ok=True)
        self._verified.pop(digest, None)
        with suppress(FileNotFoundError):
            self.layout.artifact(digest).rename(damaged / f"{digest}-{uuid.uuid4().hex[:8]}")

    def remove(self, digest: str, reason: str) -> None:
        """Delete an artifact and leave a tombstone with the reason. Raises LeaseLost if this process lost the store."""
        self.confirm("prune")
        write_atomic(self.layout.tombstone(digest), canonical({"reason": reason, "time": now()}))
        self._verified.pop(digest, None)
        with self.begin("removed") as directory, suppress(FileNotFoundError):
            self.layout.artifact(digest).rename(directory / digest)
        if self.shared:
            self.shared.remove(digest)

    def was_removed(self, digest: str) -> bool:
        """Whether an artifact was removed on purpose."""
        return self.layout.tombstone(digest).is_file()

    def check(self) -> Iterator[Finding]:
        """Read every artifact, those of the bucket too, and yield what is wrong. Repairs nothing."""
        for digest in sorted(self.digests()):
            try:
                self.has(digest)
                self._verify_bytes(self.layout.artifact(digest), digest)
            except (ArtifactDamaged, OSError, ValueError) as error:
                self._verified.pop(digest, None)
                yield Finding(digest=digest, what=str(error))

    def count(self) -> int:
        """How many artifacts there are."""
        return len(self.digests())

    def digests(self) -> set[str]:
        """All artifacts, here and in the bucket."""
        here = {path.name for path in self.layout.artifacts.glob("*")}
        return here | self.shared.digests().keys() if self.shared else here

    def sizes(self) -> dict[str, int]:
        """All artifacts with their bytes, here and in the bucket; also those of which only damage is left."""
        here = {path.name: size_of(path) for path in self.layout.artifacts.glob("*")}
        return self.damaged() | (self.shared.digests() if self.shared else {}) | here

    def damaged(self) -> dict[str, int]:
        """What was set aside, by the digest that it should have, with its bytes, here and in the bucket."""
        found = self.shared.damaged() if self.shared else {}
        for path in self.layout.damaged.glob("*"):
            digest = path.name.partition("-")[0]
            found[digest] = found.get(digest, 0) + size_of(path)
        return found

    def bring_all(self) -> None:
        """Copy every artifact of the bucket here, for what reads them all."""
        if self.shared:
            for digest in sorted(self.shared.digests()):
                self.has(digest)

    def bring_kind(self, kind: str) -> None:
        """Copy every artifact of the bucket of this kind here."""
        if self.shared:
            here = {path.name for path in self.layout.artifacts.glob("*")}
            for digest in sorted(self.shared.of_kind(kind, self.shared.digests().keys() - here)):
                self.has(digest)

    def bring_results(self) -> None:
        """Copy every record of a finished stage of the bucket here."""
        if self.shared:
            self.shared.fetch_results(self.shared.results() - {path.name for path in self.layout.cache_keys.glob("*")})

    def finish_removals(self) -> None:
        """Delete what removals have left: what was set aside; in the bucket, also where they were cut off.

        Only for who has the lock of a prune.
        """
        for digest in filter(self.was_removed, self.damaged()):
            for path in self.layout.damaged_copies(digest):
                shutil.rmtree(path, ignore_errors=True)
        if self.shared:
            self.shared.finish_removals(self.was_removed)

    def lock(self, name: str) -> Lock:
        """A lock that is freed when its holder dies: by the kernel, or in a bucket by time."""
        path = self.layout.lock(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileLock(path, thread_local=False)
        return self.shared.lock(name, file) if self.shared else file

    def confirm(self, name: str) -> None:
        """Raise LeaseLost if another machine has taken over a lock that this process took."""
        if self.shared:
            self.shared.leases.confirm(name)

    # Results of finished stages

    def has_result(self, key: str) -> bool:
        """Whether there is a record under this key, good or not; one that is only in the bucket is copied here."""
        return self.layout.cache_key(key).is_file() or bool(self.shared and self.shared.fetch_result(key))

    def results(self) -> set[str]:
        """The keys of all records."""
        here = {path.name for path in self.layout.cache_keys.glob("[!.]*")}
        return here | self.shared.results() if self.shared else here

    def keep_result(self, key: str) -> None:
        """Copy the record under this key to the bucket, if the store has one."""
        if self.shared:
            self.shared.send_result(key)

    def drop_result(self, key: str) -> None:
        """Remove the record under this key."""
        self.layout.cache_key(key).unlink(missing_ok=True)
        self.layout.cache_result(key).unlink(missing_ok=True)
        if self.shared:
            self.shared.drop_result(key)


def stat_of(directory: Path) -> Stat:
    """Names, sizes, times and inodes of a directory's files."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return tuple((str(path), (stat := path.stat()).st_size, stat.st_mtime_ns, stat.st_ino) for path in paths)


def differing(found: list[list[Any]], expected: list[list[Any]]) -> list[list[Any]]:
    """Entries of two manifests that are in one and not, or not equal, in the other."""
    return [entry for entry in found + expected if entry not in found or entry not in expected]


def now() -> str:
    """This moment in UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
