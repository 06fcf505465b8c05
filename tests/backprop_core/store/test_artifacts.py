"""The store: same bytes same name, never half an artifact, nothing damaged goes unseen."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backprop_core.errors import ArtifactDamaged, ArtifactMissing, DiskFull
from backprop_core.schema.refs import RowsRef
from backprop_core.store.artifacts import LARGE, Store, file_digest, write_atomic


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "store")
    yield store
    store.close()


def rows(store: Store, text: str = "{}\n", **record: object) -> RowsRef:
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text(text)
        return store.commit(directory, RowsRef, record=record, rows=1)


def rewrite(path: Path, data: bytes) -> None:
    """Change a committed file behind the store's back, keeping its size and time."""
    stat = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_same_bytes_same_name(store):
    """The digest is that of the payload alone: record, directory and time are outside it."""
    first = rows(store, run="a")
    assert rows(store, run="b") == first
    assert rows(store, '{"a":1}\n') != first
    assert store.record(first.digest)["run"] == "a"


def test_digest_is_that_of_the_manifest(store):
    """Anybody can check an artifact with sha256sum: its name is the digest of artifact.json."""
    ref = rows(store)
    manifest = store.layout.artifact(ref.digest) / "artifact.json"
    assert file_digest(manifest) == ref.digest
    assert json.loads(manifest.read_text())["files"] == [
        ["rows.jsonl", 3, "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"]
    ]


def test_committed_files_are_read_only(store):
    """What is committed is not changed by mistake."""
    path = store.local(rows(store)) / "rows.jsonl"
    assert path.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("damage", [b"[]\n", b"{}", b""])
def test_damage_is_seen(store, damage):
    """A flipped, cut or emptied file is an error that names it, in a process that has not read it before."""
    ref = rows(store)
    rewrite(store.layout.artifact(ref.digest) / "rows.jsonl", damage)
    with pytest.raises(ArtifactDamaged, match=r"rows\.jsonl"):
        Store(store.root).local(ref)
    assert [finding.digest for finding in store.check()] == [ref.digest]


def test_a_missing_file_is_damage(store):
    """An artifact without one of its files is not whole."""
    ref = rows(store)
    (store.layout.artifact(ref.digest) / "rows.jsonl").unlink()
    with pytest.raises(ArtifactDamaged, match=r"rows\.jsonl"):
        store.local(ref)


def test_damaged_is_set_aside_and_made_again(store):
    """Committing the same payload again heals the artifact and keeps the damaged one for whoever wants to look."""
    ref = rows(store)
    rewrite(store.layout.artifact(ref.digest) / "rows.jsonl", b"[]\n")
    fresh = Store(store.root)
    assert rows(fresh) == ref
    assert (fresh.local(ref) / "rows.jsonl").read_text() == "{}\n"
    assert len(list((store.root / "damaged").iterdir())) == 1
    assert list(store.check()) == []
    fresh.close()


def test_removed_leaves_a_tombstone(store):
    """What was removed is missing, and whoever asks is told why; making it again takes the tombstone away."""
    ref = rows(store)
    store.remove(ref.digest, "the customer asked for it")
    with pytest.raises(ArtifactMissing) as caught:
        store.local(ref)
    assert "the customer asked for it" in caught.value.hint
    assert rows(store) == ref
    assert store.local(ref).is_dir()


def test_nothing_is_left_of_a_failed_write(store):
    """An exception between begin and commit leaves neither artifact nor temporary directory."""
    with pytest.raises(ValueError), store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text("{")
        raise ValueError
    assert store.count() == 0
    assert [path.name for path in store.root.glob("tmp/*/*")] == ["lock"]


def test_full_disk_is_a_coded_error(store):
    """No space left is DiskFull, not a traceback."""
    with pytest.raises(DiskFull), store.begin("rows"):
        raise OSError(errno.ENOSPC, "no space left on device")


KILLED = """
import os, signal, sys
from pathlib import Path
from backprop_core.store import artifacts as rooms
from backprop_core.schema.refs import RowsRef
calls = 0
def counted(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
def commit():
    os.fsync, os.rename, os.replace, os.chmod = map(counted, (os.fsync, os.rename, os.replace, os.chmod))
    store = rooms.Store(Path(sys.argv[1], str(fatal)))
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text("{}\\n")
        ref = store.commit(directory, RowsRef, record={}, rows=1)
    print(ref.digest, flush=True)
    os._exit(0)
for fatal in range(1, 40):
    if not (child := os.fork()):
        commit()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    assert status == -signal.SIGKILL
"""


@pytest.mark.slow
def test_killed_at_every_write_leaves_all_or_nothing(tmp_path):
    """SIGKILL at each fsync, chmod and rename of a commit, in turn: a whole artifact or none, and nothing left over."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True)
    roots = sorted(tmp_path.iterdir(), key=lambda root: int(root.name))
    assert len(roots) > 5
    for root in roots:
        store = Store(root)
        assert list(store.check()) == []
        store.close()  # of a process that wrote nothing
        assert list(root.glob("tmp/*")) == []
        ref = rows(store)
        assert (store.local(ref) / "rows.jsonl").read_text() == "{}\n"
        store.close()
    assert done.stdout.strip() == ref.digest  # of the last one, which nothing killed


def test_a_dead_process_leaves_no_temporary_files(tmp_path):
    """What a killed process was writing is swept by the next one; what a living one writes is not."""
    alive = Store(tmp_path)
    mine = alive.scratch("mine")
    script = "import sys,os,signal; from pathlib import Path; from backprop_core.store.artifacts import Store\n"
    script += "Store(Path(sys.argv[1])).scratch('x'); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert len(list(tmp_path.glob("tmp/*"))) == 2
    other = Store(tmp_path)
    other.scratch("other")
    other.close()
    assert mine.is_dir()
    assert len(list(tmp_path.glob("tmp/*"))) == 1
    alive.close()


def test_atomic_write_keeps_the_old_text_on_failure(tmp_path):
    """A pointer file holds the old text or the new one."""
    path = tmp_path / "champion"
    write_atomic(path, "1")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["champion"]


def test_a_large_file_is_hashed_once(tmp_path, store):
    """The digest of a large file is remembered until its size, time or inode changes."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    first = store.digest_of_file(path)
    assert first == file_digest(path)
    [note] = (store.root / "hashes").iterdir()
    note.write_text(note.read_text().replace(first, "0" * 64))
    assert store.digest_of_file(path) == "0" * 64
    os.utime(path, (1, 1))
    assert store.digest_of_file(path) == first


def test_a_large_file_that_was_changed_behind_its_time(store: Store, tmp_path: Path) -> None:
    """Other bytes are another digest, also where size, inode and the time of the change were put back."""
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(LARGE)
    before, times = store.digest_of_file(path), path.stat()
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.digest_of_file(path) != before


def test_a_session_opens_while_others_sweep(tmp_path):
    """Two commands at once: one sweeps what the dead have left while the other opens its directory."""
    store, ended = Store(tmp_path), threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            store.sweep()

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    try:
        for _ in range(200):
            own = Store(tmp_path)
            assert own.scratch("x").is_dir()
            own.close()
    finally:
        ended.set()
        for sweeper in sweepers:
            sweeper.join()
