"""Rows of a line on another base: those that its template accepts, as they were, and none that scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.row_files import CURRICULUM, ROWS
from backprop_core.data.rows_on_base import carried_over
from backprop_core.models import chat_template
from backprop_core.schema.refs import ChatTemplate, RowsRef
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano
from tests.backprop_core.data.test_template_refusals import ALTERNATES


def chat(number: int, *, system: bool) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]
    return {"messages": [*([{"role": "system", "content": "Be brief."}] if system else []), *turns]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text=text, special=chat_template.named({}))


def contents(ref: RowsRef, store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.local(ref) / ROWS).read_text().splitlines()]


def test_rows_that_the_template_refuses_are_left_out(store: Store) -> None:
    """Rows with a system prompt go where the template has none; the others keep their order and their bytes."""
    rows = [chat(number, system=number % 3 == 0) for number in range(20)]
    ref = nano.commit_rows(store, rows)
    assert carried_over(ref, template(nano.CHATML), without=[], store=store) == ref
    left = carried_over(ref, template(ALTERNATES), without=[], store=store)
    assert contents(left, store) == [row for row in rows if len(row["messages"]) == 2] and left.rows == 13


def test_what_scores_is_in_no_dataset(store: Store) -> None:
    """Rows of the other sets are left out, whatever the template says of them."""
    rows = [chat(number, system=False) for number in range(10)]
    ref, scoring = nano.commit_rows(store, rows), nano.commit_rows(store, rows[4:6])
    left = carried_over(ref, template(nano.CHATML), without=[scoring], store=store)
    assert contents(left, store) == rows[:4] + rows[6:]
    assert carried_over(scoring, template(nano.CHATML), without=[ref], store=store).rows == 0


def test_a_curriculum_stays_one(store: Store) -> None:
    """Rows that are trained in an order of their own are so on another base."""
    rows = [chat(number, system=number == 0) for number in range(5)]
    plain = nano.commit_rows(store, rows)
    with store.begin("rows") as directory:
        (directory / ROWS).write_bytes((store.local(plain) / ROWS).read_bytes())
        (directory / CURRICULUM).write_text("rows")
        ordered = store.commit(directory, RowsRef, record={}, rows=5)
    left = carried_over(ordered, template(ALTERNATES), without=[], store=store)
    assert (store.local(left) / CURRICULUM).read_text() == "rows" and contents(left, store) == rows[1:]
