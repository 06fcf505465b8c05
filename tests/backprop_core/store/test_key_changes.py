"""What changed in a stage's key is named: the input, the field with both values, the version; nothing else is."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_core import stages
from backprop_core.schema.refs import ChatTemplate, SourceRef
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import stage_key
from backprop_core.store.key_changes import KeyChanges

SECRET = "a long text, which is kept as its digest alone " * 3


@pytest.fixture
def changes(tmp_path: Path) -> Iterator[KeyChanges]:
    store = Store(tmp_path / "store")
    yield KeyChanges(store)
    store.close()


def given(*, digest: str = "1" * 64, text: str = SECRET, **fields: Any) -> dict[str, Any]:
    """Parameters of the stage `curate`."""
    return {
        "source": SourceRef(digest=digest, path="/data/tickets.jsonl"),
        "spec": DatasetSpec(path="/data/tickets.jsonl", **fields),
        "template": ChatTemplate(text=text, special={}),
        "tokenizer": None,
    }


def note(changes: KeyChanges, **fields: Any) -> None:
    changes.note("curate", stage_key("curate", given(**fields)), given(**fields))


def why(changes: KeyChanges, **fields: Any) -> list[str]:
    return changes.why("curate", stage_key("curate", given(**fields)), given(**fields))


def test_each_part_is_named(changes: KeyChanges, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field with its old and new value, the dataset's file, the stage's version; only what changed."""
    assert why(changes) == ["no earlier result of this stage"]
    note(changes)
    assert why(changes, max_bad_rows=0.5) == ["datasets.max_bad_rows: 0.01 → 0.5"]
    assert why(changes, curation=CurationSpec(near_duplicates=0.8)) == [
        "datasets.curation.near_duplicates: unset → 0.8"
    ]
    assert why(changes, digest="2" * 64) == ["source (tickets.jsonl): 111111111111 → 222222222222"]
    [template] = why(changes, text=SECRET + "!")
    assert template.startswith("template.text: ") and "long text" not in template
    version = stages.every()["curate"].version
    raised = {"curate": dataclasses.replace(stages.every()["curate"], version=version + 1)}
    monkeypatch.setattr("backprop_core.store.key_changes.every", lambda: raised)
    monkeypatch.setattr("backprop_core.store.cache_keys.every", lambda: raised)
    assert why(changes) == [f"stage version: {version} → {version + 1}"]


def test_the_most_similar_key_is_compared(changes: KeyChanges) -> None:
    """Of several earlier keys the one with the fewest differences counts, whichever came last."""
    note(changes, max_bad_rows=0.2)
    note(changes, digest="2" * 64, max_bad_rows=0.3, tools="as_text")
    assert why(changes, max_bad_rows=0.25) == ["datasets.max_bad_rows: 0.2 → 0.25"]


def test_a_result_that_is_gone(changes: KeyChanges) -> None:
    """If nothing changed, the result is what is missing."""
    note(changes)
    assert why(changes) == ["its result is not in the cache any more"]


def test_no_row_and_no_text_is_kept(changes: KeyChanges, tmp_path: Path) -> None:
    """The notes have digests in place of long texts."""
    note(changes)
    [path] = (tmp_path / "store" / "notes").rglob("*.json")
    assert "long text" not in path.read_text() and "max_bad_rows" in path.read_text()
