"""Damaged, hostile and oversized files: a coded error with the file and the place, or a row dropped by reason."""

import gzip
import io
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from backprop_core.data.decompression import Budget
from backprop_core.data.file_readers import parse
from backprop_core.data.loading import Parsed, items_of, read_rows, snapshot
from backprop_core.errors import BackpropError, ConfigInvalid, InputValidationFailed, NoRows
from backprop_core.schema.refs import Reading
from backprop_core.schema.specs import DatasetSpec
from tests.backprop_core.data.test_fuzzed_files import zstd

ROWS = [{"question": f"Question {number}?", "answer": f"Answer {number}."} for number in range(2000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write(directory: Path, name: str, data: bytes) -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def parsed(path: Path, **spec: Any) -> Parsed:
    return read_rows(snapshot(str(path), scratch=path.parent), DatasetSpec(path=str(path), **spec))


def reasons(path: Path) -> list[tuple[str, str]]:
    """Place and reason of each dropped row; the others are there."""
    return [(str(bad.place), bad.reason) for bad in parsed(path, max_bad_rows=1).bad]


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive, warnings.catch_warnings(action="ignore"):
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(("pack", "kind"), [(gzip.compress, "gzip"), (zstd, "zstd")])
def test_a_truncated_file_is_named_with_the_last_line(
    tmp_path: Path, pack: Callable[[bytes], bytes], kind: str
) -> None:
    """What was cut off while it was copied is an error that says how far it could be read."""
    noise = Random(0)
    rows = b"".join(b'{"text": "%s"}\n' % noise.randbytes(200).hex().encode() for _ in range(5000))
    path = write(tmp_path, "rows.jsonl.packed", pack(rows)[:-1000])
    with pytest.raises(InputValidationFailed, match=rf"rows\.jsonl\.packed, after line \d+: damaged {kind} file"):
        parsed(path)


def test_rows_that_json_does_not_have(tmp_path: Path) -> None:
    """NaN, Infinity and a key that is there twice make a row malformed, in lines and in an array alike."""
    bad = ['{"text": NaN}', '{"a": [{"b": -Infinity}]}', '{"text": "a", "text": "b"}', '{"a": {"b": 1, "b": 1}}']
    good = '{"text": "good"}'
    lines = write(tmp_path, "a.jsonl", "\n".join([good, *bad, good]).encode())
    array = write(tmp_path, "a.json", f"[{', '.join([good, *bad, good])}]".encode())
    kinds = ["not_json", "not_json", "named_twice", "named_twice"]
    assert reasons(lines) == [(f"line {number}", kind) for number, kind in enumerate(kinds, 2)]
    assert reasons(array) == [(f"row {number}", kind) for number, kind in enumerate(kinds, 2)]


def test_the_column_of_a_syntax_error(tmp_path: Path) -> None:
    """A row of JSON that goes on in the next line is told by the column at which its own line ends."""
    for encoding in ("utf-8", "utf-16"):
        bad = parsed(write(tmp_path, "a.jsonl", '{"text": "good"}\n{\n'.encode(encoding)), max_bad_rows=1).bad
        assert bad[0].detail.endswith("at column 2")


def test_nulls_at_every_depth(tmp_path: Path) -> None:
    """A null in place of a turn, a text, a list or a row drops the row, and no other."""
    rows: list[Any] = [None, {"messages": None}, {"messages": [None]}, {"messages": [{"role": None, "content": "x"}]}]
    rows += [{"messages": [{"role": "user", "content": [None]}]}, {"messages": [{"role": "user", "content": None}]}]
    good = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "name": None}]}
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, [good, *rows])).encode())
    good_rows, bad = parsed(path, max_bad_rows=1)[:2]
    assert len(good_rows) == 1 and len(bad) == len(rows)


def test_a_line_that_is_too_long(tmp_path: Path) -> None:
    """A line of 50 MB is dropped, and the rows around it are kept; in a table or an array it is an error."""
    long = b"x" * 50_000_000
    assert reasons(write(tmp_path, "a.jsonl", LINES + b'{"text": "' + long + b'"}\n' + LINES)) == [
        ("line 2001", "line_too_long")
    ]
    assert [str(bad.place) for bad in parsed(write(tmp_path, "a.txt", b"a\n" + long + b"\nb"), max_bad_rows=1).bad] == [
        "line 2"
    ]
    for name, data in {
        "a.csv": b"text\na\n" + long,
        "b.csv": b'text\na\n"' + (b"x" * 999 + b"\n") * 50_000,
        "a.json": b'[{"text": "a"},\n1,\n{"text": "' + long + b'"}]',
        "b.json": b'[{"text": "a"},\n1,\n{"text": "' + long,
    }.items():
        with pytest.raises(InputValidationFailed, match=rf"{name}, line 3: .*more than 32 MiB"):
            parsed(write(tmp_path, name, data))


def test_a_parquet_without_the_column(tmp_path: Path) -> None:
    """A column that is mapped and not there is an error with those that are."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    path = write(tmp_path, "a.parquet", file.getvalue())
    with pytest.raises(ConfigInvalid, match=r"a\.parquet has no reply") as caught:
        parsed(path, columns={"prompt": "question", "completion": "reply"})
    assert "answer, prompt, question" in caught.value.hint


def test_ragged_tables(tmp_path: Path) -> None:
    """A record with too few or too many cells is dropped with its line."""
    path = write(tmp_path, "a.tsv", b"question\tanswer\na\tb\nc\nd\te\tf\ng\th\n")
    assert reasons(path) == [("line 3", "torn"), ("line 4", "torn")]


# Archives


def encrypted(data: bytes) -> bytes:
    """An archive whose members say that they are encrypted."""
    marked = bytearray(data)
    marked[6] |= 1
    marked[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(marked)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (encrypted(zipped({"a.jsonl": LINES})), "'a.jsonl' is encrypted"),
        (zipped({"in/../../a.jsonl": LINES}), "leads outside"),
        (zipped({"a.jsonl": LINES, "/etc/x": b""}), "leads outside"),
        (zipped({"..\\a.jsonl": LINES}), "leads outside"),
        (zipped({"C:/a.jsonl": LINES}), "leads outside"),
        (zipped({"in.zip": zipped({"a.jsonl": LINES})}), "archive in the archive"),
        (zipped({"a.jsonl": LINES})[:-30], "damaged ZIP"),
        (zipped({"a.jsonl": LINES}, zipfile.ZIP_STORED).replace(b"Question 1000?", b"Question 9999?"), "Bad CRC-32"),
        (zipped({"a.jsonl": b"not rows\n" * 9}), r"a\.zip.*malformed: a.jsonl, line 1: not JSON"),
        (zipped({"a.csv": b"text\n\xff"}), r"a\.zip/a\.csv, line 2: not UTF-8"),
    ],
)
def test_a_bad_archive(tmp_path: Path, data: bytes, what: str) -> None:
    """An archive that is damaged, encrypted, nested, or names a file outside is refused with the member's name."""
    with pytest.raises(InputValidationFailed, match=what):
        parsed(write(tmp_path, "a.zip", data))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_members_that_are_no_rows(tmp_path: Path) -> None:
    """Hidden members, directories and other files are left out; an archive without row files has no rows."""
    others = {"README.md": b"x", "in/": b"", ".a.jsonl": b"{", "__MACOSX/a.jsonl": b"{"}
    path = write(tmp_path, "a.zip", zipped({**others, "in/b.jsonl": LINES, "in/a.csv": b"question,answer\na,b\n"}))
    items = list(items_of(snapshot(str(path), scratch=tmp_path), "a.zip"))
    assert [str(item.place) for item in items[:2]] == ["in/a.csv, line 2", "in/b.jsonl, line 1"]
    assert len(items) == 2001
    with pytest.raises(NoRows, match="no row files"):
        parsed(write(tmp_path, "b.zip", zipped(others)))


def test_an_archive_in_a_directory(tmp_path: Path) -> None:
    """Places name the archive and the member."""
    write(tmp_path, "b.zip", zipped({"in/a.jsonl": LINES + b"{\n"}))
    write(tmp_path, "a.jsonl", LINES)
    assert reasons(tmp_path) == [("b.zip/in/a.jsonl, line 2001", "not_json")]


@pytest.mark.parametrize("nested", [False, True])
def test_a_zip_bomb(nested: bool) -> None:
    """An archive that unpacks to more than 100 times its size is not unpacked further, in packed members either."""
    zeros = (b" " * 999 + b"\n") * 3000
    members = {f"{number}.jsonl": zeros for number in range(3)}
    if nested:
        members = {f"{name}.gz": gzip.compress(data) for name, data in members.items()}
    bomb = zipped(members)
    for least, fits in [(10_000, False), (10**8, True)]:
        stream: io.BufferedReader = io.BufferedReader(io.BytesIO(bomb))
        items = parse(stream, Reading(shape="zip"), "a.zip", Budget(len(bomb), "a.zip", least=least))
        if fits:
            assert list(items) == []
        else:
            with pytest.raises(InputValidationFailed, match=r"a\.zip decompresses to more than 100 times its size"):
                list(items)


# Files that change


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """Bytes that were not hashed give no dataset: the change is the error, also where the file is no JSON any more."""
    for name, more in [("a.jsonl", LINES), ("b.jsonl", b"\xff\xfe{"), ("a.csv", b'"')]:
        path = write(tmp_path, name, b"question,answer\n" + b"a,b\n" * 400_000 if name == "a.csv" else LINES * 20)
        items = items_of(snapshot(str(path), scratch=tmp_path), name)
        next(items)
        with path.open("ab") as file:
            file.write(more)
        with pytest.raises(InputValidationFailed, match=f"{name} has changed"):
            list(items)


def test_a_parquet_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """A file with random access is read from a copy of the bytes that were hashed."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=100)
    path = write(tmp_path, "a.parquet", file.getvalue())
    items = items_of(snapshot(str(path), scratch=tmp_path), "a.parquet")
    first = next(items)
    path.write_bytes(b"PAR1" + bytes(len(file.getvalue())))
    try:
        values = [first.value, *(item.value for item in items)]
    except BackpropError as error:
        assert "has changed" in error.message
    else:
        assert values == ROWS


# Memory

READ = """
import sys
from pathlib import Path
from backprop_core.data.loading import items_of, snapshot
from backprop_core.runtime import process_memory
path = Path(sys.argv[1])
count = sum(1 for _ in items_of(snapshot(str(path), scratch=path.parent), path.name))
print(count, process_memory.peak())
"""


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt", "rows.zip"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """Reading thirty times as many rows takes no more than 8 MiB more at its peak."""
    made: dict[str, Callable[[int], bytes]] = {
        "rows.jsonl": lambda times: LINES * 5 * times,
        "rows.json": lambda times: b"[" + LINES.replace(b"\n", b",") * 5 * times + b"{}]",
        "rows.csv": lambda times: b"question,answer\n" + b"Why is that?,So it is.\n" * 10_000 * times,
        "rows.txt": lambda times: b"Once upon a time.\n" * 10_000 * times,
        "rows.zip": lambda times: zipped({"a.jsonl.gz": gzip.compress(LINES * 5 * times, 1)}),
    }
    peaks = []
    for times in (1, 30):
        path = write(tmp_path, name, made[name](times))
        told = subprocess.run(
            [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
        ).stdout
        count, peak = map(int, told.split())
        assert count >= 10_000 * times
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 8 * 2**20
