"""A query is a source: its rows in any order, read without a way to write, from SQLite and a real PostgreSQL."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from backprop_core.data.loading import read_rows, snapshot
from backprop_core.data.sql_query import without_password
from backprop_core.errors import (
    AddressForbidden,
    AuthRequired,
    ConfigInvalid,
    InputNotFound,
    InputValidationFailed,
    NoRows,
)
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, RunSpec
from tasks.runs import allowed_paths
from tasks.runs.recorded_spec import without_passwords
from tasks.runs.source_fingerprint import fingerprint
from tasks.runs.sources import refuse_collisions, stem
from tests.wire.prefect_server import free_port

ASKED = "SELECT question, answer FROM faq"
TABLE = "CREATE TABLE faq (id integer, question text, answer text, score real)"
ROWS = [(1, "Wärum?", "So.", 0.5), *[(2, "How → ?", "Thus.", None)] * 2, (3, "it's", "a::b", 2.0)]
PASSWORD = "tr0ub4dor&3-x9"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An SQLite database with one table."""
    path = tmp_path / "my faq.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute(TABLE)
        database.executemany("INSERT INTO faq VALUES (?, ?, ?, ?)", ROWS)
        database.commit()
    return path


def fresh(tmp_path: Path) -> Path:
    """A directory without downloads."""
    scratch = tmp_path / os.urandom(4).hex()
    scratch.mkdir()
    return scratch


def test_a_query_on_a_file(file: Path, tmp_path: Path) -> None:
    """The rows of a query are chat rows, and the same source in any order, with the query encoded or not."""
    written = f"sqlite:///{file}?query={ASKED}"
    encoded = written.replace(ASKED, ASKED.replace(" ", "%20")).replace("my faq", "my%20faq")
    ordered = [f"{written} ORDER BY id {how}" for how in ("ASC", "DESC")]
    sources = [snapshot(url, scratch=fresh(tmp_path)) for url in (written, encoded, *ordered)]
    assert len({source.digest for source in sources}) == 1
    rows = read_rows(sources[0], DatasetSpec(path=written)).rows
    assert sorted(row["messages"][0]["content"] for row in rows) == ["How → ?", "How → ?", "Wärum?", "it's"]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM faq",
        "DROP TABLE faq",
        "SELECT 1; DELETE FROM faq",
        "INSERT INTO faq VALUES (9, 'a', 'b', 1) RETURNING *",
        "WITH x AS (SELECT 1) DELETE FROM faq",
        "PRAGMA writable_schema = 1",
        "PRAGMA table_info(faq)",
        "ATTACH '{other}' AS other",
        "VACUUM INTO '{other}'",
        "CREATE TABLE more AS SELECT * FROM faq",
        "SELECT load_extension('x')",
        "SELECT * FROM nowhere",
        "SELECT answer, answer FROM faq",
        "not SQL",
        "-- nothing",
    ],
)
def test_a_query_that_does_more_than_read(file: Path, tmp_path: Path, sql: str) -> None:
    """What writes, opens another file, or is no single SELECT, is a coded error, and the database stays as it was."""
    before, other = file.read_bytes(), tmp_path / "other.db"
    with pytest.raises(InputValidationFailed, match=r"my faq\.db"):
        snapshot(f"sqlite:///{file}?query={sql.format(other=other)}", scratch=tmp_path)
    assert file.read_bytes() == before
    assert not other.exists()


def test_what_is_no_database(file: Path, tmp_path: Path) -> None:
    """A missing file, a file of something else, a URL without a query, and a query without rows: each has its code."""
    (tmp_path / "not.db").write_text("question,answer\n" * 100)
    for url, error in {
        f"sqlite:///{tmp_path}/none.db?query={ASKED}": InputNotFound,
        f"sqlite:///{tmp_path}/not.db?query={ASKED}": InputValidationFailed,
        f"sqlite:///{file}": InputValidationFailed,
        f"sqlite:///{file}?query=": InputValidationFailed,
    }.items():
        with pytest.raises(error):
            snapshot(url, scratch=tmp_path)
    empty = f"sqlite:///{file}?query={ASKED} WHERE id > 9"
    with pytest.raises(NoRows):
        read_rows(snapshot(empty, scratch=tmp_path), DatasetSpec(path=empty))


def test_a_table_is_a_source_by_name(file: Path) -> None:
    """A query has the database's name as its task, two queries need tasks of their own, and a new row is noticed."""
    url = f"sqlite:///{file}?query=SELECT a/b, '.' FROM x"
    assert stem(url) == "my faq"
    with pytest.raises(ConfigInvalid, match="would both be the task"):
        refuse_collisions([DatasetSpec(path=url), DatasetSpec(path=f"{url}, y")])
    before = fingerprint(DatasetSpec(path=url))
    with closing(sqlite3.connect(file)) as database:
        database.execute("INSERT INTO faq VALUES (4, 'a', 'b', 1)")
        database.commit()
    os.utime(file, (1, 1))
    assert fingerprint(DatasetSpec(path=url)) != before


def test_a_deployed_run_reads_databases_in_allowed_directories(file: Path, tmp_path: Path) -> None:
    """An SQLite file is a file: a deployed run may read it where it may read files."""
    assert allowed_paths.may_read(f"sqlite:///{file}?query={ASKED}", [tmp_path])
    assert not allowed_paths.may_read("sqlite:////etc/secret.db?query=SELECT 1", [tmp_path])
    assert not allowed_paths.may_read(f"sqlite:///{tmp_path}/../x.db?query=SELECT 'a::b'", [tmp_path])
    assert allowed_paths.may_read("postgresql://host/db?query=SELECT a::text FROM b", [tmp_path])


@pytest.mark.parametrize("option", ["host=/tmp", "hostaddr=169.254.169.254", "passfile=/etc/passwd", "sslkey=/x"])
def test_options_that_lead_elsewhere(tmp_path: Path, option: str) -> None:
    """An option of libpq that names a file or another host is refused."""
    pytest.importorskip("adbc_driver_postgresql")
    with pytest.raises(InputValidationFailed, match="unknown option"):
        snapshot(f"postgresql://127.0.0.1/db?{option}&query=SELECT 1", scratch=tmp_path)
    with pytest.raises(AddressForbidden):
        snapshot("postgresql://u@127.0.0.1:5432,169.254.169.254:80/db?query=SELECT 1", scratch=tmp_path)


# PostgreSQL


class Server(NamedTuple):
    """A PostgreSQL server: where it is, and how to ask it as its owner."""

    address: str
    port: int
    ask: Callable[[str], str]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A real server with one table. PostgreSQL does not run as root: as root it runs as Debian's user postgres."""
    if not all(map(shutil.which, ("initdb", "postgres", "psql"))):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("adbc_driver_postgresql")
    place, port = (
        Path(tempfile.mkdtemp(prefix="postgres-")),
        free_port(),
    )  # pytest's directories are for their owner alone
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    secret = place / "secret"
    secret.write_text(PASSWORD)
    if as_user:
        for path in (place, secret):
            shutil.chown(path, "postgres")
    data = ["-D", str(place / "db")]
    setup = ["initdb", "--username=owner", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync", *data]
    subprocess.run([*as_user, *setup], check=True, capture_output=True, cwd=place)
    command = [*as_user, "postgres", *data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(statement: str) -> str:
        asked = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "owner", "-d", "postgres", "-tAc", statement]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        return subprocess.run(asked, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    try:
        until = time.monotonic() + 30
        while subprocess.run(["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
            assert time.monotonic() < until
            time.sleep(0.1)
        ask(TABLE)
        for number, question, answer, score in ROWS:
            quoted = question.replace("'", "''")
            ask(f"INSERT INTO faq VALUES ({number}, '{quoted}', '{answer}', {'NULL' if score is None else score})")
        yield Server(f"127.0.0.1:{port}/postgres", port, ask)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(place)


def test_a_query_on_a_server(server: Server, tmp_path: Path) -> None:
    """Rows, with dates, numbers, nulls and JSON documents, are the same source in any order."""
    sql = (
        "SELECT question, answer, score AS points, 7 AS seven, 1.10::numeric AS price, 'NaN'::float8 AS nan,"
        " '2026-01-02 03:04:05+00'::timestamptz AS at, ARRAY[1, NULL] AS list, '\\x00ff'::bytea AS raw FROM faq"
    )
    urls = [f"postgresql://owner:{PASSWORD}@{server.address}?query={sql} ORDER BY id {how}" for how in ("ASC", "DESC")]
    sources = [snapshot(url, scratch=fresh(tmp_path)) for url in urls]
    assert sources[0].digest == sources[1].digest
    assert len(read_rows(sources[0], DatasetSpec(path=urls[0], max_bad_rows=1))[0]) == len(ROWS)
    first = Path(sources[0].path).read_text().splitlines()[0]
    assert '"list":[1,null]' in first and '"price":"1.10"' in first and '"raw":"00ff"' in first
    assert PASSWORD not in sources[0].model_dump_json()


def test_a_password_is_not_recorded(server: Server, tmp_path: Path) -> None:
    """The spec that a run commits has the query and the user, and no password; what it names is found again."""
    url = f"postgresql://owner:{PASSWORD}@{server.address}?query=SELECT 'a:b@c' AS question"
    spec = RunSpec(
        datasets=[DatasetSpec(path=url, heldout=url)], evaluation=EvaluationSpec(watch=[DatasetSpec(path=url)])
    )
    recorded = without_passwords(spec)
    assert PASSWORD not in recorded.model_dump_json()
    assert recorded.datasets[0].path == recorded.datasets[0].heldout == url.replace(f":{PASSWORD}", "")
    for other in ("http://u:p@host/a?query=b", "data/a.jsonl", "sqlite:///a:b@c.db?query=SELECT 1", "OWNER/NAME"):
        assert without_password(other) == other


def test_chat_rows_of_a_json_column(server: Server, tmp_path: Path) -> None:
    """A column of JSON is read as the document that it is."""
    messages = '[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]'
    for kind in ("json", "jsonb"):
        url = f"postgresql://owner:{PASSWORD}@{server.address}?query=SELECT '{messages}'::{kind} AS messages"
        assert len(read_rows(snapshot(url, scratch=tmp_path), DatasetSpec(path=url)).rows[0]["messages"]) == 2


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM faq",
        "DELETE FROM faq RETURNING *",
        "WITH gone AS (DELETE FROM faq RETURNING *) SELECT * FROM gone",
        "SELECT 1; COMMIT; DELETE FROM faq",
        "SELECT set_config('transaction_read_only', 'off', false) FROM faq",
        "SELECT 1) TO PROGRAM 'touch /tmp/x'; --",
        "COPY faq TO '/tmp/backprop-never'",
        "DROP TABLE faq",
        "SELECT * INTO other FROM faq",
        "SELECT * FROM nowhere",
    ],
)
def test_a_query_that_writes_to_a_server(server: Server, tmp_path: Path, sql: str) -> None:
    """The transaction is read-only: what writes is a coded error without the password, and the table stays."""
    with pytest.raises(InputValidationFailed) as caught:
        snapshot(f"postgresql://owner:{PASSWORD}@{server.address}?query={sql}", scratch=tmp_path)
    assert PASSWORD not in str(caught.value)
    assert server.ask("SELECT count(*) FROM faq") == str(len(ROWS))


def test_access_to_a_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No password, a wrong one, no server and no such database are coded errors; PGPASSWORD is used."""
    bare = f"postgresql://owner@{server.address}?query=SELECT question, answer FROM faq"
    monkeypatch.delenv("PGPASSWORD", raising=False)
    for url, error in {
        bare: AuthRequired,
        bare.replace("owner@", "owner:wr0ng-secret-9@"): AuthRequired,
        bare.replace(str(server.port), str(free_port())): InputNotFound,
        bare.replace("owner@", f"owner:{PASSWORD}@").replace("/postgres?", "/other?"): InputNotFound,
    }.items():
        with pytest.raises(error) as caught:
            snapshot(url, scratch=tmp_path)
        assert "wr0ng-secret-9" not in str(caught.value) and PASSWORD not in str(caught.value)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert snapshot(bare, scratch=tmp_path).digest
    before = fingerprint(DatasetSpec(path=bare))
    server.ask("UPDATE faq SET answer = answer || '' WHERE id = 1")
    assert fingerprint(DatasetSpec(path=bare)) == before
