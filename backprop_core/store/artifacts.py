"""The artifact store: commits, verifies, removes and checks artifacts, read-only directories named by their digest."""

import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from backprop_core.errors import ArtifactDamaged, ArtifactMissing, DiskFull, system_error
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ArtifactRef
from backprop_core.store.cache_keys import canonical, digest_of
from backprop_core.store.layout import MANIFEST, StoreLayout

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


def fsync(path: Path) -> None:
    """Force a file or a directory to disk; Windows opens no directory, and syncs only what may be written."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a directory
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside, fsync, rename: `path` holds the old content or the new one, never a part, and keeps its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            with suppress(FileNotFoundError):
                shutil.copymode(path, beside)  # before there is anything to read
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        fsync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def manifest_of(directory: Path, kind: str, version: int) -> dict[str, Any]:
    """Kind, format and the (name, size, sha256) of every payload file, by name."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = [[path.relative_to(directory).as_posix(), path.stat().st_size, file_digest(path)] for path in paths]
    return {"kind": kind, "format": version, "files": files}


class Store:
    """A directory of artifacts. Safe for any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.layout = StoreLayout(self.root)
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._session: Path | None = None
        self._verified = _verified.setdefault(self.root, {})
        self._guard = threading.Lock()

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
        self.layout.tombstone(digest).unlink(missing_ok=True)
        if not self.layout.record(digest).is_file():  # the first origin stays: a first merge is its tuned adapter
            write_atomic(self.layout.record(digest), canonical({"format": 1, "kind": ref.artifact, **record}))
        return ref(digest=digest, **fields)

    def _intact(self, digest: str) -> bool:
        try:
            self.verify(digest)
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

    # Reading

    def local(self, ref: ArtifactRef) -> Path:
        """The artifact's directory on this machine, verified."""
        self.verify(ref.digest)
        return self.layout.artifact(ref.digest)

    def verify(self, digest: str) -> None:
        """Read every byte and compare. Once per process, unless a file's size or time changed since."""
        directory = self.layout.artifact(digest)
        if not directory.is_dir():
            raise ArtifactMissing(f"the store has no artifact {digest[:12]}", hint=self._missing_hint(digest))
        state = stat_of(directory)
        if self._verified.get(digest) != state:
            self._verify_bytes(directory, digest)
            self._verified[digest] = state

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
        """Move a damaged artifact out of sight, so that it can be made again."""
        damaged = self.layout.damaged
        damaged.mkdir(exist_ok=True)
        self._verified.pop(digest, None)
        with suppress(FileNotFoundError):
            self.layout.artifact(digest).rename(damaged / f"{digest}-{uuid.uuid4().hex[:8]}")

    def remove(self, digest: str, reason: str) -> None:
        """Delete an artifact and leave a tombstone with the reason."""
        write_atomic(self.layout.tombstone(digest), canonical({"reason": reason, "time": now()}))
        self._verified.pop(digest, None)
        with self.begin("removed") as directory, suppress(FileNotFoundError):
            self.layout.artifact(digest).rename(directory / digest)

    def was_removed(self, digest: str) -> bool:
        """Whether an artifact was removed on purpose."""
        return self.layout.tombstone(digest).is_file()

    def check(self) -> Iterator[Finding]:
        """Read every artifact and yield what is wrong. Changes nothing on disk."""
        for directory in sorted(self.layout.artifacts.glob("*")):
            try:
                self._verify_bytes(directory, directory.name)
            except (ArtifactDamaged, OSError, ValueError) as error:
                self._verified.pop(directory.name, None)
                yield Finding(digest=directory.name, what=str(error))

    def count(self) -> int:
        """How many artifacts there are."""
        return sum(1 for _ in self.layout.artifacts.glob("*"))

    def lock(self, name: str) -> FileLock:
        """A lock that the kernel frees when its holder dies."""
        path = self.layout.lock(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, thread_local=False)


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
