"""`store check`: what is damaged, and what is gone though something names it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import AdapterRef, RowsRef
from backprop_core.store.artifacts import Store
from tasks.runs.store_check import check
from tests.backprop_core.lines.test_versions import version


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path))
    store = Store(settings().store_path)
    yield store
    store.close()


def artifact(store: Store, text: str) -> str:
    with store.begin("test") as directory:
        (directory / "file").write_text(text)
        return store.commit(directory, AdapterRef, record={}, kind="merged").digest


def named_by_a_version(store: Store, digest: str) -> str:
    adapter = AdapterRef(digest=digest, kind="merged")
    changes = {"tuned": adapter, "merged": adapter, "heldout": {"t": RowsRef(digest=digest, rows=1)}}
    Lines(store).append("support", version(1).model_copy(update={**changes, "datasets": [], "scores": {}}), after=0)
    return "support@1"


def named_by_a_run(store: Store, digest: str) -> str:
    folder = store.layout.run("a" * 32).root
    folder.mkdir(parents=True)
    merged = {"digest": digest, "path": ""}
    result = {"run_id": "a" * 32, "line": "x", "status": "finished", "spec": {}, "merged": merged}
    (folder / "result.json").write_text(json.dumps(result))
    return f"run {'a' * 12}"


def named_by_the_cache(store: Store, digest: str) -> str:
    store.layout.cache_results.mkdir(parents=True)
    kind = f"{AdapterRef.__module__}.{AdapterRef.__qualname__}"
    record = {"__class__": kind, "data": {"digest": digest, "kind": "merged"}}
    (store.layout.cache_results / ("b" * 64)).write_text(json.dumps(record))
    return f"the cached stage {'b' * 12}"


@pytest.mark.parametrize("named", [named_by_a_version, named_by_a_run, named_by_the_cache])
def test_what_is_gone_is_found(store: Store, named: Callable[[Store, str], str]) -> None:
    """An artifact that something names and that is not there is a finding; one removed on purpose is not."""
    digest = artifact(store, "weights")
    who = named(store, digest)
    assert check(settings()) == (1, [])
    kept = store.root / "elsewhere"
    shutil.move(store.layout.artifact(digest), kept)
    count, [finding] = check(settings())
    assert (count, finding.digest, finding.missing) == (0, digest, True) and who in finding.what
    shutil.move(kept, store.layout.artifact(digest))
    store.remove(digest, "pruned")
    assert check(settings()) == (0, [])


def test_what_was_set_aside_is_missing(store: Store) -> None:
    """A damaged artifact that was moved out of the way is still named, and still said."""
    digest = artifact(store, "weights")
    named_by_a_version(store, digest)
    store.set_aside(digest)
    [finding] = check(settings())[1]
    assert finding.missing and finding.digest == digest
