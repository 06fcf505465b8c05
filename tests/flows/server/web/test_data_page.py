"""Pages of datasets: what a line has learned, and which rows of its data are dropped, where and why."""

import json
from pathlib import Path

from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import DatasetRef, LineageRef
from backprop_core.store.artifacts import write_atomic
from flows.cli import lines_file
from flows.server.web import data_page
from tasks.runs.stored_dataset import stored_dataset
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages


def with_lineage(support: LineMaker) -> DatasetRef:
    """The dataset of version 1, with a record of what was dropped, and of where it was read."""
    sample = {"reason": "malformed", "file": None, "unit": "line", "number": 241, "detail": EVIL, "text": f"{{{EVIL}"}
    lineage = support.file("samples.jsonl", json.dumps(sample).encode(), LineageRef, rows=12)
    path = support.store.layout.line("support").version(1)
    version = support.lines.version("support", 1)
    dataset = version.datasets[0].model_copy(update={"lineage": lineage})
    write_atomic(path, version.model_copy(update={"datasets": [dataset]}).model_dump_json())
    result = support.store.layout.run(version.run_id).result
    made = json.loads(result.read_text())
    made["spec"]["datasets"] = [{"path": f"s3://key:sk-12345678901234567890@bucket/{dataset.name}"}]
    write_atomic(result, json.dumps(made))
    return dataset


def test_a_dataset_says_what_became_of_its_rows(support: LineMaker, pages: Pages) -> None:
    """Counts, dropped rows with their place and reason, lengths, versions and rows; text of rows is escaped."""
    digest = with_lineage(support).train.digest
    browser = pages()
    assert f'href="/data/{digest}"' in browser.get("/lines/support").text
    page = browser.get(f"/data/{digest}").text
    assert all(part in page for part in ("line 241", "2</b> malformed", "support v1", "<svg", "row 1 &lt;script&gt;"))
    assert EVIL not in page and "sk-1234567890" not in page
    known = browser.get(f"/api/v1/data/{digest}").json()
    assert (known["read"], known["trained"], known["characters"]["rows"]) == (12, 1, 1)
    assert known["dropped"][0]["samples"][0]["place"] == "line 241"
    assert [use["number"] for use in known["versions"]] == [1, 2]


def test_pruned_rows_and_unknown_digests(support: LineMaker, pages: Pages) -> None:
    """Of a dataset whose rows were pruned the counts stay; what is no digest of a dataset is unknown."""
    version = support.lines.version("support", 2)
    digest = version.datasets[1].train.digest
    support.store.remove(digest, "pruned")
    assert stored_dataset(digest, settings()).rows == []
    assert "They were pruned" in pages().get(f"/data/{digest}").text
    for name in ("0" * 64, "a" * 5000, "%2e%2e%2fetc", version.merged.digest):
        assert pages().get(f"/data/{name}").status_code == 404


def test_what_a_line_reads_now(support: LineMaker, home: Path, pages: Pages) -> None:
    """Unreadable rows are there with file, line and reason; no job file and a second reader at once are told so."""
    browser = pages()
    assert "INPUT_NOT_FOUND" in browser.get("/lines/support/data").text
    data = home / "data" / "support.jsonl"
    data.parent.mkdir()
    data.write_text(f'{{"text": "good row"}}\n{{"tex: {EVIL}\n{{"text": "another"}}\n')
    lines_file.create(home / "lines" / "support.yaml", lines_file.template("support", data))
    with data_page.alone("support"):  # a request that reads them now
        answer = browser.get("/api/v1/lines/support/data")
        assert (answer.status_code, answer.json()["code"]) == (409, "STATE_RUN_ACTIVE")
    page = browser.get("/lines/support/data").text
    assert "not json" in page and "line 2" in page and EVIL not in page and "backprop data report" in page
