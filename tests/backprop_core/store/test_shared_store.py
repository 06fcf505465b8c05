"""A store in a bucket: what one machine commits, records and moves is there on the other, once."""

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    AuthRequired,
    LeaseLost,
    PlaceUnusable,
    RunActive,
    StoreConflict,
    StoreUnreachable,
)
from backprop_core.lines.versions import Lines
from backprop_core.schema.refs import RowsRef
from backprop_core.store import cache_limit, object_store, pins, remote_leases, shared_checkpoints, sharing
from backprop_core.store.artifacts import Store, manifest_of, write_atomic
from backprop_core.store.cache_keys import canonical
from backprop_core.store.layout import MANIFEST
from backprop_core.store.leases import Lease, leased, living
from tests.wire.s3_server import BUCKET, Cutter, environment, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def wire(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cutter]:
    """The way to the server."""
    cutter = Cutter(server)
    for name, value in environment(cutter.address).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield cutter
    cutter.close()


@pytest.fixture
def address() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def machines(wire: Cutter, address: str, tmp_path: Path) -> list[Store]:
    """The same store on two machines."""
    return [open_store(tmp_path / name, address) for name in ("one", "two")]


def open_store(root: Path, address: str) -> Store:
    sharing.begin(root, address)
    return Store(root)


def committed(store: Store, text: str) -> RowsRef:
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text(text)
        return store.commit(directory, RowsRef, record={"stage": "test"}, rows=1)


def test_an_artifact_is_on_the_other_machine(machines):
    """What one machine commits, the other reads, verified, with the record of its origin."""
    one, two = machines
    ref = committed(one, "a\n")
    assert (two.local(ref) / "rows.jsonl").read_text() == "a\n"
    assert two.record(ref.digest) == one.record(ref.digest) != {}
    with pytest.raises(ArtifactMissing):
        two.verify("0" * 64)


def test_large_files_in_parts(machines, monkeypatch):
    """A file of several parts arrives whole while connections break, and is refused if the bucket has another one."""
    monkeypatch.setattr(object_store, "PART", 5 * 2**20)
    one, two = machines
    ref = committed(one, "0123456789abcdef" * (2**20 // 2) + "\n")
    path = two.local(ref) / "rows.jsonl"
    assert path.read_bytes() == (one.local(ref) / "rows.jsonl").read_bytes()
    other = committed(one, "b\n")
    one.shared.objects.write(f"artifacts/{other.digest}/rows.jsonl", b"c\n")
    with pytest.raises(ArtifactDamaged, match="not what was committed"):
        two.local(other)


@pytest.mark.parametrize("every", [2, 3, 7])
def test_cut_connections(machines, wire, every):
    """Whichever requests break, before they arrive or after, everything arrives, and conditional writes count once."""
    one, two = machines
    wire.every = every
    refs = [committed(one, f"{number}\n") for number in range(3)]
    path = one.layout.line("support").champion
    for number in range(4):
        write_atomic(path, str(number))
    two.shared.sync()
    assert wire.cuts >= 2
    assert two.layout.line("support").champion.read_text() == "3"
    for ref in refs:
        two.local(ref)


def test_small_files_on_both_machines(machines):
    """Written, changed and removed: each machine sees it at its next look, whichever did it."""
    one, two = machines
    write_atomic(one.layout.run("a" * 32).spec, "{}")
    pins.pin("mine", ["b" * 64], one)
    two.shared.sync()
    assert two.layout.run("a" * 32).spec.read_text() == "{}" and pins.pinned(two) == {"mine": {"b" * 64}}
    pins.unpin("mine", two)
    two.layout.run("a" * 32).spec.unlink()
    write_atomic(two.layout.run("c" * 32).result, "1")
    two.shared.sync()
    one.shared.sync()
    assert pins.pinned(one) == {} and not one.layout.run("a" * 32).root.exists()
    assert one.layout.run("c" * 32).result.read_text() == "1"


def test_what_stays_on_a_machine(machines):
    """Locks, downloads, notes and temporary files do not leave the machine."""
    one, _ = machines
    run = one.layout.run("a" * 32)
    for path in (run.sources / "x", one.layout.note("kind", "k"), one.layout.lease_lock("a" * 32), run.root / ".x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "x")
    one.shared.sync()
    assert one.shared.objects.list("state") == []


def test_one_of_two_moves_a_champion(machines):
    """Of two machines that move the champion from the same state, one does, and the other is told."""
    one, two = machines
    write_atomic(one.layout.line("support").champion, "1")
    two.shared.sync()
    write_atomic(one.layout.line("support").champion, "2")
    with pytest.raises(StoreConflict, match="champion"):
        write_atomic(two.layout.line("support").champion, "3")
    two.shared.sync()
    assert Lines(two).champion("support") == 2


def test_a_lock_of_all_machines(machines, monkeypatch):
    """One machine has it, the other waits until it is given back, and sees what was written under it."""
    one, two = machines
    got = threading.Event()

    def wait() -> None:
        with two.lock("line-support"):
            assert two.layout.line("support").champion.read_text() == "7"
            got.set()

    with one.lock("line-support"):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.5)
        assert not got.is_set()
        write_atomic(one.layout.line("support").champion, "7")
    thread.join(30)
    assert got.is_set()


def test_a_holder_that_was_cut_off_moves_nothing(machines, wire, monkeypatch):
    """A lease that is not renewed is taken over, with a higher token; the old holder cannot move the line."""
    monkeypatch.setattr(remote_leases, "LASTS", 1.5)
    monkeypatch.setattr(remote_leases, "RENEWED", 60.0)
    one, two = machines
    mine = one.lock("line-support")
    mine.acquire()
    other = two.lock("line-support")
    other.acquire(timeout=20)
    with pytest.raises(LeaseLost, match="line-support"):
        Lines(one).set_champion("support", None)
    token = remote_leases.note_in(one.shared.objects.read("locks/line-support")).token
    assert token == 2
    mine.release()
    other.release()
    one.lock("line-support").acquire(timeout=5).release()


def test_a_lease_that_is_renewed_stays(machines, monkeypatch):
    """However long the other waits, a holder that lives keeps its lease."""
    monkeypatch.setattr(remote_leases, "LASTS", 1.5)
    monkeypatch.setattr(remote_leases, "RENEWED", 0.3)
    one, two = machines
    with one.lock("prune"):
        with pytest.raises(Exception, match="could not be acquired"):
            two.lock("prune").acquire(timeout=4)
        one.confirm("prune")


def test_a_run_is_active_on_the_other_machine(machines, monkeypatch):
    """A run that another machine works on is refused, and counts as living; what it holds is seen there."""
    monkeypatch.setattr("backprop_core.store.leases.LASTS", 1.0)
    one, two = machines
    lease = Lease("a" * 32, one)
    lease.add("b" * 64)
    with pytest.raises(RunActive):
        Lease("a" * 32, two)
    assert list(living(two)) == ["a" * 32]
    lease.end(finished=False)
    two.shared.sync()
    assert list(living(two)) == [] and leased(two) == {"a" * 32: {"b" * 64}}
    Lease("a" * 32, two).end(finished=True)
    one.shared.sync()
    assert leased(one) == {}


def test_removed_everywhere(machines):
    """An artifact that one machine removes is gone from the bucket and from the other machine; it can be made again."""
    one, two = machines
    ref = committed(one, "a\n")
    two.local(ref)
    two.remove(ref.digest, "pruned")
    one.shared.sync()
    with pytest.raises(ArtifactMissing) as raised:
        one.local(ref)
    assert "pruned" in raised.value.hint
    assert committed(one, "a\n") == ref
    two.shared.sync()
    assert (two.local(ref) / "rows.jsonl").read_text() == "a\n"


def test_the_cache_has_a_limit(machines, monkeypatch):
    """What was read longest ago leaves the local copy once that is over its limit, and comes back when it is read."""
    one, _ = machines
    refs = [committed(one, str(number) * 1000) for number in range(5)]
    monkeypatch.setenv("BACKPROPAGATE_STORE_CACHE_GB", "0.0000025")
    assert cache_limit.keep(one.layout, one.shared, young=-1) >= 3
    assert sum(one.layout.artifact(ref.digest).is_dir() for ref in refs) <= 2
    for number, ref in enumerate(refs):
        assert (one.local(ref) / "rows.jsonl").read_text() == str(number) * 1000
    assert cache_limit.keep(one.layout, one.shared) == 0, "what was read a moment ago stays"


def test_an_outage_is_said(machines, wire, monkeypatch):
    """A bucket that does not answer is a coded error; afterwards the same goes on."""
    monkeypatch.setattr(object_store, "DELAYS", (0.05, 0.05))
    one, two = machines
    wire.down = True
    with pytest.raises(StoreUnreachable, match="cannot be reached"):
        committed(one, "a\n")
    wire.down = False
    two.local(committed(one, "a\n"))


def test_no_credentials(address, wire, tmp_path, monkeypatch):
    """Without credentials, or with no such bucket, the error says so."""
    with pytest.raises(PlaceUnusable, match="no bucket nowhere"):
        open_store(tmp_path / "a", "s3://nowhere/x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(AuthRequired, match="credentials"):
        open_store(tmp_path / "b", address)


def test_the_address_is_a_setting(wire, address, tmp_path, monkeypatch):
    """BACKPROPAGATE_STORE names the bucket; the local copy lies in the home."""
    from backprop_core.runtime.settings import settings

    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path))
    monkeypatch.setenv("BACKPROPAGATE_STORE", address)
    store = Store(settings().store_path)
    assert store.shared and store.root.is_relative_to(tmp_path) and store.shared.address == address
    assert Store(store.root, alone=True).shared is None
    assert Store(tmp_path / "plain").shared is None


def test_two_servers_have_two_local_copies(wire, address, tmp_path, monkeypatch):
    """The same address on another S3 server is another store; however its own address ends, a server has one copy."""
    from backprop_core.runtime.settings import settings

    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path))
    monkeypatch.setenv("BACKPROPAGATE_STORE", address)
    servers = ["http://one", "http://two", ""]
    places = set[Path]()
    for server in servers:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        places.add(settings().store_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://two/")
    assert len(places) == 3 and settings().store_path in places
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://one")
    assert settings().store_path in places


def test_a_checkpoint_is_on_the_other_machine(machines):
    """The newest whole checkpoint goes up while the training runs, and another machine begins with it; then it goes."""
    one, two = machines
    key = "d" * 64
    with shared_checkpoints.kept(one.shared, key):
        for step in (1, 2):
            checkpoint(one, key, step)
            deadline = time.monotonic() + 60
            while not shared_checkpoints.newest(one.shared, key).endswith(str(step)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        (one.layout.checkpoints(key) / "step-000003.tmp").mkdir()
    with shared_checkpoints.kept(two.shared, key):
        assert [path.name for path in two.layout.checkpoints(key).iterdir()] == ["step-000002"]
    for path in one.layout.checkpoints(key).glob("step-000002/*"):
        assert path.read_bytes() == (two.layout.checkpoints(key) / "step-000002" / path.name).read_bytes()
    assert {name.key.partition("/")[0] for name in one.shared.objects.list(f"checkpoints/{key}")} == {"step-000002"}
    shared_checkpoints.drop(two.shared, key)
    assert one.shared.objects.list("checkpoints") == []


def checkpoint(store: Store, key: str, step: int) -> None:
    directory = store.layout.checkpoints(key) / f"step-{step:06d}"
    beside = directory.with_suffix(".tmp")
    beside.mkdir(parents=True)
    (beside / "state.json").write_text(str(step))
    (beside / MANIFEST).write_text(canonical(manifest_of(beside, "checkpoint", 2)))
    beside.rename(directory)


def test_a_result_is_on_the_other_machine(machines):
    """The record of a finished stage is found on the other machine, until it is dropped."""
    one, two = machines
    write_atomic(one.layout.cache_result("k"), "result")
    write_atomic(one.layout.cache_key("k"), "record")
    assert not two.has_result("k")
    one.keep_result("k")
    assert two.has_result("k") and two.results() == {"k"}
    assert (two.layout.cache_key("k").read_text(), two.layout.cache_result("k").read_text()) == ("record", "result")
    two.drop_result("k")
    assert one.shared.results() == set()
