"""Pruning a store in a bucket: what goes is gone for all machines, with what names it and what was set aside of it."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.lines.prune import prune
from backprop_core.schema.refs import RowsRef
from backprop_core.store import pins, sharing
from backprop_core.store.artifacts import Store, write_atomic
from tests.wire.s3_server import BUCKET, environment, s3_server


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Store]]:
    """The same store on two machines."""
    with s3_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        address = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        for name in ("one", "two"):
            sharing.begin(tmp_path / name, address)
        yield [Store(tmp_path / name) for name in ("one", "two")]


def committed(store: Store, text: str) -> RowsRef:
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text(text)
        return store.commit(directory, RowsRef, record={"stage": "test"}, rows=1)


def noted(store: Store, key: str, ref: RowsRef) -> None:
    """A finished stage that made this."""
    write_atomic(store.layout.cache_result(key), json.dumps({"digest": ref.digest}))
    write_atomic(store.layout.cache_key(key), "{}")
    store.keep_result(key)


def pruned(store: Store) -> int:
    return prune(store, dry_run=False, remove_tag=lambda line, number: True).artifacts


def test_no_machine_has_a_record_of_what_was_pruned(machines: list[Store]) -> None:
    """One machine prunes what another has noted in the cache: that record goes too, and one of what is kept stays."""
    one, two = machines
    gone, kept = committed(one, "a\n"), committed(one, "b\n")
    noted(one, "gone", gone)
    noted(one, "kept", kept)
    pins.pin("mine", [kept.digest], one)
    two.shared.sync()  # type: ignore[union-attr]
    assert pruned(two) == 1
    assert one.shared and one.shared.results() == {"kept"}
    assert one.digests() - {gone.digest} == two.digests() == {kept.digest}


def test_what_was_set_aside_is_pruned(machines: list[Store]) -> None:
    """Damage that no version or pin names goes, here, in the bucket and on the other machine."""
    one, two = machines
    refs = [committed(one, text) for text in ("a\n", "b\n", "c\n")]
    pins.pin("mine", [refs[2].digest], one)
    for ref in refs:
        one.set_aside(ref.digest)
    for ref in refs[1:]:
        two.set_aside(ref.digest)  # it is not there: what is in the bucket moves aside
    two.shared.sync()  # type: ignore[union-attr]
    assert pruned(two) == 2
    one.shared.sync()  # type: ignore[union-attr]
    for store in machines:
        assert store.damaged().keys() == {refs[2].digest}
    assert pruned(two) == 0
