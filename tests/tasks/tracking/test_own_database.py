"""The list of runs is read from the home's database as MLflow itself would answer, and without MLflow."""

import itertools
import json
import math
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backprop_core.errors import BackpropError, HistoryDamaged
from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import Status
from tasks.runs import doctor
from tasks.tracking import (
    RunFilter,
    artifact_copies,
    connection,
    history,
    list_runs,
    old_names,
    own_database,
    registry,
)
from tasks.tracking.schema import revision

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROLES = ("parent", "child", "curve", "artifacts", None)
STATUSES: tuple[Status, ...] = ("finished", "failed", "running")
BEGAN = 1_700_000_000_000  # ms


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Runs of every role, status and line; some deleted, of another namespace, at one moment, or without a number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = Settings(home=tmp_path_factory.mktemp("home"))
        client = connection.connect(config)
        number = itertools.count()
        for namespace, line in (("backprop", "support"), ("backprop", "billing"), ("other", "support")):
            fill(client, experiment(client, namespace, line), line, number)
        fill(client, gone := experiment(client, "backprop", "gone"), "gone", number)
        client.delete_experiment(gone)
        register(client)
    return config


def register(client: "MlflowClient") -> None:
    """Models of ours, of another namespace, of the same name by others, without an alias and with another."""
    for name, namespace, alias in (
        ("backprop.support", "backprop", "champion"),
        ("backprop.billing", "backprop", "candidate"),
        ("backprop.new", "backprop", None),
        ("backprop.theirs", "elsewhere", "champion"),
        ("other.support", "other", "champion"),
    ):
        client.create_registered_model(name, tags={connection.NAMESPACE: namespace})
        for _ in range(2):
            version = client.create_model_version(name, "file:///adapter").version
        if alias:
            client.set_registered_model_alias(name, alias, version)


def experiment(client: "MlflowClient", namespace: str, line: str) -> str:
    tags = {connection.NAMESPACE: namespace, connection.LINE: line}
    return str(client.create_experiment(f"{namespace}.{line}", tags=tags))


def fill(client: "MlflowClient", into: str, line: str, number: "itertools.count[int]") -> None:
    """A run of each role and status; every seventh is deleted, every fifth has no number for its average."""
    for role, status in itertools.product(ROLES, STATUSES):
        at = next(number)
        tags = {"backprop.run_id": f"{at:032x}", "backprop.root": f"{at:032x}", connection.LINE: line}
        tags |= {"backprop.status": status} | ({"backprop.role": role} if role else {})
        run = client.create_run(into, start_time=BEGAN + 1000 * (at // 3), tags=tags).info.run_id
        if at % 2:
            client.log_metric(run, "average", math.nan if at % 5 == 0 else at / 100)
        if status != "running":
            client.set_terminated(run, end_time=BEGAN + 1000 * at + 500)
        if at % 7 == 6:
            client.delete_run(run)


FILTERS = [
    RunFilter(children=children, line=line, status=status, since=since)
    for children, line, status, since in itertools.product(
        (False, True),
        (None, "support", "billing", "gone", "unknown"),
        (None, *STATUSES, "rejected"),
        (None, datetime.fromtimestamp(BEGAN / 1000 + 8, UTC)),
    )
]


def told(run: own_database.StoredRun) -> tuple[object, ...]:
    """A run so that two are equal when MLflow's are; NaN equals nothing."""
    return (run.tags, {name: str(value) for name, value in run.metrics.items()}, run.start, run.end)


def test_every_filter_finds_what_mlflow_finds(home: Settings) -> None:
    """The same runs with the same tags, metrics and times, in the same order, for every filter and limit."""
    of_mlflow = history.History(home)
    counts = set()
    for wanted, limit in itertools.product(FILTERS, (1, 4, 1000)):
        found = own_database.runs(home, wanted, limit)
        expected = [
            own_database.StoredRun(run.data.tags, run.data.metrics, run.info.start_time, run.info.end_time)
            for run in of_mlflow.runs(wanted.in_mlflow(), limit)
        ]
        assert found is not None and [told(run) for run in found] == [told(run) for run in expected], (wanted, limit)
        counts.add(len(expected))
    assert len(counts) > 6  # the filters tell runs apart


def test_a_metric_without_a_number_is_none(home: Settings) -> None:
    """NaN and infinity, which others may log, are in no JSON, and such a run is listed after those with a figure."""
    client = connection.connect(home)
    endless = own_database.runs(home, RunFilter(line="billing", status="running"), 1)
    assert endless
    found = client.get_experiment_by_name("backprop.billing")
    [run] = client.search_runs(found.experiment_id, f"tags.`backprop.run_id` = '{endless[0].tags['backprop.run_id']}'")
    client.log_metric(run.info.run_id, "average", math.inf)
    averages = [run["average"] for run in list_runs(home, sort="average")]
    known = [each for each in averages if each is not None]
    assert known == averages[: len(known)] == sorted(known, reverse=True) and len(averages) - len(known) > 2
    for every in (list_runs(home), list(history.exported(home, RunFilter()))):
        json.dumps(every, allow_nan=False)


def test_champions_are_those_of_mlflow(home: Settings) -> None:
    """By name, with MLflow's version, for each namespace."""
    client = connection.connect(home)
    for namespace, found in (("backprop", {"backprop.support": "2"}), ("other", {"other.support": "2"}), ("none", {})):
        config = home.model_copy(update={"namespace": namespace})
        assert own_database.champions(config) == registry.aliases(client, config) == found


def test_the_tables_are_those_of_the_installed_mlflow(home: Settings) -> None:
    """Otherwise every list goes through MLflow, which is slow: compare the tables, then change TABLES and COLUMNS."""
    assert revision(home.layout.mlflow_database) == own_database.TABLES
    assert own_database.columns(home.layout.mlflow_database) == own_database.COLUMNS


LIST = """
import sys
from backprop_core.runtime.settings import Settings
from tasks.tracking import list_runs
runs = list_runs(Settings(home=sys.argv[1]))
print(len(runs), *sorted({"mlflow", "sqlalchemy", "pandas", "numpy", "torch", "prefect"} & set(sys.modules)))
"""


def test_a_list_needs_no_mlflow(home: Settings) -> None:
    """Once everything was sent, a list imports nothing that takes seconds."""
    list_runs(home)
    command = [sys.executable, "-c", LIST, str(home.home_path)]
    count, *imported = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(count) == len(list_runs(home)) > 3 and imported == []


def test_tables_of_another_mlflow_are_left_to_it(home: Settings, tmp_path: Path) -> None:
    config = Settings(home=tmp_path)
    database = config.layout.mlflow_database
    database.write_bytes(home.layout.mlflow_database.read_bytes())
    assert own_database.runs(config, RunFilter(), 5) and own_database.is_sound(config)
    with closing(sqlite3.connect(database)) as tables, tables:
        tables.execute("UPDATE alembic_version SET version_num = '000000000000'")
    assert own_database.runs(config, RunFilter(), 5) is None
    assert own_database.champions(config) is None and not own_database.is_sound(config)
    with pytest.raises(HistoryDamaged):
        list_runs(config)


def test_a_damaged_database_is_left_to_mlflow(home: Settings, tmp_path: Path) -> None:
    """Its rows are not read half: the error is the one that names the file."""
    config = Settings(home=tmp_path)
    whole = home.layout.mlflow_database.read_bytes()
    config.layout.mlflow_database.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    assert own_database.runs(config, RunFilter(), 5) is None
    assert own_database.champions(config) is None and not own_database.is_sound(config)
    with pytest.raises(HistoryDamaged):
        list_runs(config)


def test_a_database_that_another_process_writes_is_not_called_sound(home: Settings) -> None:
    with closing(sqlite3.connect(home.layout.mlflow_database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not own_database.is_sound(home)
        other.execute("ROLLBACK")
    assert own_database.is_sound(home)


def test_a_database_that_lacks_a_table_or_column_is_not_called_sound(home: Settings, tmp_path: Path) -> None:
    """Whichever it is: MLflow has to be asked."""
    config = Settings(home=tmp_path)
    database, whole = config.layout.mlflow_database, home.layout.mlflow_database.read_bytes()
    with closing(sqlite3.connect(home.layout.mlflow_database)) as tables:
        every = [name for (name,) in tables.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for name in every:
        database.write_bytes(whole)
        with closing(sqlite3.connect(database, isolation_level=None)) as tables:
            tables.execute(f"DROP TABLE {name}")
        assert not own_database.is_sound(config), name
    assert len(every) > 50
    database.write_bytes(whole)
    with closing(sqlite3.connect(database, isolation_level=None)) as tables:
        tables.execute("ALTER TABLE latest_metrics RENAME COLUMN is_nan TO nan")
    assert not own_database.is_sound(config)
    database.write_bytes(whole)
    assert own_database.is_sound(config)


@pytest.mark.parametrize(
    "change", ["DROP TABLE latest_metrics", "ALTER TABLE latest_metrics RENAME COLUMN is_nan TO nan"]
)
def test_the_doctor_finds_what_a_list_of_runs_needs(home: Settings, tmp_path: Path, change: str) -> None:
    """A database that it calls good lists runs."""
    config = Settings(home=tmp_path)
    database = config.layout.mlflow_database
    database.write_bytes(home.layout.mlflow_database.read_bytes())
    with closing(sqlite3.connect(database, isolation_level=None)) as tables:
        tables.execute(change)
    with pytest.raises(BackpropError):
        list_runs(config)
    assert doctor.mlflow(config).state != "ok"


@pytest.mark.parametrize("since", [datetime(1, 1, 1), datetime(1, 1, 1, tzinfo=UTC), datetime(1960, 1, 1, tzinfo=UTC)])
def test_a_day_before_all_runs_leaves_none_out(home: Settings, since: datetime) -> None:
    """However early it is, here and in MLflow."""
    wanted, every = RunFilter(since=since), RunFilter()
    assert own_database.runs(home, wanted, 1000) == own_database.runs(home, every, 1000)
    of_mlflow = history.History(home)
    found = [[run.info.run_id for run in of_mlflow.runs(each.in_mlflow(), 1000)] for each in (wanted, every)]
    assert found[0] == found[1] and len(found[0]) > 3


def test_searches_go_through_all_pages(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """More lines and copies than fit a page: none is left out in silence."""
    client = connection.connect(home)
    every = connection.experiments(client, home, deleted=True)
    copies = [run.info.run_id for run in artifact_copies.runs_with_copies(client, every)]
    assert len(every) == 3 and len(copies) > 5
    for module in (connection, artifact_copies, old_names, history):
        monkeypatch.setattr(module, "PAGE", 2)
    assert connection.experiments(client, home, deleted=True) == every
    assert [run.info.run_id for run in artifact_copies.runs_with_copies(client, every)] == copies
    assert len(old_names.runs_of(client, every[-1], "support", since=None)) > 5
