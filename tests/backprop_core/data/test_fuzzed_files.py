"""Fuzzed rows and bytes of every container: a coded error, or rows that are each kept or dropped by reason."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backprop_core.data.loading import items_of, read_rows, snapshot
from backprop_core.errors import BackpropError
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec

ROWS, FILES = 400, 25  # 10,000 rows a container
TEXTS = [
    "",
    " ",
    "é→日本",
    "a\nb",
    'say "x"',
    "a,b;c\td|e",
    "\ufeff",
    "x" * 300,
    "\u2028",
    "\r",
    "0",
    "NaN",
    "{}",
    "[1",
    "\x1f",
]
VALUES: list[Any] = [
    *TEXTS,
    None,
    True,
    0,
    -1,
    1.5,
    2**70,
    [],
    {},
    [None],
    {"a": None},
    [{"type": "text", "text": "t"}],
]
FIELDS = ["question", "answer", "prompt", "completion", "text", "system", "messages", "weight", "", "id"]
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": None}, {"from": "gpt"}, None, [], "x"]
LINES = [
    b"{",
    b"null",
    b"[]",
    b'{"a": NaN}',
    b'{"a":1,"a":2}',
    b"\xff\xfe",
    b"9" * 5000,
    b'{"text": "\\ud800"}',
    b"\0",
    b"{}x",
]
IN_SECONDS = settings(max_examples=FILES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def row(random: Random) -> dict[str, Any]:
    """A row that is good, or has a field of another name or with another value."""
    made: dict[str, Any] = {"question": random.choice(TEXTS) or "Why?", "answer": random.choice(TEXTS) or "So."}
    while random.random() < 0.4:
        made[random.choice(FIELDS)] = random.choice([*VALUES, [random.choice(TURNS) for _ in range(3)]])
    return made


def texts(random: Random) -> list[dict[str, str | None]]:
    """Rows for a table: of text, or null."""
    return [{name: random.choice([*TEXTS, None]) for name in ("question", "answer", "id")} for _ in range(ROWS)]


def json_lines(random: Random) -> bytes:
    """Lines of which the first is good, as it decides how the file is read."""
    lines = [b'{"question": "Why?", "answer": "So."}']
    lines += [
        json.dumps(row(random)).encode() if random.random() < 0.7 else random.choice(LINES) for _ in range(ROWS - 1)
    ]
    return b"\n".join(lines)


def json_array(random: Random) -> bytes:
    rows = [random.choice(VALUES) if random.random() < 0.1 else row(random) for _ in range(ROWS)]
    return json.dumps(rows, indent=random.choice([None, 1]), ensure_ascii=random.choice([True, False])).encode()


def table(random: Random, separator: str = ",") -> bytes:
    """Records on one line each, of which some have too few or too many cells; others on several lines."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerow(["question", "answer", "id"])
    for record in texts(random):
        cells, count = [*record.values()], random.choice([3, 3, 3, 1, 2, 4])
        torn = [(cell or "").translate({10: " ", 13: " "}) for cell in [*cells, "more"][:count]]
        writer.writerow(cells if count == 3 else torn)
    return file.getvalue().encode()


def plain_text(random: Random) -> bytes:
    return "\n".join(f"{number} {random.choice(TEXTS)!r}" for number in range(ROWS)).encode()


def parquet(random: Random) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nested(random)), file, row_group_size=150)
    return file.getvalue()


def nested(random: Random) -> list[dict[str, Any]]:
    turn = [None, {"role": "user", "content": None}, {"role": "assistant", "content": "So.", "weight": None}]
    lists: list[Any] = [None, [], [None], turn]
    return [{**one, "messages": random.choice(lists), "score": random.choice([None, 1.5])} for one in texts(random)]


def arrow(random: Random, new: Callable[..., Any] = pyarrow.ipc.new_file) -> bytes:
    data, file = pyarrow.Table.from_pylist(nested(random)), io.BytesIO()
    with new(file, data.schema) as writer:
        writer.write_table(data, max_chunksize=150)
    return file.getvalue()


def zstd(data: bytes) -> bytes:
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return bytes(packed.getvalue().to_pybytes())


def zipped(random: Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])) as archive:
        archive.writestr("rows.jsonl", json_lines(random))
    return file.getvalue()


def database(random: Random) -> bytes:
    """An SQLite database with values of all its types."""
    with closing(sqlite3.connect(":memory:")) as made:
        made.execute("CREATE TABLE rows (question, answer, id)")
        made.execute("INSERT INTO rows VALUES ('Why?', 'So.', 0)")
        cells: list[Any] = [*TEXTS, None, 0, -1, 1.5, b"\xff"]
        some = [[random.choice(cells) for _ in range(3)] for _ in range(ROWS - 1)]
        made.executemany("INSERT INTO rows VALUES (?, ?, ?)", some)
        made.commit()
        return made.serialize()


def directory(random: Random) -> dict[str, bytes]:
    """Files of several kinds, with ROWS rows in each."""
    made = {name: CONTAINERS[name](random) for name in ("rows.jsonl", "rows.csv", "rows.parquet", "rows.jsonl.gz")}
    return {name: data for name, data in made.items() if isinstance(data, bytes)}


CONTAINERS: dict[str, Callable[[Random], bytes | dict[str, bytes]]] = {
    "rows.jsonl": json_lines,
    "rows.json": json_array,
    "rows.csv": table,
    "rows.tsv": lambda random: table(random, "\t"),
    "rows.txt": plain_text,
    "rows.parquet": parquet,
    "rows.arrow": arrow,
    "stream.arrow": lambda random: arrow(random, pyarrow.ipc.new_stream),
    "rows.jsonl.gz": lambda random: gzip.compress(json_lines(random), compresslevel=1),
    "rows.jsonl.zst": lambda random: zstd(json_lines(random)),
    "rows.jsonl.bz2": lambda random: bz2.compress(json_lines(random), 1),
    "rows.jsonl.xz": lambda random: lzma.compress(json_lines(random), preset=0),
    "rows.zip": zipped,
    "rows.db": database,
    "directory": directory,
}
FORMATS: dict[str, Any] = {"rows.txt": "text"}


@contextmanager
def written(name: str, data: bytes | dict[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, name)
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            path.mkdir()
            for file, content in data.items():
                (path / file).write_bytes(content)
        yield path


def source_of(path: Path) -> SourceRef:
    """The rows of a container; those of a database by a query."""
    address = f"sqlite:///{path}?query=SELECT * FROM rows" if path.suffix == ".db" else str(path)
    return snapshot(address, scratch=path.parent)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_row_is_kept_or_dropped(name: str) -> None:
    """10,000 rows of a container: as many come out as went in, as chat rows or with a reason."""

    @IN_SECONDS
    @given(st.integers(0, 2**32))
    def law(seed: int) -> None:
        with written(name, CONTAINERS[name](Random(seed))) as path:
            source = source_of(path)
            spec = DatasetSpec(path=str(path), format=FORMATS.get(name, "question-answer"), max_bad_rows=1)
            good, bad = read_rows(source, spec)[:2]
            assert good
            assert len(good) + len(bad) == ROWS * max(1, len(source.files))
            assert len({str(one.place) for one in bad}) == len(bad)

    law()


def fuzzed_in(data: bytes | dict[str, bytes], random: Random) -> bytes | dict[str, bytes]:
    """A file with some bytes changed; one of a directory."""
    if isinstance(data, bytes):
        return fuzzed(data, random)
    name = random.choice(sorted(data))
    return {**data, name: fuzzed(data[name], random)}


def fuzzed(data: bytes, random: Random) -> bytes:
    """Some bytes flipped, cut out, put in twice, or the end cut off."""
    made = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 5, 50])):
        made = made or bytearray(b"0")
        place = random.randrange(len(made)) if random.random() < 0.7 else random.choice([3, -9]) % len(made)
        match random.randrange(5):
            case 0:
                made[place] ^= 1 << random.randrange(8)
            case 1:
                made[place : place + random.randrange(1, 40)] = b""
            case 2:
                made[place:place] = random.choice([*LINES, bytes(8), b'"', b"\n", b"\xff" * 8, data[:30]])
            case 3:
                made[place : place + 4] = random.randbytes(4)
            case _ if random.random() < 0.2:
                made = made[: place + 1]
    return bytes(made)


@pytest.mark.parametrize("name", CONTAINERS)
def test_fuzzed_bytes_are_rows_or_a_coded_error(name: str) -> None:
    """A damaged file gives rows, each with a place of its own, or a coded error that names the file."""
    whole = CONTAINERS[name](Random(1))

    @settings(IN_SECONDS, max_examples=2 * FILES)
    @given(st.integers(0, 2**32))
    def law(seed: int) -> None:
        with written(name, fuzzed_in(whole, Random(seed))) as path:
            try:
                places = [item.place for item in items_of(source_of(path), path.name)]
            except BackpropError as error:
                assert path.name in error.message
            else:
                assert len(set(places)) == len(places)

    law()
