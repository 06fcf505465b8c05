"""Reads the rows of one SQL query, from SQLite or PostgreSQL, as sorted JSON lines.

The database itself holds the query to reading: SQLite by its read-only mode and an authorizer that only allows SELECT,
PostgreSQL by a read-only transaction. A query has no order that lasts, so rows are sorted: the same rows are the same
bytes.
"""

import hashlib
import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from backprop_core.errors import AuthRequired, BackpropError, InputNotFound, InputValidationFailed
from backprop_core.runtime.optional_packages import require
from backprop_core.runtime.redaction import blank_address
from backprop_core.schema.field_types import is_sql
from backprop_core.store.cache_keys import canonical

QUERY = re.compile(r"[?&]query=", re.IGNORECASE)
WRITE = "write DATABASE?query=SELECT …, with the query last"
SELECT = "use a single SELECT; the database is only read"
READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
OPTIONS = {"sslmode", "connect_timeout", "application_name"}  # of libpq; others name files and hosts
JSON_TYPES = {b"json", b"jsonb"}
BATCH = 1024  # rows


class Query(NamedTuple):
    """A database's URL, and the SQL to run there."""

    database: str
    sql: str

    @property
    def name(self) -> str:
        """The database as errors name it: without its password."""
        return blank_address(self.database)

    @property
    def file(self) -> Path:
        """The file of an SQLite database: `sqlite:///relative.db`, or `sqlite:////absolute.db`."""
        return Path(unquote(self.database.partition("://")[2].partition("/")[2])).expanduser()


def query_of(url: str) -> Query:
    """Split a URL. SQL with a space is taken as it is written; other SQL is percent-decoded.

    Raises InputValidationFailed if it has no query.
    """
    database, *sql = QUERY.split(url, maxsplit=1)
    if not sql or not sql[0].strip():
        raise InputValidationFailed(f"{blank_address(database)} has no query", hint=WRITE)
    return Query(database, sql[0] if " " in sql[0] else unquote(sql[0]))


def without_password(url: str) -> str:
    """The URL of a query as it may be recorded; other URLs and paths are unchanged."""
    if not is_sql(url):
        return url
    database = QUERY.split(url, maxsplit=1)[0]
    return url.replace(database, re.sub(r"(?<=://)([^/:@]*):[^/]*(?=@)", r"\1", database), 1)


def lines(url: str) -> Iterator[bytes]:
    """The rows of a query as canonical JSON lines, sorted.

    Raises InputNotFound for a database that is not there, AuthRequired, ExtraMissing, AddressForbidden, and
    InputValidationFailed for a query that fails or writes.
    """
    query = query_of(url)
    rows = sqlite_rows(query) if is_sqlite(url) else postgres_rows(query)
    with closing(sqlite3.connect("")) as sorter:  # a temporary file, so that memory does not grow with the rows
        sorter.execute("CREATE TABLE lines (line TEXT)")
        sorter.executemany("INSERT INTO lines VALUES (?)", ((canonical(plain(row)),) for row in rows))
        for (line,) in sorter.execute("SELECT line FROM lines ORDER BY line"):
            yield f"{line}\n".encode()


def state(url: str) -> list[object]:
    """What changes with the rows of a query: size and time of an SQLite database; the digest of a server's rows."""
    query = query_of(url)
    if not is_sqlite(url):
        digest = hashlib.sha256()
        for line in lines(url):
            digest.update(line)
        return [digest.hexdigest()]
    files = [path for path in (query.file, query.file.with_name(f"{query.file.name}-wal")) if path.is_file()]
    if not files:
        raise missing(query)
    return [query.sql, *([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files)]


def missing(query: Query) -> InputNotFound:
    return InputNotFound(f"no such database: {str(query.file)!r}", hint=WRITE)


def is_sqlite(url: str) -> bool:
    return url.lower().startswith("sqlite:")


def plain(value: Any) -> Any:
    """A value as JSON has it: dates and decimals as their text, bytes in hex."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return value.hex()
        case dict():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return str(value)


def sqlite_rows(query: Query) -> Iterator[dict[str, Any]]:
    """The rows of a query on an SQLite file, opened read-only."""
    if not query.file.is_file():
        raise missing(query)
    address = f"file:{quote(str(query.file.absolute()))}?mode=ro"
    with readable(query, sqlite3.Error, sqlite3.Warning), closing(sqlite3.connect(address, uri=True)) as database:
        database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in READS else sqlite3.SQLITE_DENY)
        cursor = database.execute(query.sql)
        names = distinct([column[0] for column in cursor.description or ()], query)
        for row in cursor:
            yield dict(zip(names, row, strict=True))


def postgres_rows(query: Query) -> Iterator[dict[str, Any]]:
    """The rows of a query on a PostgreSQL server, in a read-only transaction, by ADBC in batches."""
    require(("adbc_driver_postgresql",), what="postgresql://", extra="sql")
    from adbc_driver_manager import Error
    from adbc_driver_postgresql.dbapi import connect
    from pyarrow import ArrowException  # type: ignore[import-untyped]

    refuse_options(query)
    with (
        readable(query, Error, ArrowException, OSError),
        connect(query.database) as database,
        database.cursor() as cursor,
    ):
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute(query.sql)  # the server prepares it, which takes one statement only
        reader = cursor.fetch_record_batch()
        names = distinct(reader.schema.names, query)
        documents = [field.name for field in reader.schema if is_json(field)]
        for batch in reader:
            for begin in range(0, batch.num_rows, BATCH):
                for row in batch.slice(begin, BATCH).to_pylist():
                    yield {name: row[name] for name in names} | {name: parsed(row[name]) for name in documents}


def is_json(field: Any) -> bool:
    """Whether a column of PostgreSQL holds JSON."""
    metadata = field.metadata or {}
    return str(field.type).startswith("extension<arrow.json") or metadata.get(b"ADBC:postgresql:typname") in JSON_TYPES


def parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def refuse_options(query: Query) -> None:
    """Raise InputValidationFailed for an option that would open a file or another host, AddressForbidden for a host."""
    from backprop_core.runtime.url_guard import refuse

    parts = urlsplit(query.database)
    if others := {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} - OPTIONS:
        hint = f"known options: {', '.join(sorted(OPTIONS))}"
        raise InputValidationFailed(f"{query.name}: unknown option {min(others)}", hint=hint)
    for host in parts.netloc.rpartition("@")[2].split(","):
        refuse(re.sub(r":\d*$", "", unquote(host)).strip("[]"))


def distinct(names: Sequence[str], query: Query) -> Sequence[str]:
    """The names of the columns. Raises InputValidationFailed if there are none, or two are the same."""
    if not names:
        raise InputValidationFailed(f"{query.name}: the query has no result", hint=SELECT)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputValidationFailed(f"{query.name}: two columns are named {twice[0]!r}", hint="name them with AS")
    return names


@contextmanager
def readable(query: Query, *errors: type[Exception]) -> Iterator[None]:
    """Turn a driver's errors into coded errors."""
    try:
        yield
    except errors as error:
        raise failed(query, " ".join(str(error).split())) from error


def failed(query: Query, why: str) -> BackpropError:
    """The error for what a driver says."""
    if re.search(r"password|authentication|no pg_hba\.conf entry|permission denied", why, re.IGNORECASE):
        hint = "set the user and PGPASSWORD of an account that may read it"
        return AuthRequired(f"{query.name} denies access: {why}", hint=hint)
    if re.search(r"could not translate host|connection refused|Connection to server.*failed", why, re.IGNORECASE):
        return InputNotFound(f"cannot connect to {query.name}: {why}", hint="check the host, the port and the network")
    return InputValidationFailed(f"{query.name}: the query failed: {why}", hint=SELECT)
