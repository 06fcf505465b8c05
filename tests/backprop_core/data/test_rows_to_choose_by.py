"""The held-out rows that only choose: a quarter, of whole groups. Both parts together: test_curation."""

from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from backprop_core.data.row_files import index
from backprop_core.data.row_sets import apart, first
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


def test_groups_that_share_a_question_choose_or_score_together(bench: Bench) -> None:
    """A preference of one customer with the question of another's makes both one group, of which all rows choose."""
    pairs = [
        {"prompt": prompt, "chosen": f"Yes, {customer}.", "rejected": "No.", "customer": customer}
        for number in range(200)
        for customer in (f"a{number}", f"b{number}")
        for prompt in (f"What does {customer} owe?", f"Is {number} even?")
    ]
    rows = bench.read(pairs, group_by="customer", format="mixed").preferences
    assert rows and rows.rows == 800
    sides = [bench.rows(apart(rows, to_choose_by=side, store=bench.store)) for side in (True, False)]
    chosen, scored = ({row["messages"][0]["content"] for row in side} for side in sides)
    assert not chosen & scored and [len(side) for side in sides] == [len(chosen) / 3 * 4, len(scored) / 3 * 4]
    assert 30 < len(chosen) / 3 < 70


def test_the_first_rows_have_whole_groups(bench: Bench) -> None:
    """As many whole groups as fit, no row of the others; rows without a group as the first ones are without groups."""
    rows = bench.read([*customers(40), *numbered(30, start=5000)], group_by="customer").rows
    taken = first(rows, most=42, whole_groups=True, store=bench.store)
    counts = Counter(index(taken, bench.store).entries["group"].tolist())
    assert taken.rows == 42 and set(counts.values()) - {counts.pop(0, 0)} == {5}
    loose = bench.read(numbered(60)).rows
    whole, plain = (first(loose, most=20, whole_groups=each, store=bench.store) for each in (True, False))
    assert whole == plain


def test_a_group_that_is_larger_than_the_first_rows(bench: Bench) -> None:
    """If no group fits, the smallest one is taken, whole."""
    named = [{**row, "customer": min(number // 7, 2)} for number, row in enumerate(numbered(30))]
    rows = bench.read(named, group_by="customer").rows
    assert first(rows, most=6, whole_groups=True, store=bench.store).rows == 7
