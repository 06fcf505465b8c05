"""Compares the tables of MLflow's database in the home with those of the installed MLflow, and upgrades them."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Literal

from backprop_core.errors import HistoryDamaged
from backprop_core.runtime.redaction import excerpt
from backprop_core.runtime.settings import Settings
from tasks.tracking.connection import QUIET_AND_QUICK, is_empty, own_uri, prepare

Age = Literal["current", "older", "newer"]


def revision(database: Path) -> str | None:
    """The revision of a database's tables; None if it has none."""
    if is_empty(database):
        return None
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", timeout=5, uri=True)) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError:  # damaged, which `connect` says
        return None
    return str(found[0]) if found else None


def age(settings: Settings) -> Age:
    """How the home's database stands to the installed MLflow; `current` if there is none."""
    found = revision(settings.layout.mlflow_database)
    if found is None:
        return "current"
    prepare()
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(own_uri(settings)))
    if found == scripts.get_current_head():
        return "current"
    return "older" if found in {script.revision for script in scripts.walk_revisions()} else "newer"


def upgrade(settings: Settings) -> None:
    """Bring the home's database to the installed MLflow's tables. Raises HistoryDamaged with what MLflow says."""
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", own_uri(settings)]
    done = subprocess.run(command, env={**os.environ, **QUIET_AND_QUICK}, capture_output=True, text=True)
    if done.returncode:
        last = excerpt((done.stderr.strip().splitlines() or ["it ended without a word"])[-1], 200)
        raise HistoryDamaged(f"MLflow cannot upgrade its database: {last}", hint="the database is as it was")


def copy(database: Path, to: Path) -> None:
    """A copy of a database that others may be writing."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
