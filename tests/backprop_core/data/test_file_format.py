"""How a file is read is decided when it is found, and is part of what names it; what cannot be read is said."""

import codecs
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.loading import Parsed, items_of, read_rows, snapshot
from backprop_core.errors import InputValidationFailed
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import part, stage_key
from tasks.runs import resolve, resolve_defaults
from tests.backprop_core import nano


def write(directory: Path, name: str, data: str | bytes) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def found(path: Path) -> SourceRef:
    return snapshot(str(path), scratch=path.parent)


def parsed(path: Path, **spec: Any) -> Parsed:
    return read_rows(found(path), DatasetSpec(path=str(path), **spec))


def pairs(path: Path, **spec: Any) -> list[list[str]]:
    return [[turn["content"] for turn in row["messages"]] for row in parsed(path, **spec).rows]


def key_of(source: SourceRef) -> str:
    return stage_key("curate", {"source": source, "spec": DatasetSpec(path="x")})


# A source is its bytes and how they are read


def test_the_same_bytes_read_otherwise_are_another_source(tmp_path: Path) -> None:
    """One key for each way to read some bytes: as CSV, as text, with tabs, packed or not, in a directory too."""
    data = "text\tmore\nHello, you\tthere\n"
    names = ["rows.csv", "rows.txt", "rows.jsonl"]
    sources = [found(write(tmp_path, name, data)) for name in names]
    assert len({source.digest for source in sources}) == 1
    assert len({key_of(source) for source in sources}) == 3
    packed = [found(write(tmp_path, f"{name}.gz", gzip.compress(data.encode(), mtime=0))) for name in names]
    assert len({source.digest for source in packed}) == 1
    assert len({key_of(source) for source in packed}) == 3
    for name in names:
        write(tmp_path, f"{name}-s/a{Path(name).suffix}", data)
    assert len({key_of(found(tmp_path / f"{name}-s")) for name in names}) == 3


def test_the_same_reading_under_another_name_is_the_same_source(tmp_path: Path) -> None:
    """A name that says nothing of how to read a file is no part of it."""
    keys = {
        key_of(found(write(tmp_path, name, '{"text": "x"}\n'))) for name in ("a.jsonl", "b.json", "c", "a/a.ndjson")
    }
    assert len(keys) == 1


def test_a_run_on_other_rows_is_other_work(tmp_path: Path) -> None:
    """The digest of a whole run, by which a finished one is known, and the notes on data tell readings apart."""
    base, store = nano.build(tmp_path / "base"), Store(tmp_path / "store")
    digests, found = set(), []
    for name in ("x.csv", "x.txt"):
        data = write(tmp_path, name, "text\n" + "".join(f"Line {number}\n" for number in range(40)))
        spec = {"model": {"name": str(base)}, "datasets": [{"path": str(data)}], "training": {"device": "cpu"}}
        prepared = resolve.prepare("train", RunSpec.model_validate(spec), store)
        digests.add(prepared.digest())
        found.append(resolve_defaults.data_in(prepared.sources[0].data, prepared.spec.datasets[0], base, store))
    assert len(digests) == 2
    assert found[0] and found[1] and found[0].examples != found[1].examples


def test_a_record_that_is_older_than_readings(tmp_path: Path) -> None:
    """A source that was recorded without its reading keeps its key, and is read by its name as it was then."""
    path = write(tmp_path, "rows.csv", "question,answer\nWhy?,So.\n")
    old = SourceRef.model_validate({"digest": found(path).digest, "path": str(path), "files": []})
    assert part(old) == old.digest
    assert read_rows(old, DatasetSpec(path=str(path))) == parsed(path)


# Encodings

RECORDS = [["question", "answer"], ["Wärum?", "Straße → „so“"], ["日本?", "No,\nnot; there\tyet"]]
ENCODED = {
    "utf-8": lambda text: text.encode(),
    "utf-8-sig": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
}


def as_csv(separator: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=separator).writerows(RECORDS)
    return file.getvalue()


def as_rows() -> list[dict[str, str]]:
    return [dict(zip(RECORDS[0], record, strict=True)) for record in RECORDS[1:]]


SHAPES = {
    "rows.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in as_rows()),
    "rows.json": json.dumps(as_rows(), ensure_ascii=False),
    "rows.csv": as_csv(","),
    "semicolons.csv": as_csv(";"),
    "tabs.csv": as_csv("\t"),
    "tabs.tsv": as_csv("\t"),
    "pipes.csv": as_csv("|"),
}


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("name", SHAPES)
def test_every_unicode_encoding_and_separator_is_read(tmp_path: Path, name: str, encoding: str) -> None:
    """UTF-8, UTF-16 and UTF-32 with their marks, and cells between commas, semicolons, tabs or bars: the same rows."""
    data = ENCODED[encoding](SHAPES[name])
    assert pairs(write(tmp_path, name, data)) == RECORDS[1:]
    assert pairs(write(tmp_path, name + ".gz", gzip.compress(data))) == RECORDS[1:]


def test_text_in_utf_16(tmp_path: Path) -> None:
    """A text of Windows' editor is read line by line."""
    path = write(tmp_path, "notes.txt", "Grüße\r\n\r\nEnde\r\n".encode("utf-16"))
    assert parsed(path).rows == [{"text": "Grüße"}, {"text": "Ende"}]


WESTERN = "question;answer\nWhy?;So.\nWarum „so“?;Schön.\n".encode("cp1252")


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.csv", WESTERN, r"line 3: not UTF-8: byte 0x84 at column 7, '„' in Windows-1252"),
        ("a.txt", "Gut.\nSchön.\n".encode("latin-1"), r"line 2: not UTF-8: byte 0xf6 at column 4, 'ö' in Windows-1252"),
        ("a.json", '[{"text":\n"Schön"}]'.encode("cp1252"), r"line 2: not UTF-8: byte 0xf6"),
        ("a.jsonl", '{"text": "Gut."}\n{"text": "Schön"}\n'.encode("cp1252"), r"line 2: not UTF-8: byte 0xf6"),
        ("a.jsonl", '{"text": "Gut."}\n'.encode("utf-16-le"), "line 1: every other byte is zero, as in UTF-16"),
        ("a.csv", "text\nGut.\n".encode("utf-16-be"), "line 1: every other byte is zero, as in UTF-16"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\0\n\0\0\xd8", "line 2: not UTF-16, although its byte order mark says so"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    """Windows-1252, Latin-1 and UTF-16 without a mark are refused by name, with the first such line."""
    with pytest.raises(InputValidationFailed, match=what) as caught:
        parsed(write(tmp_path, name, data))
    assert "UTF-8" in caught.value.hint or "fix them" in caught.value.hint


def test_an_encoding_that_was_said(tmp_path: Path) -> None:
    """A named encoding is used where no byte order mark says otherwise, and is part of what the source is."""
    for name in SHAPES:
        path = write(tmp_path, name, SHAPES[name].replace("日本", "Ya").replace("→", "-").encode("cp1252"))
        said = snapshot(str(path), scratch=tmp_path, encoding="cp1252")
        rows = read_rows(said, DatasetSpec(path=str(path), encoding="Windows-1252")).rows
        assert rows[0]["messages"][0]["content"] == "Wärum?"
        assert key_of(said) != key_of(found(path))
        marked = write(tmp_path, f"m-{name}", SHAPES[name].encode("utf-16"))
        assert key_of(snapshot(str(marked), scratch=tmp_path, encoding="cp1252")) == key_of(found(marked))


@pytest.mark.parametrize("name", ["rows.txt", "rows.csv", "rows.json", "rows.jsonl"])
def test_another_encoding_than_was_said(tmp_path: Path, name: str) -> None:
    """Text that is not in the encoding that was named is an error with the line."""
    rows = '[\n"Sch\u00f6n"]' if name == "rows.json" else "text\nSch\u00f6n\n"
    path = write(tmp_path, name, rows.encode("cp1252"))
    with pytest.raises(InputValidationFailed, match=r"line 2: not SHIFT_JIS, although datasets\.N\.encoding says so"):
        list(items_of(snapshot(str(path), scratch=tmp_path, encoding="shift_jis"), str(path)))


def test_an_unknown_encoding() -> None:
    """Only names of text encodings are taken; two names of one are the same spec."""
    for name in ("nope", "hex", "undefined", "x" * 300):
        with pytest.raises(ValueError, match="not a text encoding"):
            DatasetSpec(path="x", encoding=name)
    assert DatasetSpec(path="x", encoding="Latin-1") == DatasetSpec(path="x", encoding="iso8859-1")


# CSV


def table(*records: str, count: int = 60) -> str:
    """A table of `count` records, of which the given ones come in place of the twentieth and those after it."""
    lines = [f"Question {number}?,Answer {number}." for number in range(1, count + 1)]
    lines[19 : 19 + len(records)] = records
    return "question,answer\n" + "".join(line + "\n" for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        table('Q?,"never closed'),
        table('Q?,"never closed', *["a,b"] * 18, 'R?,"closed, it seems"'),
        table('"never closed,A.', *["a,b"] * 18, '"R?","b"'),
        table('Q?,"never closed', *["a,b"] * 18, 'R?,",b"'),
        table('Q?,"never closed', *["a,b"] * 18, 'What is 5",b'),
        table('Q?,"closed" too early'),
        table('Q?,"He said "yes", did he"'),
        table(count=21).rstrip("\n") + '\nQ?,"never closed at the end',
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_torn_quoting_is_an_error_with_its_line(tmp_path: Path, text: str, ends: str) -> None:
    """A quotation mark that does not close where its cell ends stops the file at the line that it is on."""
    line = 1 + next(number for number, one in enumerate(text.split("\n")) if '"' in one)
    with pytest.raises(InputValidationFailed, match=rf"rows\.csv, line {line}: broken quoting") as caught:
        parsed(write(tmp_path, "rows.csv", text.replace("\n", ends)), max_bad_rows=1)
    assert "double each mark" in caught.value.hint


def test_quoting_that_is_whole(tmp_path: Path) -> None:
    """Separators, line breaks, quotation marks and blank lines within a quoted cell are the cell's own."""
    answer = 'Dear "Sir", no:\n\n  a,b\n""\n;'
    file = io.StringIO()
    csv.writer(file).writerows([["question", "answer"], ["Q?", answer], ["5 inches", ""], ['It is 5" wide', 'so "so"']])
    assert pairs(write(tmp_path, "rows.csv", file.getvalue()))[0] == ["Q?", answer]
    assert pairs(write(tmp_path, "rows.csv", file.getvalue()))[2] == ['It is 5" wide', 'so "so"']
    assert pairs(write(tmp_path, "loose.csv", 'question,answer\nWhat is a "closure"?,A function.\n')) == [
        ['What is a "closure"?', "A function."]
    ]


def test_a_record_is_named_by_the_line_that_it_begins_on(tmp_path: Path) -> None:
    """Cells with line breaks do not move the places of the records after them."""
    path = write(tmp_path, "rows.csv", 'question,answer\n"a\nb",c\n\nlost\nd,e\n')
    rows, bad = parsed(path, max_bad_rows=1)
    assert len(rows) == 2
    assert [(str(item.place), item.detail) for item in bad] == [
        ("line 5", "1 cells, but the header has another number")
    ]


def test_a_separator_within_the_texts_is_none(tmp_path: Path) -> None:
    """The header and the records decide together: a bar in a name, commas in texts, a single column."""
    assert pairs(write(tmp_path, "a.csv", "question;answer\nOne, two?;Three, four.\n")) == [
        ["One, two?", "Three, four."]
    ]
    named = {"question": "ask, politely", "answer": "answer"}
    assert pairs(write(tmp_path, "b.csv", "ask, politely;answer\nWhy?;So, so.\nHow?;So.\n"), columns=named)
    assert parsed(write(tmp_path, "c.csv", "text\nno; not\t|\n")).rows == [{"text": "no; not\t|"}]


def test_what_cannot_be_told_is_asked(tmp_path: Path) -> None:
    """A table that two separators fit equally, and a header with one name twice, are errors, not a choice."""
    with pytest.raises(InputValidationFailed, match="line 1: ambiguous separator"):
        parsed(write(tmp_path, "a.csv", "question,answer;note\na,b;c\n"))
    with pytest.raises(InputValidationFailed, match="line 1: two columns are named 'answer'"):
        parsed(write(tmp_path, "b.csv", "question,answer,answer\na,b,c\n"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["rows.txt", "rows.csv"])
def test_text_without_spaces_in_utf_16_is_not_read_as_utf_8(tmp_path: Path, name: str, encoding: str) -> None:
    """A zero byte stops text and tables at its line: no row is made of another encoding's bytes."""
    path = tmp_path / name
    path.write_bytes(("text\n" + "\u4e16\u754c\u4e16\n" * 40).encode(encoding))
    with pytest.raises(InputValidationFailed, match=r"line [12]: .*UTF-16"):
        parsed(path, max_bad_rows=1)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_line_of_text_is_a_row_however_lines_end(tmp_path: Path, ends: str) -> None:
    """Text has a row a line, also where only carriage returns end its lines."""
    path = tmp_path / "rows.txt"
    path.write_bytes(ends.join(["one", "two", "three", ""]).encode())
    assert parsed(path).rows == [{"text": "one"}, {"text": "two"}, {"text": "three"}]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_that_is_there_again_is_no_row(tmp_path: Path, mark: str) -> None:
    """Of tables that were put together, the header of the second is dropped and counted, not trained."""
    rows, bad = parsed(
        write(tmp_path, "rows.csv", f"question,answer\na,b\n{mark}question,answer\nc,d\n"), max_bad_rows=1
    )
    assert len(rows) == 2
    assert [(str(item.place), item.reason) for item in bad] == [("line 3", "second_header")]
