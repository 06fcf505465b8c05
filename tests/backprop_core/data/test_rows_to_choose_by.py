"""The held-out rows that only choose: a quarter, of whole groups. Both parts together: test_curation."""

from hashlib import sha256
from pathlib import Path

import pytest

from backprop_core.data.row_files import index
from backprop_core.data.row_sets import apart
from backprop_core.errors import NoRows
from backprop_core.schema.refs import RowsRef
from tests.backprop_core.data.test_curation import Bench, Rows, numbered


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def customers(count: int) -> Rows:
    """Five rows of each customer."""
    return [{**row, "customer": number // 5} for number, row in enumerate(numbered(5 * count))]


def choosing(bench: Bench, rows: RowsRef) -> RowsRef:
    return apart(rows, to_choose_by=True, store=bench.store)


def groups(bench: Bench, rows: RowsRef) -> set[int]:
    return set(index(rows, bench.store).entries["group"].tolist())


def test_a_group_chooses_or_scores(bench: Bench) -> None:
    """No group is in both parts, about a quarter of the groups chooses, and more groups move none."""
    few, many = (bench.read(customers(count), group_by="customer").rows for count in (100, 200))
    chosen, scored = (apart(many, to_choose_by=side, store=bench.store) for side in (True, False))
    assert chosen.rows + scored.rows == 1000
    assert not groups(bench, chosen) & groups(bench, scored)
    assert 35 < len(groups(bench, chosen)) < 65
    assert groups(bench, choosing(bench, few)) == groups(bench, chosen) & groups(bench, few)


def test_groups_that_are_held_out_choose_as_others_do(bench: Bench) -> None:
    """A held-out group has a low hash; which of them choose is decided by another one."""
    held = bench.curate(customers(1000), group_by="customer").heldout
    every, chosen = groups(bench, held), groups(bench, choosing(bench, held))
    assert len(every) / 8 < len(chosen) < len(every) / 2


def test_a_row_without_a_group_is_decided_by_its_own_hash(bench: Bench) -> None:
    """It stays on the side on which it was before groups counted, also beside rows with a group."""
    loose = numbered(200, start=5000)
    rows = bench.read([*customers(40), *loose], group_by="customer").rows
    alone = {key for key in index(bench.read(loose).rows, bench.store).identities()}
    expected = {key for key in alone if sha256(b"search:" + key).digest()[0] < 64}
    assert alone & set(index(choosing(bench, rows), bench.store).identities()) == expected
    assert 35 < len(expected) < 65


def test_one_group_cannot_choose_and_score(bench: Bench) -> None:
    """The error counts the groups: more rows of the same group would not help."""
    rows = bench.read(customers(1), group_by="customer").rows
    with pytest.raises(NoRows, match=r"5 held-out rows \(groups: 1\) are too few to choose by some"):
        [apart(rows, to_choose_by=side, store=bench.store) for side in (True, False)]
