"""A store in a bucket: its local copy is a directory store like any other, and this keeps both the same.

Artifacts go up when they are committed and come down when they are read. Small files are mirrored (`store.mirror`).
"""

import json
import platform
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from backprop_core.runtime.settings import settings
from backprop_core.store import disk_files, shared_moves
from backprop_core.store.layout import MANIFEST, BucketLayout, StoreLayout
from backprop_core.store.mirror import AT_ONCE, Mirror
from backprop_core.store.object_store import Listed, Objects
from backprop_core.store.remote_leases import Leases, SharedLock

KEYS = BucketLayout()
ABANDONED = 86400.0  # seconds after which an upload without a manifest is one that was cut off
FRESH = 5.0  # seconds for which a look at the bucket is believed by one who only reads
_open: dict[Path, "Shared"] = {}  # by local copy: settings are read anew for each Store
_guard = threading.Lock()


def at(root: Path) -> "Shared | None":
    """The bucket whose local copy this directory is, or None."""
    if root in _open or not StoreLayout(root).is_copy:
        return _open.get(root)
    with _guard:
        config = settings()
        if root not in _open and config.store and config.store_path == root:
            begin(root, config.store)
        return _open.get(root)


def begin(root: Path, address: str) -> "Shared":
    """Make a directory the local copy of the store at an address."""
    layout = StoreLayout(root)
    _open[root] = Shared(address.rstrip("/"), own_name(layout.shared_note), layout)
    return _open[root]


def own_name(note: Path) -> str:
    """How leases name this copy; another name on another machine that was made from an image of this one."""
    known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if known.get("machine", machine()) != machine() or "copy" not in known:
        known = {}
    if "machine" not in known:
        known = {"copy": known.get("copy", uuid.uuid4().hex), "machine": machine()}
        disk_files.replace(note, json.dumps(known).encode())
    return str(known["copy"])


def machine() -> str:
    """What tells this machine from others."""
    return f"{platform.node()} {uuid.getnode():x}"


def keeper(path: Path) -> "Shared | None":
    """The store that all machines share this file of, or None."""
    for root, shared in list(_open.items()):
        if path.is_relative_to(root) and shared.layout.is_shared(path):
            return shared
    return None


class Shared:
    """The bucket of a store."""

    def __init__(self, address: str, copy: str, layout: StoreLayout) -> None:
        self.address, self.layout = address, layout
        self.objects = Objects(address)
        self.leases = Leases(Objects(address, patience=5), copy, self.look)
        self.mirror = Mirror(self.objects, layout, self.leases, self._drop_copy)
        self._synced = 0.0
        self._known = set[str]()  # artifacts that this process has seen in the bucket

    # Small files

    def sync(self) -> None:
        """Bring the small files of both sides to the same state."""
        self.mirror.sync(logs=True)
        self._synced = time.monotonic()

    def look(self) -> None:
        """The same, but for the logs of runs: this is done all the time, and each would be sent again as a whole."""
        self.mirror.sync(logs=False)
        self._synced = time.monotonic()

    def refresh(self) -> None:
        """Look, unless that was done a moment ago."""
        if not self._synced or time.monotonic() - self._synced > FRESH:
            self.look()

    def lock(self, name: str, file: FileLock) -> SharedLock:
        """A lock of all machines, under which both sides are the same, and no records are in the middle of a move."""

        def settled() -> None:
            self.sync()
            shared_moves.settle(self, name)

        return SharedLock(name, file, self.leases, settled, self.sync)

    def _drop_copy(self, digest: str) -> None:
        """Remove the copy of an artifact that another machine removed, and what was set aside of it."""
        self._known.discard(digest)
        for path in (self.layout.artifact(digest), *self.layout.damaged_copies(digest)):
            shutil.rmtree(path, ignore_errors=True)

    # Artifacts

    def has(self, digest: str) -> bool:
        """Whether the bucket has the artifact now."""
        return self.objects.read(self._manifest(digest)) is not None

    def look_again(self, digest: str) -> None:
        """Another process may have removed an artifact that this one has seen in the bucket."""
        self._known.discard(digest)

    def digests(self) -> dict[str, int]:
        """The artifacts in the bucket, and their bytes."""
        sizes: dict[str, int] = {}
        whole = set[str]()
        for one in self.objects.list(KEYS.ARTIFACTS):
            digest, _, name = one.key.partition("/")
            sizes[digest] = sizes.get(digest, 0) + one.size
            if name == MANIFEST:
                whole.add(digest)
        return {digest: size for digest, size in sizes.items() if digest in whole}

    def of_kind(self, kind: str, among: Collection[str]) -> set[str]:
        """The artifacts in the bucket that are of this kind, by their manifests."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            read = pool.map(lambda digest: self.objects.read(self._manifest(digest)), among)
            found = {digest: one.content for digest, one in zip(among, read, strict=True) if one}
        return {digest for digest, text in found.items() if json.loads(text)["kind"] == kind}

    def send(self, digest: str) -> None:
        """Copy an artifact to the bucket: its files, its record, and its manifest last."""
        if digest in self._known:
            return
        if self.objects.read(self._manifest(digest)) is None:
            directory = self.layout.artifact(digest)
            text = (directory / MANIFEST).read_bytes()
            for name, _, _ in json.loads(text)["files"]:
                self.objects.send(KEYS.payload(digest, name), directory / name)
            if self.layout.record(digest).is_file():
                self.objects.write(KEYS.record(digest), self.layout.record(digest).read_bytes())
            self.objects.create(self._manifest(digest), text)
        self._known.add(digest)

    def fetch(self, digest: str, directory: Path) -> str | None:
        """Copy the files of an artifact into a directory, verified; its manifest, or None if there is no such artifact.

        Raises ArtifactDamaged if a file is not what was committed.
        """
        found = self.objects.read(self._manifest(digest))
        if found is None:
            return None
        for name, size, sha256 in json.loads(found.content)["files"]:
            self.objects.fetch(KEYS.payload(digest, name), directory / name, size, sha256)
        if record := self.objects.read(KEYS.record(digest)):
            disk_files.replace(self.layout.record(digest), record.content)
        self._known.add(digest)
        return found.content.decode()

    def remove(self, digest: str) -> None:
        """Delete an artifact, its manifest first, and its record."""
        self._known.discard(digest)
        prefix = KEYS.artifact(digest)
        self.objects.delete([self._manifest(digest)])
        self.objects.delete([f"{prefix}/{one.key}" for one in self.objects.list(prefix)] + [KEYS.record(digest)])

    def set_aside(self, digest: str) -> None:
        """Move a damaged artifact out of sight, its manifest first."""
        self._known.discard(digest)
        names = [one.key for one in self.objects.list(KEYS.artifact(digest))]
        aside = KEYS.damaged(f"{digest}-{uuid.uuid4().hex[:8]}")
        for name in sorted(names, key=lambda name: name != MANIFEST):
            self.objects.move(KEYS.payload(digest, name), f"{aside}/{name}")

    def damaged(self) -> dict[str, int]:
        """What was set aside, by the digest that it should have, with its bytes."""
        found = dict[str, int]()
        for one in self.objects.list(KEYS.DAMAGED):
            digest = one.key.partition("-")[0]
            found[digest] = found.get(digest, 0) + one.size
        return found

    def finish_removals(self, is_removed: Callable[[str], bool]) -> None:
        """Delete what was set aside of removed artifacts, and what removals and uploads that were cut off have left.

        Only for who has the lock of a prune.
        """
        every = self.objects.list(KEYS.ARTIFACTS)
        whole = {digest for digest, _, name in (one.key.partition("/") for one in every) if name == MANIFEST}
        self.sync()

        def is_left(one: Listed) -> bool:
            digest = one.key.partition("/")[0]
            return is_removed(digest) or (digest not in whole and time.time() - one.written > ABANDONED)

        left = sorted((one.key for one in every if is_left(one)), key=lambda key: not key.endswith(f"/{MANIFEST}"))
        records = {KEYS.record(key.partition("/")[0]) for key in left}
        self.objects.delete([*(f"{KEYS.ARTIFACTS}/{key}" for key in left), *sorted(records)])
        aside = [one.key for one in self.objects.list(KEYS.DAMAGED) if is_removed(one.key.partition("-")[0])]
        self.objects.delete([f"{KEYS.DAMAGED}/{key}" for key in aside])

    def _manifest(self, digest: str) -> str:
        return KEYS.payload(digest, MANIFEST)

    # Records of finished stages

    def send_result(self, key: str) -> None:
        """Copy the record of a finished stage to the bucket, after what it points to."""
        self.objects.write(KEYS.cache_result(key), self.layout.cache_result(key).read_bytes())
        self.objects.write(KEYS.cache_key(key), self.layout.cache_key(key).read_bytes())

    def fetch_result(self, key: str) -> bool:
        """Copy the record of a finished stage from the bucket; whether there is one."""
        record = self.objects.read(KEYS.cache_key(key))
        result = record and self.objects.read(KEYS.cache_result(key))
        if not record or not result:
            return False
        disk_files.replace(self.layout.cache_result(key), result.content)
        disk_files.replace(self.layout.cache_key(key), record.content)
        return True

    def fetch_results(self, keys: Collection[str]) -> None:
        """Copy these records of finished stages from the bucket, several at once."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.fetch_result, keys))

    def results(self) -> set[str]:
        """The keys of all records of finished stages."""
        return {one.key for one in self.objects.list(KEYS.CACHE_KEYS)}

    def drop_result(self, key: str) -> None:
        """Delete the record of a finished stage."""
        self.objects.delete([KEYS.cache_key(key), KEYS.cache_result(key)])
