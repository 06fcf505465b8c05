"""Forgotten rows are nowhere in a home any more: neither in artifacts, nor in records, databases or reports."""

import gzip
import html
import io
import json
import re
import shutil
import sqlite3
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

import pyarrow.parquet
import pytest
from rich.console import Console

from backprop_core.data.curation import curate
from backprop_core.data.forgotten_rows import forgotten, marked
from backprop_core.data.loading import snapshot
from backprop_core.data.row_search import files_of
from backprop_core.errors import InputValidationFailed, RefAmbiguous, RowUnknown
from backprop_core.lines import line_archive
from backprop_core.lines.row_trace import trace
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.runtime.settings import settings
from backprop_core.schema.gate_report import Act
from backprop_core.schema.refs import Generations, ReferenceLogProbs, RowsRef, artifacts_in
from backprop_core.schema.specs import DatasetSpec
from backprop_core.schema.specs.curation import CurationSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical, part
from flows.cli import data_text
from tasks.runs.data_forget import Forgotten, data_forget
from tasks.runs.line_splits import of_run
from tasks.runs.store_check import check

FIXTURE = Path(__file__).parents[2] / "fixtures" / "old_home.tar.xz"
TEXT = "1.27: what colour is coal?"  # scored in both versions of `support`, and asked of a GGUF file
OTHER = "1.25: what colour is grass?"  # likewise


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with two lines of an older release, and a set that a person curated since."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "old-home"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path / "old-home"


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(settings().store_path)
    yield store
    store.close()


def places(home: Path, text: str) -> set[str]:
    """Files that have a text, also packed: what a person would find who searched for it."""
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file() and text in said(path)}


def said(path: Path) -> str:
    """All text in a file: its bytes, the columns of a table, and what a database says in SQL."""
    parts = [path.read_bytes().decode(errors="replace")]
    if path.suffix == ".parquet":
        parts.append(json.dumps(pyarrow.parquet.read_table(path).to_pydict()))
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as database:
            parts += database.iterdump()
    return "\n".join(parts)


ANSWER = {"prompt": "Who is Ann?", "completion": "Ann Smith of Oak Street."}
OTHER_KINDS = [
    {"prompt": "Who is Ann?", "chosen": "Ann Smith of Oak Street.", "rejected": "No idea."},
    {"prompt": "Who is Ann?", "chosen": "I may not say.", "rejected": "Ann Smith of Oak Street."},
    ANSWER | {"label": False},
]


@pytest.mark.parametrize("judged", OTHER_KINDS)
def test_a_forgotten_row_comes_back_as_no_other_kind(home: Path, store: Store, judged: dict[str, object]) -> None:
    """Nor does an answer as one of a preference, nor a preference's answer as a row; the curated sets lose both."""
    for first, then in ((ANSWER, judged), (judged, ANSWER)):
        paths = [home.parent / name for name in ("first.jsonl", "then.jsonl")]
        for path, row in zip(paths, (first, then), strict=True):
            kept = {"prompt": f"Who is {path.stem}?", "completion": "Somebody else."}
            path.write_text("".join(json.dumps(each) + "\n" for each in (row, kept)))
        spec = DatasetSpec(path=str(paths[1]), format="mixed")
        source = snapshot(str(paths[1]), scratch=home)
        before = curate(source, spec, store=store)
        done = forget(DatasetSpec(path=str(paths[0]), format="mixed"))
        assert done.artifacts
        after = curate(marked(source, spec, store), spec, store=store)
        assert before.preferences or before.rows.rows == 2
        assert (after.rows.rows, after.preferences) == (1, None) and after.dropped == {"forgotten": 1}
        store.layout.forgotten.unlink()


def test_exported_lines_with_the_row_are_named(home: Path, store: Store) -> None:
    """They are not changed, and named again when another row of the same set is forgotten; other exports are not."""
    for line, name in (("support", "one.line"), ("billing", "two.line")):
        line_archive.write(line, None, home.parent / name, store)
    before = (home.parent / "one.line").read_bytes()
    for planned in (True, False):
        assert [Path(one.path).name for one in forget(TEXT, plan=planned).exported] == ["one.line"]
    done = forget(OTHER)
    assert [(one.line, one.path) for one in done.exported] == [("support", str(home.parent / "one.line"))]
    shown = io.StringIO()
    Console(file=shown, width=1000).print(data_text.forgotten(done))
    assert f"{home.parent / 'one.line'} on " in shown.getvalue() and "two.line" not in shown.getvalue()
    assert (home.parent / "one.line").read_bytes() == before


def test_an_exported_line_with_a_forgotten_row_is_not_imported(home: Path, store: Store) -> None:
    """No line begins, and nothing of the row comes back into the store."""
    file = home.parent / "support.line"
    line_archive.write("support", None, file, store)
    forget(TEXT)
    act = Act(by="Ann", at=datetime.now(UTC), reason="a test", forced=True)
    with (
        pytest.raises(InputValidationFailed, match="forgotten here"),
        line_archive.opened(file) as (archive, head),
    ):
        line_archive.Import(file, archive, head, "again", store).carry_out({}, act)
    assert "again" not in Lines(store).names()
    assert places(store.layout.artifacts, TEXT) == set()


def forget(*rows: str | DatasetSpec, plan: bool = False) -> Forgotten:
    return data_forget(rows, settings(), plan=plan)


def filled(home: Path, store: Store) -> None:
    """Put the row into more places: a packed file, a table, a report, a log, MLflow's tags, a set with a lineage."""
    data = home / "data"
    lines = (data / "night-1.jsonl").read_text().splitlines()[:40]
    (data / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    with zipfile.ZipFile(data / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("night.jsonl", "\n".join(lines))
        archive.writestr("notes.md", TEXT)
    table = pyarrow.Table.from_pylist([json.loads(line) for line in lines])
    pyarrow.parquet.write_table(table, data / "table.parquet", compression="zstd")
    (home / "report.html").write_text(f"<p>{html.escape(TEXT)}</p>")
    (home / "mlflow.log").write_text(f"warning: {json.dumps(TEXT)} is odd\n")
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("UPDATE tags SET value = ? WHERE key = 'backprop.base'", (f"asked: {TEXT}",))
        database.commit()
    source = snapshot(str(data / "night-1.jsonl"), scratch=home)
    spec = DatasetSpec(path=source.path, curation=CurationSpec(contradictions="report"))
    made = curate(source, spec, store=store)
    with store.begin("generations") as directory:
        (directory / "generations.jsonl").write_text(canonical({"messages": [{"content": TEXT}], "output": "white"}))
        store.commit(directory, Generations, record={"heldout": made.rows.digest}, rows=1, stopped=1)


KINDS = {
    *("data/night-1.jsonl", "data/table.parquet", "journal/sent/*.jsonl", "mlflow.db", "mlflow.log"),
    *("mlruns/*/fidelity.json", "mlruns/*/result.json", "report.html", "store/cache/results/*"),
    *("store/artifacts/*/generations.jsonl", "store/artifacts/*/rows.jsonl", "store/runs/*/result.json"),
}


def test_other_rows_of_a_file_are_still_found_in_it(home: Path, store: Store, tmp_path: Path) -> None:
    """A lineage keeps the lines of the rows that are left, with their samples, so that they can be forgotten too."""
    path = tmp_path / "outside.jsonl"
    rows = [{"prompt": f"What is question {one} about?", "completion": f"the answer to it {one}"} for one in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], rows[1], rows[2]]))
    source = snapshot(str(path), scratch=home)
    curate(source, DatasetSpec(path=str(path)), store=store)
    done = forget("the answer to it 1")
    [successor] = [one.successor for one in done.artifacts if one.kind == "lineage"]
    assert successor
    artifact = store.layout.artifact(successor)
    table = pyarrow.parquet.read_table(artifact / "lineage.parquet").to_pylist()
    assert [line["number"] for line in table] == [1, 3, 4, 5, 6, 7, 9]
    samples = (artifact / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in samples] == [7, 9]
    [found] = files_of({table[1]["row"]}, {}, store).values()
    assert {one.place for one in found} == {"line 3", "line 9"}
    assert forget(done.rows[0].row, plan=True).artifacts == []


def test_log_probabilities_of_a_preference_are_forgotten(home: Path, store: Store, tmp_path: Path) -> None:
    """What the champion thought of its answers is removed with it; that of other preferences stays."""

    def judged(name: str) -> str:
        rows = [{"prompt": f"{name} {one}?", "chosen": f"yes {name} {one}", "rejected": "no"} for one in range(6)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = DatasetSpec(path=str(path), format="mixed")
        made = curate(snapshot(spec.path, scratch=home), spec, store=store)
        assert made.preferences
        record = {"stage": "reference_log_probs", "adapter": None, "rows": made.preferences.digest}
        with store.begin("log-probs") as directory:
            (directory / ReferenceLogProbs.FILE).write_text(canonical({"row": 0, "log_probs": [-len(name), -2.0]}))
            return store.commit(directory, ReferenceLogProbs, record=record, answers=2).digest

    forgotten_ones, others = judged("pear"), judged("melon")
    done = forget("yes pear 1")
    assert forgotten_ones in {one.digest for one in done.artifacts if one.kind == "log-probs"}
    assert not store.layout.artifact(forgotten_ones).is_dir() and store.layout.artifact(others).is_dir()


def test_no_byte_of_a_row_is_left(home: Path, store: Store) -> None:
    """Its text is in a dozen kinds of places before, and nowhere afterwards; other rows are where they were."""
    filled(home, store)
    before, other = places(home, TEXT), places(home, OTHER)
    assert all(any(fnmatch(name, kind) for name in before) for kind in KINDS)
    assert gzip.decompress((home / "data" / "packed.jsonl.gz").read_bytes()).count(TEXT.encode()) == 1
    done = forget(TEXT)
    assert places(home, TEXT) == set()
    assert [one.partition(": ")[2] for one in done.left] == [
        "other rows or fields in it have text of the row; edit it yourself"
    ]
    with zipfile.ZipFile(home / "data" / "packed.zip") as archive:
        assert TEXT not in archive.read("night.jsonl").decode() and OTHER in archive.read("night.jsonl").decode()
    assert done.left[0].startswith(str(home / "data" / "packed.zip"))
    assert TEXT.encode() not in gzip.decompress((home / "data" / "packed.jsonl.gz").read_bytes())
    assert OTHER in gzip.decompress((home / "data" / "packed.jsonl.gz").read_bytes()).decode()
    kept = {name for name in other if not re.match("store/(artifacts|cache)/", name)}
    assert kept <= places(home, OTHER)
    assert {one.kind for one in done.artifacts} >= {"rows", "tokens", "generations", "lineage"}
    night = snapshot(str(home / "data" / "night-2.jsonl"), scratch=home)
    curate(night, DatasetSpec(path=night.path), store=store)
    assert forget(done.rows[0].row).rows == [], "a second time, nothing is left to do"


def test_what_was_set_aside_is_forgotten(home: Path, store: Store) -> None:
    """Damage that nothing sound stands for may have the row, and goes."""
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text(json.dumps({"text": TEXT}))
        ref = store.commit(directory, RowsRef, record={}, rows=1)
    store.set_aside(ref.digest)
    forget(TEXT)
    assert list(store.layout.damaged.glob("*")) == [] and store.was_removed(ref.digest)


def test_lines_and_runs_go_on_without_the_row(home: Path, store: Store) -> None:
    """Versions and results name the same rows, one less, and all artifacts that they need are there."""
    lines = Lines(store)
    rows = {number: total(lines.version("support", number)) for number in (1, 2)}
    done = forget(TEXT)
    for number in (1, 2):
        version = lines.version("support", number)
        assert total(version) == rows[number] - 1
        for ref in artifacts_in(version):
            store.verify(ref.digest)
        split = of_run(version.run_id, store)
        assert split and split.heldout == version.heldout
    assert check(settings())[1] == []
    assert [one.name for one in done.learned if "@" in one.name] == ["support@1", "support@2"]
    assert trace(done.rows[0].row, store, most=1).rows == []


def total(version: LineVersion) -> int:
    return sum(rows.rows for rows in [*version.heldout.values(), *(one.train for one in version.datasets)])


def test_a_plan_changes_nothing(home: Path, store: Store) -> None:
    """It lists the same, and every file has the bytes that it had."""
    filled(home, store)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and "locks" not in path.parts}
    planned = forget(TEXT, plan=True)
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and "locks" not in path.parts}
    assert {path.name for path in after.keys() ^ before.keys()} <= {"lock"}
    assert all(after[path] == before[path] for path in before.keys() & after.keys())
    done = forget(TEXT)
    assert planned.planned and not done.planned
    assert (planned.files, planned.quoted, planned.cached) == (done.files, done.quoted, done.cached)
    assert {one.digest for one in planned.artifacts} == {one.digest for one in done.artifacts}


def test_a_row_is_named_without_doubt(home: Path) -> None:
    """Text of several rows is refused with a list of them, and so is what no row has; nothing is changed."""
    with pytest.raises(RefAmbiguous, match=r"11 rows have '1\.13': .*1\.13: what colour is snow"):
        forget("1.13")
    with pytest.raises(RowUnknown, match="no row in this store has 'nothing like it'"):
        forget("nothing like it")
    assert not (home / "store" / "forgotten.jsonl").exists()


def test_a_forgotten_row_does_not_come_back(home: Path, store: Store, tmp_path: Path) -> None:
    """Curation drops it by reason wherever it comes from; the key of a source without it stays what it was."""
    night, other = (snapshot(str(home / "data" / f"night-{number}.jsonl"), scratch=tmp_path) for number in (1, 2))
    copy = tmp_path / "copy.jsonl"
    shutil.copy(night.path, copy)
    again = snapshot(str(copy), scratch=tmp_path)
    spec = DatasetSpec(path=str(copy))
    forget(TEXT)
    made = curate(marked(again, spec, store), spec, store=store)
    assert made.dropped == {"forgotten": 1}
    assert TEXT.encode() not in (store.local(made.rows) / "rows.jsonl").read_bytes()
    assert part(marked(other, spec, store)) == part(other)
    assert part(marked(again, spec, store)) != part(again)
    [known] = forgotten(store).values()
    assert known.versions == ["support@1", "support@2"]


def test_a_file_of_rows_is_forgotten_whole(home: Path, store: Store, tmp_path: Path) -> None:
    """All rows of a file go by identity, whatever the file's format; rows that nothing has are blocked."""
    file = tmp_path / "gone.csv"
    file.write_text('question,answer\n"1.27: what colour is coal?",It is black.\n"never seen before, 77",At all.\n')
    done = forget(DatasetSpec(path=str(file)))
    assert len(done.rows) == 2 and places(home, TEXT) == set()
    assert len(forgotten(store)) == 2


def test_what_was_killed_is_finished(home: Path, store: Store, tmp_path: Path) -> None:
    """Killed before its last steps, it is done by the same command: rows are removed last, so they are still found."""
    shutil.copytree(home / "store" / "artifacts", tmp_path / "before")
    done = forget(TEXT)
    for one in done.artifacts:
        shutil.copytree(tmp_path / "before" / one.digest, home / "store" / "artifacts" / one.digest)
        (home / "store" / "tombstones" / f"{one.digest}.json").unlink()
    assert places(home, TEXT)
    again = forget(TEXT)
    assert places(home, TEXT) == set() and check(settings())[1] == []
    assert {one.digest for one in again.artifacts} == {one.digest for one in done.artifacts}
    assert next(iter(forgotten(store).values())).versions == ["support@1", "support@2"]
