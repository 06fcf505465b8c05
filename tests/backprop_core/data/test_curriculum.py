"""A curriculum decides the order of the training rows, and nothing else; without one, everything is as before."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from backprop_core.data.batching import Item, by_pass
from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.row_files import load
from backprop_core.data.row_sets import replay
from backprop_core.errors import ConfigInvalid
from backprop_core.schema.refs import Batch, RowsRef, Split
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core.data.test_curation import Bench, Rows, numbered, pair, questions


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def split(bench: Bench, data: Rows, curriculum: str | None, **window: Any) -> Split:
    curation = {"curriculum": curriculum} if curriculum else {}
    source = bench.read(data, curation=curation)
    spec = CurationSpec.model_validate(curation)
    return bench.split(Batch(name="data", task="task", source=source, curation=spec, **window))


def order(bench: Bench, ref: RowsRef) -> list[str]:
    """The questions of an epoch, in order; as many tokens as characters."""
    rows = load(bench.store.local(ref))
    none = torch.zeros(0)
    items = [Item(torch.zeros(len(json.dumps(row))), none, number) for number, row in enumerate(rows)]
    passes = by_pass(items, ref, bench.store)
    assert passes.ordered
    return [questions(rows)[index] for index in passes[0]]


def test_the_order_of_the_file(bench: Bench) -> None:
    """With `file`, rows are trained as they stand in the source, the first of duplicates counts."""
    rows = sorted(numbered(50), key=str, reverse=True)
    made = split(bench, [*rows, rows[0]], "file").datasets[0]
    trained = set(questions(bench.rows(made.train)))
    assert order(bench, made.train) == [question for question in questions(rows) if question in trained]
    assert made.dropped == {"duplicate": 1}


def test_the_shortest_first(bench: Bench) -> None:
    """With `length`, the shortest example comes first."""
    rows = [pair("x" * (7 * number % 50 + 1)) for number in range(50)]
    made = order(bench, split(bench, rows, "length").datasets[0].train)
    assert len(made) == 45 and list(map(len, made)) == sorted(map(len, made))


@pytest.mark.parametrize("curriculum", ["length", "file"])
def test_a_curriculum_changes_the_order_alone(bench: Bench, curriculum: str) -> None:
    """The same rows are trained, held out and in the window as without a curriculum."""
    plain, made = (split(bench, numbered(80), asked, rows=30, skip=5) for asked in (None, curriculum))
    assert made.heldout == plain.heldout and made.datasets[0].not_trained == plain.datasets[0].not_trained
    ours, before = made.datasets[0].train, plain.datasets[0].train
    assert sorted(questions(bench.rows(ours))) == sorted(questions(bench.rows(before))) and ours != before
    assert not by_pass([], before, bench.store).ordered


def test_replayed_rows_are_between(bench: Bench) -> None:
    """Replayed rows are spread evenly between those of a curriculum, which keep their order."""
    train = split(bench, numbered(100), "file").datasets[0].train
    old = bench.read(numbered(100, 900)).rows
    mixed = replay(train, [old], heldout=[], share=0.1, passes=1, seed=0, store=bench.store)
    new, found = order(bench, train), order(bench, mixed)
    assert [question for question in found if question in new] == new
    places = [place for place, question in enumerate(found) if question not in new]
    assert len(places) == 10 and all(place in range(10 * part, 10 * part + 10) for part, place in enumerate(places))


def test_a_query_has_no_order(tmp_path: Path) -> None:
    """The rows of a query are sorted by their text, so `file` would be no order of theirs."""
    path = tmp_path / "rows.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE rows AS SELECT 'a' AS question, 'b' AS answer")
    spec = DatasetSpec.model_validate(
        {"path": f"sqlite:///{path}?query=SELECT * FROM rows", "curation": {"curriculum": "file"}}
    )
    with pytest.raises(ConfigInvalid, match="curriculum=file, but the rows of a query have no order"):
        curate(snapshot(spec.path, scratch=tmp_path), spec, store=Store(tmp_path / "store"))


def test_without_it_a_key_is_what_it_was() -> None:
    """A curriculum is in a key only if there is one; held-out files have none."""
    spec = CurationSpec(curriculum="file")
    assert CurationSpec().semantic() == {} and spec.semantic() == {"curriculum": "file"}
    assert spec.of_heldout == CurationSpec()
