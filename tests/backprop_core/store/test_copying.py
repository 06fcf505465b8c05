"""A store is copied into another one: by digest, verified, once; lines and pins too."""

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backprop_core.errors import ArtifactDamaged
from backprop_core.lines.versions import Lines, Move
from backprop_core.schema.gate_report import Act
from backprop_core.schema.refs import RowsRef
from backprop_core.store import pins, sharing
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.copying import Copied, copy
from tests.wire.s3_server import BUCKET, environment, s3_server


def committed(store: Store, text: str) -> RowsRef:
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text(text)
        return store.commit(directory, RowsRef, record={"stage": "test"}, rows=1)


def copied(source: Store, target: Store) -> Copied:
    return copy(source, target, lambda done, total: None)


@pytest.fixture
def source(tmp_path: Path) -> Store:
    """A store with two artifacts, a line of two versions, a pin and a record of a stage."""
    store = Store(tmp_path / "source")
    ref = committed(store, "a\n")
    committed(store, "b\n")
    line = store.layout.line("support")
    for number in (1, 2):
        write_atomic(line.version(number), f'{{"number": {number}}}')
    write_atomic(line.champion, "2")
    pins.pin("mine", [ref.digest], store)
    write_atomic(store.layout.cache_key("k"), "{}")
    write_atomic(store.layout.cache_result("k"), "{}")
    write_atomic(store.layout.lease("a" * 32), ref.digest)
    return store


def test_a_copy_has_everything_once(source, tmp_path):
    """Artifacts, records, lines, pins and cached results are there; the second copy has nothing to do."""
    target = Store(tmp_path / "target")
    done = copied(source, target)
    assert (done.artifacts, done.kept) == (2, []) and done.bytes > 4
    assert target.digests() == source.digests() and list(target.check()) == []
    assert Lines(target).champion("support") == 2 and pins.pinned(target) == pins.pinned(source)
    assert all(target.record(digest) == source.record(digest) for digest in source.digests())
    assert target.has_result("k") and not target.layout.lease("a" * 32).exists()
    assert copied(source, target) == Copied(artifacts=0, bytes=0, records=0, kept=[])


def test_to_a_bucket_and_back(source, tmp_path, monkeypatch):
    """Through a bucket a store arrives as it was."""
    address = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    with s3_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        sharing.begin(tmp_path / "here", address)
        sharing.begin(tmp_path / "elsewhere", address)
        assert copied(source, Store(tmp_path / "here")).artifacts == 2
        target = Store(tmp_path / "target")
        copied(Store(tmp_path / "elsewhere"), target)
    assert target.digests() == source.digests() and list(target.check()) == []
    assert Lines(target).champion("support") == 2 and target.has_result("k")
    assert pins.pinned(target) == pins.pinned(source)


def test_what_differs_stays(source, tmp_path):
    """A champion moves only if the line is the same line; other records that differ stay, and are named."""
    target = Store(tmp_path / "target")
    line = target.layout.line("support")
    write_atomic(line.version(1), '{"number": 1}')
    write_atomic(line.champion, "1")
    write_atomic(target.layout.pin("mine"), "other")
    assert copied(source, target).kept == ["pins/mine.txt"]
    assert Lines(target).champion("support") == 2
    write_atomic(line.version(3), "{}")
    write_atomic(line.champion, "3")
    assert "lines/support/champion" in copied(source, target).kept
    assert Lines(target).champion("support") == 3


def test_what_was_removed_is_not_brought_back(source, tmp_path):
    """An artifact that the target has removed on purpose stays removed."""
    target = Store(tmp_path / "target")
    copied(source, target)
    gone = min(target.digests())
    target.remove(gone, "forgotten")
    assert copied(source, target).artifacts == 0 and gone not in target.digests()


def test_damage_is_not_copied(source, tmp_path):
    """An artifact whose bytes changed is refused, and what was copied before is not copied again."""
    path = source.layout.artifact(max(source.digests())) / "rows.jsonl"
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_text("x\n")
    target = Store(tmp_path / "target")
    with pytest.raises(ArtifactDamaged):
        copied(source, target)
    path.write_bytes(before)
    assert copied(source, target).artifacts == 1


def move(store: Store, number: int, before: int, day: int) -> None:
    """Make a version the champion by hand, as a rollback does."""
    act = Act(by="ann", at=datetime(2026, 12, day, tzinfo=UTC))
    Lines(store).note_move("support", Move(number=number, before=before, run_id=f"{day:032x}", act=act))
    write_atomic(store.layout.line("support").champion, str(number))


def synced(source: Store, target: Store) -> tuple[int | None, int | None]:
    """The champions after a sync."""
    copied(source, target)
    copied(target, source)
    return Lines(source).champion("support"), Lines(target).champion("support")


@pytest.mark.parametrize("backwards", [False, True])
def test_a_newer_rollback_stays(source, tmp_path, backwards):
    """A rollback goes to the other store and is not undone by its older champion, whatever the times of the files."""
    target = Store(tmp_path / "target")
    copied(source, target)
    move(target if backwards else source, 1, before=2, day=3)
    for store in (source, target):
        os.utime(store.layout.line("support").champion, (1e9, 1e9) if store is target else (2e9, 2e9))
    assert synced(source, target) == (1, 1)
    move(source, 2, before=1, day=4)
    assert synced(source, target) == (2, 2)


def test_lines_that_parted_stay(source, tmp_path):
    """Rolled back in one store and continued in the other: each keeps its champion, however often they are synced."""
    target = Store(tmp_path / "target")
    copied(source, target)
    move(source, 1, before=2, day=3)
    write_atomic(target.layout.line("support").version(3), '{"number": 3}')
    write_atomic(target.layout.line("support").champion, "3")
    for _ in range(3):
        assert synced(source, target) == (1, 3)
    assert "lines/support/champion" in copied(source, target).kept


@pytest.mark.parametrize("at_work", ["source", "target"])
def test_a_line_at_work_is_not_copied(source, tmp_path, at_work):
    """While a run has the line in either store, nothing of it is copied, which is said; all else is."""
    target = Store(tmp_path / "target")
    with Store(tmp_path / at_work).lock("line-support"):
        done = copied(source, target)
        assert done.kept == ["lines/support"] and Lines(target).names() == []
        assert pins.pinned(target) == pins.pinned(source)
    assert copied(source, target).kept == [] and Lines(target).champion("support") == 2


@pytest.mark.parametrize("releasing", ["source", "target"])
def test_a_release_that_was_cut_off_is_ended_where_it_began(source, tmp_path, releasing):
    """Its transaction is not copied, and the champion of its line stays until it has ended."""
    target = Store(tmp_path / "target")
    copied(source, target)
    move(source, 1, before=2, day=3)
    transaction = Store(tmp_path / releasing).layout.line("support").transaction
    write_atomic(transaction, "{}")
    assert "lines/support/champion" in copied(source, target).kept
    assert Lines(target).champion("support") == 2
    assert target.layout.line("support").transaction.is_file() == (releasing == "target")
    transaction.unlink()
    assert copied(source, target).kept == [] and Lines(target).champion("support") == 1
