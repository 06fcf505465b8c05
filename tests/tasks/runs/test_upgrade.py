"""`backprop upgrade`: after a backup what is older is brought up, what is newer is refused."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from backprop_core.errors import FormatNewer, MLflowUnreachable, RunActive
from backprop_core.runtime.settings import Settings
from backprop_core.store import formats
from backprop_core.store.layout import StoreLayout
from tasks import tracking
from tasks.runs import upgrade
from tasks.tracking import connection, schema
from tasks.tracking.journal import Journal

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The home of an earlier tree, without marks of a format."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tarfile.open(FIXTURES / "old_home.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return Settings(home=tmp_path / "old-home")


def contents(root: Path, *, but: str) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith(".lock"))
    named = {path.relative_to(root).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith(but)}


def test_an_old_home_is_marked_after_a_backup(config: Settings) -> None:
    """Home and store get their numbers; a second upgrade has nothing to do."""
    assert len(upgrade.planned(config).changes) == 2
    done = upgrade.upgrade(config)
    assert done.backup and (Path(done.backup) / "home" / "mlflow.db").is_file()
    assert formats.format_of(config.layout.format) == formats.FORMAT
    assert upgrade.upgrade(config).changes == []
    assert len(tracking.list_runs(config, tracking.RunFilter(), limit=10)) >= 4


def test_a_backup_can_be_put_back(config: Settings) -> None:
    """After it was put back, every file but the database's own layout is as it was."""
    before = contents(config.home_path, but="backups/")
    done = upgrade.upgrade(config)
    assert done.backup
    config.layout.mlflow_database.unlink()
    shutil.rmtree(StoreLayout(config.store_path).lines)
    upgrade.put_back(config, Path(done.backup))
    after = contents(config.home_path, but="backups/")
    assert {name for name in before if before[name] != after.get(name)} <= {"mlflow.db"}
    assert set(after) == set(before)
    assert rows(config.layout.mlflow_database) >= 4


def test_an_upgrade_waits_for_who_makes_the_tables(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another command has MLflow's lock nothing is copied or changed; afterwards it is."""
    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    with FileLock(config.layout.mlflow_lock), pytest.raises(MLflowUnreachable, match="creating or upgrading"):
        upgrade.upgrade(config)
    assert not config.layout.backups.exists() and not config.layout.format.exists()
    assert upgrade.upgrade(config).backup


KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA cache_size = 1")
connection.execute("CREATE TABLE more AS SELECT * FROM tags")
connection.commit()
connection.execute("UPDATE more SET value = value || ?", ("x" * 2000,))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_upgrade_of_the_database_is_undone(config: Settings) -> None:
    """SQLite's journal of a process that was killed is not applied to the database that is put back."""
    database, journal = config.layout.mlflow_database, config.layout.mlflow_leftovers[0]
    before = database.read_bytes()
    backup = upgrade.backed_up(config)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(database)])
    assert killed.returncode == -signal.SIGKILL and journal.stat().st_size
    upgrade.put_back(config, backup)
    assert not journal.exists() and connection.damage(database) is None
    assert rows(database) >= 4 and len(database.read_bytes()) == len(before)


def rows(database: Path) -> int:
    with closing(sqlite3.connect(database)) as opened:
        return int(opened.execute("SELECT COUNT(*) FROM runs").fetchone()[0])


@pytest.mark.parametrize("part", ["home", "store"])
def test_what_is_newer_is_refused(config: Settings, part: str) -> None:
    """The error has a code, and nothing is changed."""
    place = config.layout.format if part == "home" else StoreLayout(config.store_path).format
    place.write_text(json.dumps({"format": formats.FORMAT + 1}))
    with pytest.raises(FormatNewer, match=f"has format {formats.FORMAT + 1}"):
        upgrade.upgrade(config)
    assert not config.layout.backups.exists()


def test_a_newer_mlflow_database_is_refused(config: Settings) -> None:
    """Its revision is none that the installed MLflow knows."""
    with closing(sqlite3.connect(config.layout.mlflow_database)) as opened:
        opened.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        opened.commit()
    with pytest.raises(FormatNewer, match="newer MLflow"):
        upgrade.planned(config)


def test_a_home_in_use_is_not_upgraded(config: Settings) -> None:
    """While a run writes its journal, the upgrade waits for another time."""
    with Journal(config.journal_path, "a1" * 16), pytest.raises(RunActive):
        upgrade.upgrade(config)


@pytest.fixture
def old_database(config: Settings) -> Settings:
    """The home's history as MLflow 3.9.0 wrote it."""
    config.layout.mlflow_database.unlink()
    with closing(sqlite3.connect(config.layout.mlflow_database)) as opened:
        opened.executescript((FIXTURES / "mlflow_3_9_0.sql").read_text(encoding="utf-8"))
    return config


def test_tables_of_an_older_mlflow_are_upgraded(old_database: Settings) -> None:
    """Its runs are listed afterwards, and the backup still has the tables as they were."""
    database = old_database.layout.mlflow_database
    before = schema.revision(database)
    assert schema.age(old_database) == "older" and rows(database) == 1
    done = upgrade.upgrade(old_database)
    assert schema.age(old_database) == "current" and rows(database) == 1
    assert done.backup and schema.revision(Path(done.backup) / "home" / "mlflow.db") == before
