"""Every row of a source has one outcome, with its place and reason, and rows are not held in memory meanwhile."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped]
import pytest

from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.data.row_files import index
from backprop_core.schema.refs import Curated
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store


def pair(question: str, answer: str = "Yes.") -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def curated(path: Path, store: Store) -> Curated:
    spec = DatasetSpec(path=str(path), max_bad_rows=1)
    return curate(snapshot(str(path), scratch=path.parent), spec, store=store)


def table(made: Curated, store: Store) -> list[dict[str, Any]]:
    assert made.lineage
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(store.local(made.lineage) / "lineage.parquet").to_pylist()
    return rows


def test_every_row_of_a_source_has_its_outcome(tmp_path: Path, store: Store) -> None:
    """Kept, dropped as empty, a duplicate or malformed: each row has its line, its identity and the reason."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([pair("a"), "{", "", pair("b", " "), pair("c"), pair("a")]))
    made = curated(path, store)
    found = table(made, store)
    assert [(row["unit"], row["number"], row["outcome"], row["reason"]) for row in found] == [
        ("line", 1, "kept", None),
        ("line", 2, "dropped", "not_json"),
        ("line", 4, "dropped", "empty"),
        ("line", 5, "kept", None),
        ("line", 6, "dropped", "duplicate"),
    ]
    assert {row["row"] for row in found if row["outcome"] == "kept"} == {
        identity.hex() for identity in index(made.rows, store).identities()
    }
    assert found[0]["row"] == found[4]["row"] and found[1]["row"] is None
    assert "column" in found[1]["detail"] and {row["file"] for row in found} == {None}


def test_rows_of_a_directory_name_their_file(tmp_path: Path, store: Store) -> None:
    """A row's place is its file and its line there; the counts of outcomes are those of the result."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, questions in (("a.jsonl", "xyz"), ("b.jsonl", "zw")):
        (folder / name).write_text("".join(pair(question) + "\n" for question in questions))
    made = curated(folder, store)
    found = table(made, store)
    places = [("a.jsonl", 1), ("a.jsonl", 2), ("a.jsonl", 3), ("b.jsonl", 1), ("b.jsonl", 2)]
    assert [(row["file"], row["number"]) for row in found] == places
    assert Counter(row["outcome"] for row in found) == {"kept": made.rows.rows, "dropped": sum(made.dropped.values())}
    assert made.read == len(found)


def test_a_reason_has_samples(tmp_path: Path, store: Store) -> None:
    """The first rows of each reason are kept to look at, cut and without secrets."""
    path = tmp_path / "rows.jsonl"
    secret = "sk-" + "a1B2" * 8
    path.write_text("\n".join([pair("a"), *(pair("key " + secret + "x" * 999, " ") for _ in range(9))]))
    made = curated(path, store)
    assert made.lineage
    lines = (store.local(made.lineage) / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [(sample["reason"], sample["number"]) for sample in samples] == [("empty", number) for number in range(2, 7)]
    assert all("key" in sample["text"] and secret not in sample["text"] for sample in samples)


def test_a_sample_of_an_empty_row_is_redacted(tmp_path: Path, store: Store) -> None:
    """Where curation redacts, drops or sets apart personal data, no sample shows it, also not of an empty row."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([pair("a"), pair("I am ann@example.com", " ")]))
    for mode, shown in (("off", True), ("flag", True), ("redact", False), ("drop", False), ("quarantine", False)):
        spec = DatasetSpec.model_validate({"path": str(path), "curation": {"personal_data": mode}})
        made = curate(snapshot(str(path), scratch=tmp_path), spec, store=store)
        assert made.lineage and made.dropped == {"empty": 1}
        text = (store.local(made.lineage) / "samples.jsonl").read_text()
        assert ("ann@example.com" in text) is shown and ("[e-mail]" in text) is not shown


def test_a_kept_row_has_all_its_reasons(tmp_path: Path, store: Store) -> None:
    """A row that is flagged for personal data and then reported as a contradiction has both in the lineage."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([pair("Who?", "ann@example.com"), pair("Who?", "Ben."), pair("Why?")]))
    spec = DatasetSpec.model_validate(
        {"path": str(path), "curation": {"personal_data": "flag", "contradictions": "report"}}
    )
    made = curate(snapshot(str(path), scratch=tmp_path), spec, store=store)
    assert [(row["outcome"], row["reason"], row["detail"]) for row in table(made, store)] == [
        ("kept", "personal_data, contradiction", "1 e-mail; 2 answers to its question"),
        ("kept", "contradiction", "2 answers to its question"),
        ("kept", None, None),
    ]


MEASURE = """
import sys
from pathlib import Path
from backprop_core.data.curation import curate
from backprop_core.data.loading import snapshot
from backprop_core.runtime import process_memory
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
path, home = sys.argv[1:]
curate(snapshot(path, scratch=Path(home)), DatasetSpec(path=path), store=Store(Path(home)))
print(process_memory.peak())
"""


@pytest.mark.slow
def test_long_rows_stay_on_disk(tmp_path: Path) -> None:
    """Rows ten times as long, but as many, take little more memory: 36 MB more in the file are less than 20 MB."""

    def peak(length: int) -> int:
        path = tmp_path / f"{length}.jsonl"
        path.write_text("".join(pair(f"{number} " + "x" * length) + "\n" for number in range(20_000)))
        argv = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / f"store{length}")]
        return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)

    assert peak(2000) - peak(200) < 20e6
