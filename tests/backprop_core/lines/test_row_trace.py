"""A row is traced to the runs and versions that have seen it, also in a store that was made by an older release."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.data.row_files import index
from backprop_core.lines.row_trace import trace
from backprop_core.lines.versions import Lines
from backprop_core.store.artifacts import Store

FIXTURE = Path(__file__).parents[2] / "fixtures" / "old_home.tar.xz"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The store of a home with two lines."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(folder, filter="data")
    store = Store(folder / "old-home" / "store")
    yield store
    store.close()


def test_a_row_is_in_the_versions_that_trained_on_it_and_after(store: Store) -> None:
    """A row of the first night is in both versions of its line; one of the second night in the second alone."""
    lines = Lines(store)
    first, second = (lines.version("support", number) for number in (1, 2))
    for version, numbers in ((first, [1, 2]), (second, [2])):
        rows = index(version.datasets[-1].train, store)
        row = next(rows.identities()).hex()
        [found] = trace(row, store, most=5).rows
        assert [(one.line, one.number, one.side) for one in found.versions] == [
            ("support", number, "trained") for number in numbers
        ]
        assert version.datasets[-1].train.digest in [one.digest for one in found.datasets]
        assert version.run_id in [one.run_id for one in found.runs]
        assert [one.champion for one in found.versions if one.number == 2] == [lines.champion("support") == 2]


def test_a_held_out_row_is_said_to_be_one(store: Store) -> None:
    """A row that scores a line is held out in its versions, and trained in none."""
    version = Lines(store).version("support", 1)
    row = next(index(version.heldout["support"], store).identities()).hex()
    [found] = trace(row[:12], store, most=5).rows
    assert {one.side for one in found.versions if one.line == "support"} == {"held out"}


def test_a_text_is_in_every_row_that_has_it(store: Store) -> None:
    """As many rows are found by a text as have it; no more than asked for are traced."""
    rows = index(Lines(store).version("support", 2).datasets[-1].train, store)
    text = "what colour is coal?"
    wanted = {row.hex() for row, line in zip(rows.identities(), rows.lines(), strict=True) if text.encode() in line}
    found = trace(text, store, most=1000)
    assert wanted and wanted <= {one.row for one in found.rows} and found.found == len(found.rows)
    assert all(text in one.text for one in found.rows) and len(trace(text, store, most=2).rows) == 2
    assert trace("no such text anywhere", store, most=5).rows == []
