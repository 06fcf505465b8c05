"""Blanks the text of rows in a SQLite database, in all tables, and in the pages that it no longer uses."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from backprop_core.data.row_quotes import Quotes

BATCH = 1000  # rows
PATIENCE = 30  # seconds to wait for another process


def has_quotes(path: Path, quotes: Quotes) -> bool:
    """Whether a database quotes a row. Raises sqlite3.Error."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as database:
        return any(quoting(database, quotes)) or in_pages(path, quotes)


def blank(path: Path, quotes: Quotes) -> bool:
    """Blank all quotes; whether there were any. Raises sqlite3.Error."""
    with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        changes = list(quoting(database, quotes))
        for table, column, row, value in changes:
            database.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (value, row))
        database.execute("COMMIT")
        found = bool(changes) or in_pages(path, quotes)
        if found:  # else what was replaced, now or earlier, stays in pages that are free
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return found


def in_pages(path: Path, quotes: Quotes) -> bool:
    """Whether the bytes of the database or of its log have a quote."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return any(quotes.in_file(file) for file in files if file.is_file())


def quoting(database: sqlite3.Connection, quotes: Quotes) -> Iterator[tuple[str, str, int, Any]]:
    """Table, column, rowid, and the blanked value, of each value with a quote."""
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%WITHOUT ROWID%'")
    for (table,) in tables.fetchall():
        cursor = database.execute(f'SELECT rowid AS _row, * FROM "{table}"')
        columns = [name for name, *_ in cursor.description]
        while rows := cursor.fetchmany(BATCH):
            if not quotes.hits(b"\0".join(as_bytes(value) for row in rows for value in row)):
                continue
            for row in rows:
                for column, value in zip(columns[1:], row[1:], strict=True):
                    if (made := quotes.blanked(as_bytes(value))) != as_bytes(value):
                        yield table, column, row[0], made.decode() if isinstance(value, str) else made


def as_bytes(value: Any) -> bytes:
    match value:
        case str():
            return value.encode(errors="replace")
        case bytes():
            return value
    return b""
