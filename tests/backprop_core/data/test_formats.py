"""Rows of every known format and file shape become the same chat rows; what is not rows is said with its place."""

import bz2
import csv
import gzip
import http.server
import io
import json
import lzma
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from backprop_core.data.decompression import Budget, unpacked
from backprop_core.data.loading import Parsed, read_rows, snapshot
from backprop_core.data.sources import is_chain
from backprop_core.errors import (
    ConfigInvalid,
    ExtraMissing,
    FormatUnknown,
    InputNotFound,
    InputValidationFailed,
    NoRows,
)
from backprop_core.schema.specs import DatasetSpec

EXCHANGE = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
WITH_SYSTEM = {"messages": [{"role": "system", "content": "Be brief."}, *EXCHANGE["messages"]]}
EQUAL_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}),
    ("messages", EXCHANGE),
    ("alpaca", {"instruction": "Why?", "input": "", "output": "Because."}),
    ("prompt-completion", {"prompt": "Why?", "completion": "Because."}),
    ("question-answer", {"question": "Why?", "answer": "Because."}),
]


def write(directory: Path, name: str, data: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def parsed(path: Path, **spec: Any) -> Parsed:
    return read_rows(snapshot(str(path), scratch=path.parent), DatasetSpec(path=str(path), **spec))


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# Row formats


@pytest.mark.parametrize("name, row", EQUAL_ROWS)
@pytest.mark.parametrize("named", [True, False])
def test_one_exchange_is_the_same_in_every_format(tmp_path: Path, name: str, row: dict[str, Any], named: bool) -> None:
    """The same exchange gives the same chat row in every format, detected or named."""
    path = write(tmp_path, "rows.jsonl", json_lines([row] * 3))
    assert parsed(path, **({"format": name} if named else {})).rows == [EXCHANGE] * 3


@pytest.mark.parametrize("name, row", EQUAL_ROWS)
def test_a_system_field_becomes_the_first_turn(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    """A system prompt that stands beside the turns is the first of them."""
    path = write(tmp_path, "rows.jsonl", json_lines([{**row, "system": "Be brief."}]))
    assert parsed(path).rows == [WITH_SYSTEM]


def test_sharegpt_roles(tmp_path: Path) -> None:
    """Every ShareGPT speaker has its role."""
    speakers = ["system", "human", "gpt", "observation", "gpt", "user", "assistant", "tool", "function"]
    row = {"conversations": [{"from": speaker, "value": speaker} for speaker in speakers]}
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool", "tool"]
    turns = parsed(write(tmp_path, "rows.jsonl", json_lines([row]))).rows[0]["messages"]
    assert turns == [{"role": r, "content": s} for r, s in zip(roles, speakers, strict=True)]


def test_alpaca_input_and_history(tmp_path: Path) -> None:
    """The input stands on a line under the instruction; the history comes before them as turns."""
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]], "system": None}
    turns = parsed(write(tmp_path, "rows.jsonl", json_lines([row]))).rows[0]["messages"]
    assert [turn["content"] for turn in turns] == ["Hi", "Hello", "Add.\n1 2", "3"]


def test_text_parts_are_joined(tmp_path: Path) -> None:
    """OpenAI's content in text parts is their text."""
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    row = {"messages": [{"role": "user", "content": parts}, EXCHANGE["messages"][1]]}
    assert parsed(write(tmp_path, "rows.jsonl", json_lines([row]))).rows == [EXCHANGE]


def test_columns_map_the_files_names(tmp_path: Path) -> None:
    """A field of a format is taken from the column that was named for it, whatever else the file has."""
    rows = [{"text": "noise", "asked": "Why?", "said": "Because."}]
    path = write(tmp_path, "rows.jsonl", json_lines(rows))
    assert parsed(path, columns={"question": "asked", "answer": "said"}).rows == [EXCHANGE]
    assert parsed(path).rows == [{"text": "noise"}]


def test_columns_that_do_not_exist(tmp_path: Path) -> None:
    """A field that no format has, or a column that the file has not, is an error that lists what there is."""
    path = write(tmp_path, "rows.jsonl", json_lines([{"asked": "Why?", "said": "Because."}]))
    with pytest.raises(ConfigInvalid, match="no format has answre") as caught:
        parsed(path, columns={"answre": "said"})
    assert "question-answer: answer, question" in caught.value.hint
    with pytest.raises(ConfigInvalid, match="has no siad") as caught:
        parsed(path, columns={"question": "asked", "answer": "siad"})
    assert caught.value.hint == "it has asked, question, said"


def test_unknown_format_lists_fields_and_formats(tmp_path: Path) -> None:
    """Rows of no known format: the error says which fields they have and which formats there are."""
    with pytest.raises(FormatUnknown, match="with fields colour, size") as caught:
        parsed(write(tmp_path, "rows.jsonl", json_lines([{"colour": "red", "size": 3}])))
    assert "alpaca: instruction, output" in caught.value.hint


# File shapes


def as_csv() -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([["", "question", "answer"], [0, "Why, or\nhow?", 'So "it" is.'], [1, "é", "日本"]])
    return file.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def as_arrow(rows: list[dict[str, Any]], new: Callable[..., Any]) -> bytes:
    table, file = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with new(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def zstd(data: bytes) -> bytes:
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return bytes(packed.getvalue().to_pybytes())


def zipped(data: bytes, name: str = "rows.jsonl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
PAIRS = [{"question": "Why, or\nhow?", "answer": 'So "it" is.'}, {"question": "é", "answer": "日本"}]
SHAPES = [
    ("array.json", json.dumps(PAIRS, indent=1).encode()),
    ("lines.jsonl", json_lines(PAIRS).encode()),
    ("array-in.jsonl", json.dumps(PAIRS).encode()),
    ("lines-in.json", json_lines(PAIRS).encode()),
    ("no-suffix", json_lines(PAIRS).encode()),
    ("carriage-returns.jsonl", json_lines(PAIRS).replace("\n", "\r\n").encode()),
    ("empty-lines.jsonl", ("\n\n" + json_lines(PAIRS).replace("\n", "\n \n")).encode()),
    ("mark.jsonl", b"\xef\xbb\xbf" + json_lines(PAIRS).encode()),
    ("mark.json", b"\xef\xbb\xbf" + json.dumps(PAIRS).encode()),
    ("table.csv", as_csv()),
    ("mark.csv", b"\xef\xbb\xbf" + as_csv()),
    ("table.parquet", as_parquet(PAIRS)),
    ("table.arrow", as_arrow(PAIRS, pyarrow.ipc.new_file)),
    ("table.feather", as_arrow(PAIRS, pyarrow.ipc.new_file)),
    ("stream.arrow", as_arrow(PAIRS, pyarrow.ipc.new_stream)),
]


@pytest.mark.parametrize("name, data", SHAPES)
@pytest.mark.parametrize("suffix", PACKED)
def test_every_shape_gives_the_same_rows(tmp_path: Path, name: str, data: bytes, suffix: str) -> None:
    """The same rows are read from every shape of file, with a byte order mark or CRLF, and compressed."""
    expected = [[turn["question"], turn["answer"]] for turn in PAIRS]
    packed = PACKED[suffix](data)
    for path in (
        write(tmp_path, name + suffix, packed),
        write(tmp_path, "rows.zip", zipped(packed, f"in/{Path(name).stem}{Path(name).suffix or '.json'}{suffix}")),
    ):
        assert [[turn["content"] for turn in row["messages"]] for row in parsed(path).rows] == expected


def test_plain_text_is_a_row_a_line(tmp_path: Path) -> None:
    """A .txt file has a row of raw text per line that is not empty."""
    path = write(tmp_path, "notes.txt", "[one]\r\n\n  two\u2028still two\n")
    assert parsed(path).rows == [{"text": "[one]"}, {"text": "  two\u2028still two"}]


def test_only_newlines_end_a_json_line(tmp_path: Path) -> None:
    """Unicode's other line ends, NUL and a mebibyte of text stay inside their row."""
    text = "a\u2028b\u0085c\x00d\x0c" + "x" * (1 << 20)
    path = write(tmp_path, "rows.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert parsed(path).rows == [{"text": text}]


def test_a_large_cell_is_read(tmp_path: Path) -> None:
    """A CSV cell may be larger than the 128 KiB that the csv module takes by default."""
    assert parsed(write(tmp_path, "rows.csv", "text\n" + "x" * 200_000)).rows == [{"text": "x" * 200_000}]


# Malformed rows

BAD_LINES = [
    ('{"messages": [}', "not_json"),
    ("[1, 2]", "not_an_object"),
    ("null", "not_an_object"),
    ("[" * 100_000, "not_json"),
    ('{"messages": ' + "9" * 5000 + "}", "not_json"),
    ('{"other": 1}', "missing_field"),
    ('{"messages": "text"}', "missing_field"),
    ('{"messages": ["text"]}', "not_an_object"),
    ('{"messages": [{"role": "user"}]}', "missing_field"),
    ('{"messages": [{"role": "user", "content": 7}]}', "not_text"),
    ('{"messages": [{"role": "user", "content": null}]}', "not_text"),
    ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "not_text"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "not_unicode"),
    ('{"messages": [{"role": "admin", "content": "x"}]}', "unknown_role"),
    ('{"messages": [{"role": ["user"], "content": "x"}]}', "unknown_role"),
    ('{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]}]}', "bad_call"),
    (b'{"messages": "\xff"}', "not_utf8"),
]


@pytest.mark.parametrize("line, reason", BAD_LINES)
def test_a_malformed_row_is_dropped_with_place_and_reason(tmp_path: Path, line: str | bytes, reason: str) -> None:
    """A malformed row is left out, with its line and why; the rows around it are read."""
    good = json.dumps(EXCHANGE).encode()
    path = write(
        tmp_path, "rows.jsonl", good + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good
    )
    rows, bad = parsed(path, max_bad_rows=0.5)
    assert rows == [EXCHANGE] * 2
    assert [(str(item.place), item.reason) for item in bad] == [("line 2", reason)]


def test_torn_records_of_a_table(tmp_path: Path) -> None:
    """A CSV record with fewer or more cells than the header is malformed."""
    path = write(tmp_path, "rows.csv", "question,answer\na,b\nc\nd,e,f\n")
    rows, bad = parsed(path, max_bad_rows=1)
    assert len(rows) == 1
    assert [(str(item.place), item.reason) for item in bad] == [("line 3", "torn"), ("line 4", "torn")]


def test_too_many_malformed_rows(tmp_path: Path) -> None:
    """At max_bad_rows the rest is read, above it the error names the first three places."""
    path = write(tmp_path, "rows.jsonl", json_lines([EXCHANGE] * 96) + "{\n{\n{\n{\n")
    assert len(parsed(path, max_bad_rows=0.04).bad) == 4
    with pytest.raises(InputValidationFailed, match="4 of 100 rows") as caught:
        parsed(path, max_bad_rows=0.039)
    assert all(f"line {number}: not JSON" in caught.value.message for number in (97, 98, 99))
    assert "line 100" not in caught.value.message


# Files that are not rows


class Boom:
    """Opens a door if it is ever unpickled."""

    def __init__(self, door: Path) -> None:
        self.door = door

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.door,)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    """A pickle, by whatever name and gzipped, is refused without being loaded."""
    bomb = pickle.dumps(Boom(tmp_path / "door"))
    for name, data in [("a.json", bomb), ("b.jsonl", bomb), ("c.csv", bomb), ("d.gz", gzip.compress(bomb))]:
        with pytest.raises(InputValidationFailed):
            parsed(write(tmp_path, name, data))
    assert not (tmp_path / "door").exists()


@pytest.mark.parametrize(
    "name, data, what",
    [
        ("a.json", b"hello there", r"a\.json, line 1: not JSON"),
        ("a.json", b'[{"text": "x"},\n{"text": }]', r"a\.json, line 2: not JSON"),
        ("a.json", b"[" * 100_000, r"a\.json, line 1: not JSON"),
        ("a.json", b'[{"text": "x"},\n{"text": "\xe9"}]', r"a\.json, line 2: not UTF-8"),
        ("a.csv", b"text\nx\n\xff\n", r"a\.csv, line 3: not UTF-8"),
        ("a.json.gz", gzip.compress(b"[]" * 999, mtime=0)[:30], "damaged gzip"),
        ("a.json.zst", zstd(b"[]" * 999)[:-3], "damaged zstd"),
        ("a.json.zst", zstd(b"")[:4] + b"\xff" * 30, "damaged zstd"),
        ("a.parquet", b"PAR1" + b"\0" * 90, "damaged Parquet"),
        ("a.jsonl", "plain\nwords\n".encode("utf-16"), "malformed: line 1: not JSON"),
    ],
)
def test_not_rows(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    """A file that has none of the shapes is an error with the file and, where there are lines, the line."""
    with pytest.raises(InputValidationFailed, match=what):
        parsed(write(tmp_path, name, data))


@pytest.mark.parametrize(
    "name, data", [("a.json", b""), ("a.json", b" \n"), ("a.json", b"[]"), ("a.csv", b"text\n"), ("a.txt", b"\n\n")]
)
def test_empty_files(tmp_path: Path, name: str, data: bytes) -> None:
    """A file without rows has no rows."""
    with pytest.raises(NoRows, match="is empty"):
        parsed(write(tmp_path, name, data))


# Snapshots


def test_missing_file_with_a_hint(tmp_path: Path) -> None:
    """A file that does not exist is an error that names the one that was probably meant."""
    write(tmp_path, "support.jsonl", "")
    with pytest.raises(InputNotFound, match=r"suport\.jsonl") as caught:
        snapshot(str(tmp_path / "suport.jsonl"), scratch=tmp_path)
    assert caught.value.hint == "did you mean support.jsonl?"


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "../" * 400 + "x", "/dev/zero", "memory://nothing"])
def test_names_that_are_no_files(tmp_path: Path, name: str) -> None:
    """A directory without files of rows, a device, a NUL, a name that is too long: each a coded error."""
    with pytest.raises((InputNotFound, InputValidationFailed, NoRows)):
        snapshot(name or str(tmp_path), scratch=tmp_path)


@pytest.mark.parametrize("url", ["nonsense://x", "reference://x", "simplecache::file:///etc/hostname"])
def test_addresses_that_cannot_be_read(tmp_path: Path, url: str) -> None:
    """An unknown protocol, one that wants options, and a chain of protocols are coded errors."""
    with pytest.raises((InputValidationFailed, ExtraMissing)):
        snapshot(url, scratch=tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """The rows that are read are those of the bytes that were hashed, or none."""
    path = write(tmp_path, "rows.jsonl", json_lines([EXCHANGE]))
    source, spec = snapshot(str(path), scratch=tmp_path), DatasetSpec(path=str(path))
    assert read_rows(source, spec).rows == [EXCHANGE]
    path.write_text(json_lines([EXCHANGE] * 2))
    with pytest.raises(InputValidationFailed, match="has changed"):
        read_rows(source, spec)
    path.unlink()
    with pytest.raises(InputNotFound):
        read_rows(source, spec)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A real HTTP server over a directory: its address, and the directory."""
    directory = tmp_path / "served"
    directory.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(directory))

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/broken":
                return self.send_error(500)
            return super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", directory
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url_is_copied_first(tmp_path: Path, served: tuple[str, Path]) -> None:
    """A URL is copied into scratch and named by its bytes, as the same file beside it is."""
    address, directory = served
    path = write(directory, "rows.csv.gz", gzip.compress(as_csv()))
    remote = snapshot(f"{address}/rows.csv.gz?key=1", scratch=tmp_path)
    assert Path(remote.path).parent == tmp_path
    assert remote.digest == snapshot(str(path), scratch=tmp_path).digest
    path.unlink()
    assert len(read_rows(remote, DatasetSpec(path=address)).rows) == 2


@pytest.mark.parametrize("page, said", [("missing", "missing"), ("broken", "500")])
def test_a_url_that_fails(tmp_path: Path, served: tuple[str, Path], page: str, said: str) -> None:
    """A page that is not there, and a server that fails, are a coded error that says what is known."""
    with pytest.raises(InputNotFound, match=said):
        snapshot(f"{served[0]}/{page}", scratch=tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_an_archive_bomb_is_refused(pack: Callable[[bytes], bytes]) -> None:
    """What unpacks to more than a hundred times its size is not unpacked further; small files may."""
    bomb = pack(bytes(10**7))

    def stream() -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(bomb))

    with pytest.raises(InputValidationFailed, match="more than 100 times"):
        unpacked(stream(), Budget(len(bomb), "bomb", least=1000)).read()
    assert len(unpacked(stream(), Budget(len(bomb), "zeros")).read()) == 10**7


@pytest.mark.parametrize(
    ("url", "chained"),
    [("http://[::1]:8000/a.jsonl", False), ("zip://a::http://h/b", True), ("http://[::1]/a::file:///etc/passwd", True)],
)
def test_a_chain_of_addresses_is_known(url: str, chained: bool) -> None:
    """A host may have an IPv6 address; two addresses in one are none."""
    assert is_chain(url) is chained
