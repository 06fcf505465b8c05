"""Brings a home, its store and its MLflow database to this version, after a backup of what is changed."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from backprop_core.errors import BackpropError, FormatNewer, RunActive
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store import formats
from backprop_core.store.layout import StoreLayout
from tasks.tracking import connection, schema
from tasks.tracking.journal import is_written

HOME, STORE = "home", "store"


class Upgrade(Record):
    """What an upgrade changes, and where the backup is."""

    changes: list[str]
    backup: str | None = None


def planned(config: Settings) -> Upgrade:
    """What is older than this version. Raises FormatNewer if anything is newer."""
    return Upgrade(changes=list(changes(config)))


def changes(config: Settings) -> Iterator[str]:
    home, store = config.layout, StoreLayout(config.store_path)
    for mark in (home.format, store.format):
        formats.check(mark)
        if mark.parent.is_dir() and not mark.exists():
            yield f"{mark}: note format {formats.FORMAT}"
    match schema.age(config):
        case "newer":
            raise FormatNewer(
                f"{home.mlflow_database} was written by a newer MLflow",
                hint="install that version of MLflow, or put back the backup of its upgrade",
            )
        case "older":
            yield f"{home.mlflow_database}: upgrade MLflow's tables"


def upgrade(config: Settings) -> Upgrade:
    """Back up what is changed, then change it. If that fails, everything is as it was.

    Raises FormatNewer, RunActive, HistoryDamaged, MLflowUnreachable.
    """
    if not planned(config).changes:
        return Upgrade(changes=[])
    with connection.alone(config):
        plan = planned(config)  # another upgrade may have ended while this one waited
        return carried_out(plan, config) if plan.changes else plan


def carried_out(plan: Upgrade, config: Settings) -> Upgrade:
    """Do what is planned, while no other process makes or changes the tables of MLflow's database."""
    refuse_active(config)
    backup = backed_up(config)
    try:
        if schema.age(config) == "older":
            schema.upgrade(config)
        for mark in (config.layout.format, StoreLayout(config.store_path).format):
            if mark.parent.is_dir():
                formats.mark(mark)
    except (BackpropError, OSError):
        put_back(config, backup)
        raise
    return Upgrade(changes=plan.changes, backup=str(backup))


def refuse_active(config: Settings) -> None:
    """Raise RunActive while a run is active."""
    journals = config.layout.journal
    for path in journals.root.glob("*.jsonl"):
        if is_written(journals, path.stem):
            raise RunActive(f"run {path.stem} is active", hint="wait until it ends, or stop it")


def backed_up(config: Settings) -> Path:
    """A directory with the database, the journals, the job files and the store's lines as they are."""
    home, store = config.layout, StoreLayout(config.store_path)
    place = home.backups / datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    (place / HOME).mkdir(parents=True, mode=0o700)
    if home.mlflow_database.is_file():
        schema.copy(home.mlflow_database, place / HOME / home.mlflow_database.name)
    for path in (home.journal.root, home.jobs, home.users, home.format):
        keep(path, home.root, place / HOME)
    for path in (store.lines, store.format):
        keep(path, store.root, place / STORE)
    return place


def keep(path: Path, root: Path, to: Path) -> None:
    """Copy a file or a directory to the same place below `to`."""
    target = to / path.relative_to(root)
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns("*.lock"))
    elif path.is_file():
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copy2(path, target)


def put_back(config: Settings, backup: Path) -> None:
    """Copy a backup over what there is, and remove the marks that it does not have.

    What SQLite has left of a killed upgrade goes too: it would apply that to the database that is put back.
    """
    if (backup / HOME / config.layout.mlflow_database.name).is_file():
        for path in config.layout.mlflow_leftovers:
            path.unlink(missing_ok=True)
    for part, root in ((HOME, config.home_path), (STORE, config.store_path)):
        if (backup / part).is_dir():
            shutil.copytree(backup / part, root, dirs_exist_ok=True)
    for part, mark in ((HOME, config.layout.format), (STORE, StoreLayout(config.store_path).format)):
        if not (backup / part / mark.name).exists():
            mark.unlink(missing_ok=True)
