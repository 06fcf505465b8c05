"""What a name means: a run, a line, a version of it, and never two of them."""

from pathlib import Path

import pytest

from backprop_core.errors import RefAmbiguous, RunUnknown
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.schema.refs import AdapterRef, BaseRef, Located, RunResult
from backprop_core.schema.specs import DatasetSpec, LoraSpec, MergeSpec, RunSpec
from backprop_core.store.artifacts import Store, write_atomic
from tasks.runs.prepared_run import Prepared, save
from tasks.runs.resolve_earlier import made

BASE = BaseRef(name="base", digest="b" * 64)


def add_run(store: Store, run_id: str, digest: str | None) -> None:
    spec = RunSpec(datasets=[DatasetSpec(path="a")])
    save(Prepared(flow="train", spec=spec, base=BASE, sources=[], watch=[]), run_id, store)
    if digest:
        merged = Located(digest=digest, path="")
        result = RunResult(run_id=run_id, line="x", status="finished", spec={}, merged=merged)
        write_atomic(store.layout.run(run_id).result, result.model_dump_json())


def add_version(store: Store, line: str, run_id: str, digest: str) -> None:
    adapter = AdapterRef(digest=digest, kind="merged")
    version = LineVersion(
        **{
            "run_id": run_id,
            "base": BASE,
            "lora": LoraSpec(),
            "merge": MergeSpec(),
            "tuned": adapter,
        },
        **{"merged": adapter, "count": 1, "datasets": [], "heldout": {}, "scores": {}},
    )
    Lines(store).append(line, version, after=len(Lines(store).versions(line)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    add_run(store, "ab" * 16, "1" * 64)
    add_run(store, "cd" * 16, None)
    add_version(store, "support", "ab" * 16, "2" * 64)
    add_version(store, "support", "ab" * 16, "3" * 64)
    add_version(store, "abab", "ab" * 16, "4" * 64)
    Lines(store).set_champion("support", 2)
    return store


@pytest.mark.parametrize(
    ("ref", "digit"), [("abab" * 2, "1"), ("support", "3"), ("support@1", "2"), ("abab@1", "4"), ("ab" * 16, "1")]
)
def test_a_name_means_one_adapter(store: Store, ref: str, digit: str) -> None:
    """The start of a run_id, a line's champion, a version by number."""
    found = made(ref, store)
    assert found.adapter == AdapterRef(digest=digit * 64, kind="merged") and found.base == BASE


@pytest.mark.parametrize("ref", ["nope", "cdcd", "support@7", "support@x", "abab@", ""])
def test_what_means_nothing_or_two_things_is_refused(store: Store, ref: str) -> None:
    """A run without an adapter, a version that is not there, a line without champion that a run_id starts with."""
    with pytest.raises((RunUnknown, RefAmbiguous)):
        made(ref, store)
