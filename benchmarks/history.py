"""Listing the newest of many runs. `python -m benchmarks.history ours|bare` is a contender."""

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks import jobs
from benchmarks.measure import BIN, Row, contenders, medians, take_turns
from benchmarks.processes import run

NAME = "history at 10,000 runs, against a bare query"
LARGE = "history at 100,000 runs, against a bare query"
RUNS, PAGE, REPEATS = {NAME: 10_000, LARGE: 100_000}, 50, 15
ONE = 1 + len(jobs.TASKS)  # MLflow runs of one multi-run: itself and its LoRA runs
RUN_COLUMNS = {  # what names a run, by table
    "runs": ["run_uuid"],
    "tags": ["run_uuid"],
    "params": ["run_uuid"],
    "metrics": ["run_uuid"],
    "latest_metrics": ["run_uuid"],
    "inputs": ["input_uuid", "destination_id"],
}
COPIES = "SELECT run_uuid FROM tags WHERE key = 'backprop.role' AND value = 'artifacts'"  # one of a line, not of a run
RUN_TAGS = ("backprop.run_id", "backprop.root", "mlflow.parentRunId")


def against_query(row: str) -> Row:
    """`list_runs` of 50 parents among the runs of a row, against one page of 50 by MLflow's own client."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        settings = {"BACKPROPAGATE_HOME": f"{name}/home", "PREFECT_HOME": f"{name}/prefect"}
        run([BIN / "backprop", *jobs.arguments()], **settings)
        multiply(Path(name) / "home" / "mlflow.db", RUNS[row])
        with contenders(("benchmarks.history", "ours"), ("benchmarks.history", "bare"), **settings) as [ours, bare]:
            turns = {"ours": lambda: ours.turn()["seconds"], "bare": lambda: bare.turn()["seconds"]}
            seconds = medians(turns, repeats=REPEATS)
    return Row(row, seconds["ours"], seconds["bare"], "MlflowClient.search_runs of 50", "s", "less", REPEATS)


def multiply(path: Path, runs: int) -> None:
    """Make so many runs of the four of one real multi-run: the same rows under other ids, each a minute older."""
    with closing(sqlite3.connect(path)) as database, database:
        for table, ids in RUN_COLUMNS.items():
            columns = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")]
            values = ", ".join(expression(table, column, ids) for column in columns)
            database.execute(
                f"WITH RECURSIVE copies(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copies WHERE n < ?) "
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table}, copies "
                f"WHERE {ids[-1]} NOT IN ({COPIES})",
                [runs // ONE - 1],
            )
        count = database.execute(f"SELECT count(*) FROM runs WHERE run_uuid NOT IN ({COPIES})").fetchone()[0]
    assert count == runs, count


def expression(table: str, column: str, ids: list[str]) -> str:
    """A column of the n-th copy: ids begin with n instead of their first six digits, times are n minutes earlier."""
    other_id = "printf('%06x', n) || substr({}, 7)".format
    if column in ids:
        return other_id(column)
    if table == "tags" and column == "value":
        return f"CASE WHEN key IN {RUN_TAGS} THEN {other_id(column)} ELSE value END"
    return f"{column} - 60000 * n" if table == "runs" and column in ("start_time", "end_time") else column


# The contenders


def ours() -> Callable[[], int]:
    """As `backprop list-runs` asks."""
    from backprop_core.runtime.settings import settings
    from tasks import tracking

    return lambda: len(tracking.list_runs(settings(), tracking.RunFilter(), limit=PAGE))


def bare() -> Callable[[], int]:
    """The newest of the experiment, parents or not."""
    from backprop_core.runtime.settings import settings
    from tasks.tracking.connection import prepare, tracking_uri

    prepare()
    from mlflow import MlflowClient

    def page() -> int:
        client = MlflowClient(tracking_uri=tracking_uri(settings()))
        return len(client.search_runs(["1"], max_results=PAGE))

    return page


def main(side: str) -> None:
    """Take turns; each has to find its 50 runs."""
    query = {"ours": ours, "bare": bare}[side]()

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        found = query()
        seconds = time.perf_counter() - began
        assert found == PAGE, found
        return {"seconds": seconds}

    take_turns(turn)


if __name__ == "__main__":
    main(sys.argv[1])
