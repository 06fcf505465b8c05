"""A directory of files is one source: what is in it when it is hashed, in the order of names."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from backprop_core.data.loading import Parsed, read_rows, snapshot
from backprop_core.errors import InputNotFound, InputValidationFailed, NoRows
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import file_digest
from backprop_core.store.cache_keys import digest_of


@pytest.fixture
def drops(tmp_path: Path) -> Path:
    """A directory in which each file has a row that says the file's name, in the shape of its ending."""
    folder = tmp_path / "drops"
    folder.mkdir()
    for name in (
        "b.jsonl",
        "c.json",
        "a.jsonl.gz",
        ".hidden.jsonl",
        "x.jsonl.tmp",
        "y.jsonl.part",
        "z.jsonl~",
        "notes",
    ):
        data = json.dumps({"text": name}).encode()
        (folder / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    (folder / "d.TXT").write_text("d.TXT\n")
    (folder / "e.csv").write_text("text\ne.csv\n")
    (folder / "empty.jsonl").touch()
    (folder / "f.jsonl").mkdir()
    (folder / "f.jsonl" / "deep.jsonl").write_text('{"text": "deep"}')
    return folder


def taken(folder: Path) -> SourceRef:
    return snapshot(str(folder), scratch=folder)


def parsed(source: SourceRef, **spec: float) -> Parsed:
    return read_rows(source, DatasetSpec.model_validate({"path": source.path, **spec}))


def test_a_directory_is_its_files_in_order(drops: Path) -> None:
    """Every file of rows is read, each in its own shape; hidden, unfinished and other files are not."""
    assert [row["text"] for row in parsed(taken(drops)).rows] == ["a.jsonl.gz", "b.jsonl", "c.json", "d.TXT", "e.csv"]


def test_numbers_in_names_are_in_order(tmp_path: Path) -> None:
    """part-9 is read before part-10, which changes no digest."""
    for number in (10, 9, 100):
        (tmp_path / f"part-{number}.txt").write_text(f"{number}\n")
    source = taken(tmp_path)
    assert [row["text"] for row in parsed(source).rows] == ["9", "10", "100"]
    names = ["part-10.txt", "part-100.txt", "part-9.txt"]
    assert source.digest == digest_of([[name, file_digest(tmp_path / name)] for name in names])


def test_its_digest_is_that_of_names_and_contents(drops: Path, tmp_path: Path) -> None:
    """Neither place nor time nor other files decide the digest; names and contents do."""
    source = taken(drops)
    names = ["a.jsonl.gz", "b.jsonl", "c.json", "d.TXT", "e.csv", "empty.jsonl"]
    files = [[name, hashlib.sha256((drops / name).read_bytes()).hexdigest()] for name in names]
    assert source.digest == hashlib.sha256(json.dumps(files, separators=(",", ":")).encode()).hexdigest()
    (drops / "notes").write_text("changed")
    moved = drops.rename(tmp_path / "moved")
    assert taken(moved).digest == source.digest
    (moved / "b.jsonl").rename(moved / "b2.jsonl")
    assert taken(moved).digest != source.digest


def test_what_comes_later_is_for_the_next_run(drops: Path) -> None:
    """A file that comes after the snapshot is no part of it; one that changes, or goes, is an error that names it."""
    source = taken(drops)
    rows = parsed(source).rows
    (drops / "0.jsonl").write_text('{"text": "later"}')
    assert parsed(source).rows == rows
    (drops / "b.jsonl").write_text('{"text": "changed"}')
    with pytest.raises(InputValidationFailed, match=r"drops/b\.jsonl has changed"):
        parsed(source)
    (drops / "b.jsonl").unlink()
    with pytest.raises(InputNotFound, match=r"drops/b\.jsonl is gone"):
        parsed(source)


def test_places_name_the_file(drops: Path) -> None:
    """A malformed row is said with the file and the line in it; a file that is none of rows with its path."""
    (drops / "b.jsonl").write_text('{"text": "good"}\n{\n')
    bad = parsed(taken(drops), max_bad_rows=1).bad
    assert [str(item.place) for item in bad] == ["b.jsonl, line 2"]
    with pytest.raises(InputValidationFailed, match=r"1 of 6 rows are malformed: b\.jsonl, line 2: not JSON"):
        parsed(taken(drops))
    (drops / "c.json").write_text("no rows")
    with pytest.raises(InputValidationFailed, match=r"drops/c\.json, line 1: not JSON"):
        parsed(taken(drops))


def test_a_directory_without_rows(tmp_path: Path) -> None:
    """One that has no file of rows, and one whose files have none, have no rows."""
    with pytest.raises(NoRows, match="has no row files"):
        taken(tmp_path)
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(NoRows, match="is empty"):
        parsed(taken(tmp_path))
