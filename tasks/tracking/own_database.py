"""Reads MLflow's database in the home without MLflow, whose import takes two seconds.

Only the tables of one revision are read. Anything else is left to MLflow: a server, other tables, a damaged database.
"""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from backprop_core.runtime.settings import Settings
from backprop_core.store.cache_keys import digest_of
from tasks.tracking.connection import NAMESPACE, damage, is_own, try_database
from tasks.tracking.run_filter import RunFilter
from tasks.tracking.schema import revision

TABLES = "dc11669786a5"  # as MLflow 3.17 makes them
COLUMNS = "4a37122115a3"  # digest of their names and of those of their columns
RUNS = """
SELECT runs.run_uuid, runs.start_time, runs.end_time FROM runs
JOIN experiments ON experiments.experiment_id = runs.experiment_id AND experiments.lifecycle_stage = 'active'
JOIN experiment_tags ON experiment_tags.experiment_id = runs.experiment_id AND key = ? AND value = ?
WHERE runs.lifecycle_stage = 'active' AND {condition}
ORDER BY runs.start_time DESC, runs.run_uuid LIMIT ?
"""
CHAMPIONS = """
SELECT aliases.name, aliases.version FROM registered_model_aliases AS aliases
JOIN registered_model_tags AS tags ON tags.name = aliases.name AND tags.workspace = aliases.workspace
WHERE alias = 'champion' AND key = ? AND value = ? AND aliases.workspace = 'default'
"""

NAMES = """
SELECT tables.name, columns.name FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns
WHERE tables.type = 'table'
"""


class StoredRun(NamedTuple):
    """A run as MLflow has it; times in milliseconds since 1970."""

    tags: dict[str, str]
    metrics: dict[str, float]  # the last values
    start: int
    end: int | None


def runs(settings: Settings, wanted: RunFilter, limit: int) -> list[StoredRun] | None:
    """The newest runs that match, newest first; None if MLflow has to be asked."""
    try:
        with opened(settings) as database:
            return list(_runs(database, settings.namespace, wanted, limit))
    except sqlite3.Error:
        return None


def champions(settings: Settings) -> dict[str, str] | None:
    """The champion version of each of our registered models, by name; None if MLflow has to be asked."""
    try:
        with opened(settings) as database:
            found = database.execute(CHAMPIONS, [NAMESPACE, settings.namespace])
            return {name: str(version) for name, version in found if name.startswith(f"{settings.namespace}.")}
    except sqlite3.Error:
        return None


def is_sound(settings: Settings) -> bool:
    """Whether runs are recorded in the home's database, which can be written and is not damaged."""
    path = settings.layout.mlflow_database
    if not is_own(settings) or revision(path) != TABLES:
        return False
    try:
        try_database(path)
        return columns(path) == COLUMNS and damage(path) is None
    except (sqlite3.Error, OSError):
        return False


def columns(path: Path) -> str:
    """What tells the tables of a database from others: a digest of their names and of those of their columns."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=2, uri=True)) as database:
        return digest_of(sorted(database.execute(NAMES).fetchall()))[:12]


@contextmanager
def opened(settings: Settings) -> Iterator[sqlite3.Connection]:
    """The database, to read. Raises sqlite3.Error if MLflow has to be asked: its own error is what the user sees."""
    path = settings.layout.mlflow_database
    if not is_own(settings) or revision(path) != TABLES:
        raise sqlite3.NotSupportedError(f"{path} has no tables of revision {TABLES}")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=2, uri=True)) as database:
        yield database


def _runs(database: sqlite3.Connection, namespace: str, wanted: RunFilter, limit: int) -> Iterator[StoredRun]:
    condition, values = wanted.in_sql()
    for run, start, end in database.execute(
        RUNS.format(condition=condition), [NAMESPACE, namespace, *values, limit]
    ).fetchall():
        tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run]))
        last = database.execute("SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?", [run])
        metrics = {key: math.nan if is_nan else value for key, value, is_nan in last}
        yield StoredRun(tags, metrics, start, end)
