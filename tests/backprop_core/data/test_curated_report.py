"""The report of a run's dataset has curation's own counts and places, and no text of rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.curated_report import curated_report
from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.report_page import curated_page
from backprop_core.schema.dataset_reports import CuratedReport
from backprop_core.schema.refs import Curated, DatasetRef
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from backprop_core.store.artifacts import Store

MARKUP = "<script>alert(1)</script>"


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Curated, CuratedReport]:
    said = chat("Whom\u2028may I ask?", "Ask Ann Smith.")
    rows = [said, said, said, chat("Where?", ""), "nope", chat("1", "2"), chat("a", "a")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DatasetSpec(path=str(path), max_bad_rows=0.5, curation=CurationSpec(quality=["echo"]))
    store = Store(tmp_path / "store")
    curated = curate(snapshot(str(path), scratch=tmp_path), spec, store=store)
    sides = {"train": curated.rows, "heldout": curated.rows.model_copy(update={"rows": 0})}
    dataset = DatasetRef(name="a", task="t", read=curated.read, not_trained={"watched": 1}, **sides)
    report = curated_report(curated, dataset)
    store.close()
    return curated, report


def test_its_counts_are_those_of_curation(made: tuple[Curated, CuratedReport]) -> None:
    """Rows by reason, each with the lines of the first ones, and the steps as they ran."""
    curated, report = made
    assert {one.reason: one.rows for one in report.dropped} == curated.dropped
    assert sum(curated.dropped.values()) + report.usable == report.read == 7
    assert {one.reason: one.first for one in report.dropped} == {
        "duplicate": ["line 2", "line 3"],
        "echo": ["line 7"],
        "empty": ["line 4"],
        "not_an_object": ["line 5"],
    }
    assert report.steps == curated.steps and [step.step for step in report.steps] == ["quality"]


def test_it_has_no_text_of_rows(made: tuple[Curated, CuratedReport]) -> None:
    """Neither the record nor the page quotes a row; markup in a file's name is text."""
    _, report = made
    page = curated_page([report.model_copy(update={"name": MARKUP})])
    for text in (report.model_dump_json(), page):
        assert "smith" not in text and "ask?" not in text and "nope" not in text
    assert "<script>" not in page and "&lt;script&gt;" in page and "watched" in page
