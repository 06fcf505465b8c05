"""A store in a bucket: nothing is lost, and nothing that was removed stays, whatever is cut off or stale."""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.errors import ArtifactDamaged, LeaseLost
from backprop_core.schema.refs import RowsRef
from backprop_core.store import cache_limit, remote_leases, shared_checkpoints, sharing
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.leases import Lease, living
from tests.wire.s3_server import BUCKET, environment, s3_server

KEY = "c" * 64


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def machines(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """The same store on two machines."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    address = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    return [open_store(tmp_path / name, address) for name in ("one", "two")]


def open_store(root: Path, address: str) -> Store:
    sharing.begin(root, address)
    return Store(root)


def other_process(store: Store) -> Store:
    """The same store of the same machine, in a process that has seen nothing yet."""
    assert store.shared
    other = Store(store.root)
    other.shared = sharing.Shared(store.shared.address, sharing.own_name(store.layout.shared_note), store.layout)
    return other


def committed(store: Store, text: str) -> RowsRef:
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text(text)
        return store.commit(directory, RowsRef, record={"stage": "test"}, rows=1)


def keys(store: Store, prefix: str) -> list[str]:
    assert store.shared
    return [one.key for one in store.shared.objects.list(prefix)]


def test_made_again_after_another_process_removed_it(machines):
    """What a process has sent once is sent again when it makes it again: another process has removed it meanwhile."""
    one, two = machines
    ref = committed(one, "a\n")
    other_process(one).remove(ref.digest, "pruned")
    assert committed(one, "a\n") == ref
    two.shared.sync()
    assert (two.local(ref) / "rows.jsonl").read_text() == "a\n"


def test_made_again_on_another_machine(machines, monkeypatch):
    """What a machine knows as removed is read there as soon as another one has made it again."""
    monkeypatch.setattr(sharing, "FRESH", -1.0)
    one, two = machines
    ref = committed(one, "a\n")
    two.remove(ref.digest, "pruned")
    one.shared.sync()
    assert committed(one, "a\n") == ref
    assert (two.local(ref) / "rows.jsonl").read_text() == "a\n"


def test_the_only_copy_stays(machines, monkeypatch):
    """The limit of the local copy removes nothing that the bucket has no more, whatever this process remembers."""
    one, two = machines
    ref = committed(one, "a\n")
    two.shared.remove(ref.digest)
    monkeypatch.setenv("BACKPROPAGATE_STORE_CACHE_GB", "0.000000001")
    cache_limit.keep(one.layout, one.shared, young=-1)
    assert one.layout.artifact(ref.digest).is_dir()


def test_nothing_leaves_while_all_is_read(machines, monkeypatch):
    """The limit removes nothing while a prune or a `data forget`, which reads all artifacts, has its lock."""
    one, _ = machines
    committed(one, "a\n")
    monkeypatch.setenv("BACKPROPAGATE_STORE_CACHE_GB", "0.000000001")
    with one.lock("prune"):
        assert cache_limit.keep(one.layout, one.shared, young=-1) == 0
    assert cache_limit.keep(one.layout, one.shared, young=-1) == 1


def test_what_was_brought_stays_for_who_reads_it(machines, monkeypatch):
    """Also if it was here all the time: the worker reads it next, and asks no other place."""
    one, _ = machines
    ref = committed(one, "a\n")
    os.utime(one.layout.artifact(ref.digest), (1e9, 1e9))
    one.bring(ref.digest)
    monkeypatch.setenv("BACKPROPAGATE_STORE_CACHE_GB", "0.000000001")
    assert cache_limit.keep(one.layout, one.shared) == 0


def test_what_another_machines_run_uses_here_stays(machines, monkeypatch):
    """The limit leaves what a process of this machine says that it uses, until it says no more, or has died."""
    one, two = machines
    ref = committed(one, "a\n")
    two.local(ref)
    monkeypatch.setenv("BACKPROPAGATE_STORE_CACHE_GB", "0.000000001")
    other = Store(two.root)  # another process of the same machine
    with other.using({ref.digest}):
        two.close()
        assert cache_limit.keep(two.layout, two.shared, young=-1) == 0
    assert cache_limit.keep(two.layout, two.shared, young=-1) == 1


def test_a_slow_mirror_costs_no_lease(machines, monkeypatch):
    """A lease is renewed in time even if what is done after each renewal takes longer than the lease lasts."""
    monkeypatch.setattr(remote_leases, "LASTS", 1.5)
    monkeypatch.setattr(remote_leases, "RENEWED", 0.3)
    one, two = machines
    slow = remote_leases.Leases(one.shared.objects, "slow", lambda: time.sleep(30))
    assert slow.take("line-support")
    with pytest.raises(Exception, match="could not be acquired"):
        two.lock("line-support").acquire(timeout=4)
    slow.confirm("line-support")
    slow.give_back("line-support")


@pytest.mark.parametrize("behind", [-3600, 3600])
def test_clocks_that_differ(machines, monkeypatch, behind):
    """By whatever a machine's clock is wrong, its lease is not free and its run counts as living."""
    one, two = machines
    lock = one.lock("run-" + "a" * 32)
    lock.acquire()
    true = time.time
    monkeypatch.setattr(remote_leases.time, "time", lambda: true() + behind)
    with pytest.raises(Exception, match="could not be acquired"):
        two.lock("run-" + "a" * 32).acquire(timeout=0)
    assert list(living(two)) == ["a" * 32]
    lock.release()


def test_a_copied_home_is_another_machine(machines, monkeypatch):
    """An image of a machine with its home, started as another machine, does not take the first one's leases."""
    one, two = machines
    shutil.copyfile(one.layout.shared_note, two.layout.shared_note)
    monkeypatch.setattr(sharing, "machine", lambda: "another")
    cloned = other_process(two)
    with one.lock("line-support"), pytest.raises(Exception, match="could not be acquired"):
        cloned.lock("line-support").acquire(timeout=0)


def test_a_removal_that_was_cut_off(machines):
    """What is left of a removed artifact in the bucket goes with the next removal's end, with its record."""
    one, two = machines
    gone, half, kept = (committed(one, text) for text in ("a\n", "b\n", "c\n"))
    for ref in (gone, half):
        write_atomic(one.layout.tombstone(ref.digest), json.dumps({"reason": "forgotten"}))
    two.shared.objects.delete([f"artifacts/{half.digest}/artifact.json"])
    two.finish_removals()
    assert {key.partition("/")[0] for key in keys(one, "artifacts")} == {kept.digest}
    two.remove(kept.digest, "forgotten")
    assert keys(one, "artifacts") == keys(one, "records") == []


def test_what_was_removed_is_known_of_a_young_upload(machines):
    """An artifact that is on its way to the bucket is not taken for what is left of one."""
    one, two = machines
    one.shared.objects.write(f"artifacts/{'d' * 64}/rows.jsonl", b"a\n")
    two.finish_removals()
    assert keys(one, "artifacts") == [f"{'d' * 64}/rows.jsonl"]


def checkpoint(store: Store, step: int) -> Path:
    directory = store.layout.checkpoints(KEY) / f"step-{step:06d}"
    directory.mkdir(parents=True)
    (directory / "state.json").write_text(str(step))
    files = [["state.json", len(str(step)), "0" * 64]]
    (directory / "artifact.json").write_text(json.dumps({"files": files}))
    return directory


def test_a_damaged_checkpoint_is_not_the_end(machines, caplog):
    """A checkpoint in the bucket that is not whole is said, and the training begins without it."""
    one, two = machines
    shared_checkpoints.send(one.shared, KEY, checkpoint(one, 3))
    with shared_checkpoints.kept(two.shared, KEY):
        assert not list(two.layout.checkpoints(KEY).glob("step-*"))
    assert "not what was committed" in caplog.text


def test_checkpoints_go_here_and_there(machines):
    """Checkpoints that another machine has sent are among those that a prune or a forgetting removes."""
    one, two = machines
    shared_checkpoints.send(one.shared, KEY, checkpoint(one, 3))
    assert shared_checkpoints.sizes(two).keys() == {KEY}
    shared_checkpoints.remove(two, KEY)
    assert shared_checkpoints.sizes(two) == {}


def test_damage_in_the_bucket_is_mended(machines):
    """What is damaged in the bucket is set aside there, and sent again when it is made again."""
    one, two = machines
    ref = committed(one, "a\n")
    one.shared.objects.write(f"artifacts/{ref.digest}/rows.jsonl", b"b\n")
    with pytest.raises(ArtifactDamaged):
        two.local(ref)
    two.set_aside(ref.digest)
    assert not two.has(ref.digest) and [key for key in keys(one, "damaged") if key.endswith("rows.jsonl")]
    assert committed(two, "a\n") == ref
    shutil.rmtree(one.layout.artifact(ref.digest))
    assert (one.local(ref) / "rows.jsonl").read_text() == "a\n"


def test_times_of_records(machines):
    """A record of a run is as old on the other machine as where it was written: prune asks when a run ended."""
    one, two = machines
    path = one.layout.run("a" * 32).result
    write_atomic(path, "{}")
    time.sleep(1.5)
    two.shared.sync()
    assert abs((two.root / path.relative_to(one.root)).stat().st_mtime - path.stat().st_mtime) < 1.2


def test_confirmed_lock(machines, monkeypatch):
    """Who has lost the lock of a prune is stopped before it removes anything."""
    monkeypatch.setattr(remote_leases, "LASTS", 1.0)
    monkeypatch.setattr(remote_leases, "RENEWED", 60.0)
    one, two = machines
    ref = committed(one, "a\n")
    mine = one.lock("prune")
    mine.acquire()
    other = two.lock("prune")
    other.acquire(timeout=20)
    with pytest.raises(LeaseLost):
        one.remove(ref.digest, "pruned")
    training = one.layout.checkpoints("k")
    training.mkdir(parents=True)
    with pytest.raises(LeaseLost):
        shared_checkpoints.remove(one, "k")
    other.release()
    mine.release()
    assert two.has(ref.digest) and training.is_dir()


def test_a_run_that_was_taken_over_writes_nothing_more(machines, monkeypatch):
    """A run whose process slept while another machine took it over changes no record of the run any more.

    Neither what it writes nor what lies in its local copy reaches the bucket, whichever process looks there.
    """
    monkeypatch.setattr(remote_leases, "LASTS", 0.5)
    monkeypatch.setattr(remote_leases, "RENEWED", 60.0)
    one, two = machines
    run, id = one.layout.run("a" * 32), "a" * 32
    mine = Lease(id, one)
    write_atomic(run.spec, "{}")
    mine.add("b" * 64)
    one.shared.sync()
    theirs = Lease(id, two)
    theirs.add("c" * 64)
    write_atomic(two.layout.run(id).decision, "theirs")
    for write in (run.result, run.decision, run.spec, one.layout.question(id)):
        with pytest.raises(LeaseLost, match=f"run-{id}"):
            write_atomic(write, "mine")
    with pytest.raises(LeaseLost):
        mine.add("d" * 64)
    for name in (run.log, run.fresh, one.layout.lease(id)):
        with name.open("a") as file:
            file.write("mine\n")
    one.shared.sync()
    other_process(one).shared.sync()
    mine.end(finished=False)
    theirs.end(finished=False)
    two.shared.sync()
    there = {path.name: path.read_text() for path in two.layout.shared() if id in str(path)}
    lease = "b" * 64 + "\n" + "c" * 64 + "\n"
    assert there == {"spec.json": "{}", "decision.json": "theirs", f"{id}.txt": lease}


def test_a_log_is_not_sent_again_with_every_look(machines, monkeypatch):
    """A log that has grown is sent when a lock is taken or given back, not when a lease is renewed, a store opened."""
    monkeypatch.setattr(remote_leases, "RENEWED", 0.1)
    monkeypatch.setattr(sharing, "FRESH", -1.0)
    one, two = machines
    log = one.layout.run("a" * 32).log
    log.parent.mkdir(parents=True)
    lock = one.lock("line-support")
    lock.acquire()

    def tag() -> str:
        return one.shared.objects.read("locks/line-support").etag

    for text in ("first\n", "second\n"):
        log.write_text(text)
        for _ in range(3):
            before = tag()
            while tag() == before:
                time.sleep(0.05)
        Store(one.root)
        assert not keys(one, "state/runs")
    lock.release()
    two.shared.look()
    assert (two.root / log.relative_to(one.root)).read_text() == "second\n"
