"""Rows are removed from files of every format, and all other rows are read as before."""

import bz2
import csv
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from backprop_core.data.forgotten_rows import names
from backprop_core.data.loading import good_rows, snapshot
from backprop_core.data.row_identity import identity
from backprop_core.data.row_removal import contents, remove_rows
from backprop_core.schema.specs import DatasetSpec

ROWS = [{"question": f'what is {number}?\nand why, "really"?', "answer": f"it is {number}é."} for number in range(9)]
GONE = (0, 4, 8)


def as_lines() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write_csv(path: Path, encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter=";")
        writer.writeheader()
        writer.writerows(ROWS)


def write_stream(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(path, table.schema) as file:
        file.write_table(table, max_chunksize=4)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(as_lines()),
    "last-without-line-feed.jsonl": lambda path: path.write_bytes(b"\n" + as_lines().rstrip()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(as_lines())),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(as_lines())),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(as_lines())),
    "a.jsonl.zst": lambda path: path.write_bytes(pyarrow.compress(as_lines(), "zstd", asbytes=True)),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.csv": write_csv,
    "wide.csv": lambda path: write_csv(path, "utf-16"),
    "a.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
    "a.feather": lambda path: pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), path),
    "a.arrows": write_stream,
    "a.zip": lambda path: write_zip(path),
}


def read(path: Path) -> list[bytes]:
    return [identity(row) for row in good_rows(snapshot(str(path), scratch=path.parent), DatasetSpec(path=str(path)))]


@pytest.mark.parametrize("name", WRITERS)
def test_the_rows_are_gone_and_the_others_are_there(name: str, tmp_path: Path) -> None:
    """By identity, in the order that they had; the second time there is nothing to do, and with the last row the file
    goes."""
    path = tmp_path / name
    WRITERS[name](path)
    before, spec = read(path), DatasetSpec(path=str(path))
    assert len(before) == len(ROWS)
    gone = [before[number].hex() for number in GONE]
    assert remove_rows(path, spec, gone) == len(GONE)
    assert read(path) == [one for number, one in enumerate(before) if number not in GONE]
    assert remove_rows(path, spec, gone) == 0
    assert remove_rows(path, spec, [one.hex() for one in before]) == len(ROWS) - len(GONE)
    assert path.exists() == (name == "a.zip")  # its README stays


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_file_keeps_who_may_read_it(tmp_path: Path, mode: int) -> None:
    """What only its owner could read is not open to others when a row has been removed."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines())
    path.chmod(mode)
    assert remove_rows(path, DatasetSpec(path=str(path)), [read(path)[0].hex()]) == 1
    assert path.stat().st_mode & 0o777 == mode


def test_lines_that_stay_keep_their_bytes(tmp_path: Path) -> None:
    """Odd spacing, escapes and malformed lines are not touched."""
    path = tmp_path / "a.jsonl"
    odd = b'{"answer" :  "\\u00e9",\t"question":"odd?"}\r\n\nnot json\n'
    path.write_bytes(odd + as_lines())
    spec = DatasetSpec(path=str(path), max_bad_rows=1)
    every = [names(row) for row in good_rows(snapshot(str(path), scratch=tmp_path), spec)]
    assert remove_rows(path, spec, every[1]) == 1
    assert path.read_bytes() == odd + as_lines().partition(b"\n")[2]


def write_zip(path: Path) -> None:
    """An archive with the rows in two members, one of them packed, and a member without rows."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        first, second = as_lines().splitlines(keepends=True)[:5], as_lines().splitlines(keepends=True)[5:]
        archive.writestr("part-1.jsonl", b"".join(first))
        archive.writestr("part-2.jsonl.gz", gzip.compress(b"".join(second)), zipfile.ZIP_STORED)
        archive.writestr("README", "about")


def test_a_member_without_rows_goes_and_the_others_keep_their_bytes(tmp_path: Path) -> None:
    """Of an archive, only the members that had the rows are written again."""
    path = tmp_path / "a.zip"
    write_zip(path)
    every, spec = read(path), DatasetSpec(path=str(path))
    assert remove_rows(path, spec, [one.hex() for one in every[:5]]) == 5
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["part-2.jsonl.gz", "README"] and archive.read("README") == b"about"
        assert archive.getinfo("part-2.jsonl.gz").compress_type == zipfile.ZIP_STORED
    assert read(path) == every[5:]


def test_an_archive_of_more_than_rows_stays(tmp_path: Path) -> None:
    """Without its rows, an archive keeps what is no rows; without anything else in it, it goes."""
    path = tmp_path / "a.zip"
    write_zip(path)
    spec, every = DatasetSpec(path=str(path)), [one.hex() for one in read(path)]
    remove_rows(path, spec, every)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["README"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("part.jsonl", as_lines())
    remove_rows(path, spec, every)
    assert not path.exists()


def test_text_is_looked_for_in_what_is_packed(tmp_path: Path) -> None:
    """The bytes of packed files and of members of archives are searched unpacked; damaged ones as they are."""
    path = tmp_path / "a.zip"
    write_zip(path)
    assert sum(b"it is" in data for data in contents(path)) == 2 and b"it is" not in path.read_bytes()
    path.write_bytes(gzip.compress(as_lines()))
    assert any(b"it is 3" in data for data in contents(path))
    path.write_bytes(path.read_bytes()[:40])
    assert list(contents(path)) == [path.read_bytes()]
