"""What grows with lines and artifacts, for docs/scale.md: `python -m benchmarks.scale lines|artifacts N`.

`lines`: a home with N job files on a Prefect server of its own: a look at the files, the first deployment, and one that
changes nothing. `artifacts`: a store with N artifacts of 1 kB: what a prune would delete, and a check of all.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

JOB = 'datasets: [{path: /data/night.jsonl}]\nschedule: {cron: "0 3 * * *"}\n'


def timed(what: str, work: Callable[[], object]) -> None:
    began = time.monotonic()
    work()
    print(f"{what}: {time.monotonic() - began:.2f} s", flush=True)


def lines(count: int, home: Path) -> None:
    """Job files, and their deployments."""
    from prefect.testing.utilities import prefect_test_harness

    from backprop_core.runtime.settings import Settings
    from flows.cli import lines_file
    from flows.server.line_files import LineFiles
    from flows.server.watch import watching

    (home / "lines").mkdir()
    for number in range(count):
        (home / "lines" / f"line-{number:04}.yaml").write_text(JOB)
    config = Settings(home=home, namespace="scale")
    timed("a look at the job files", lambda: lines_file.states(config))
    timed("reading the job files", lambda: lines_file.every(config))
    with prefect_test_harness(server_startup_timeout=300), watching([]) as watches:
        files = LineFiles(config, "scale", watches)
        timed("first deployment", files.update)
        (home / "lines" / "line-0000.yaml").touch()
        timed("deployment without a change", files.update)


def artifacts(count: int, home: Path) -> None:
    """A store of small artifacts that nothing names."""
    from backprop_core.runtime.settings import Settings
    from backprop_core.schema.refs import RowsRef
    from backprop_core.store.artifacts import Store
    from tasks.runs.prune import prune
    from tasks.runs.store_check import check

    config = Settings(home=home, keep_days=0)
    store = Store(config.store_path)

    def fill() -> None:
        for number in range(count):
            with store.begin("rows") as directory:
                (directory / "rows.jsonl").write_text(f'{{"number": {number:0900}}}\n')
                store.commit(directory, RowsRef, rows=1, record={})

    timed("commits", fill)
    timed("what a prune would delete", lambda: prune(config, dry_run=True))
    timed("check", lambda: check(config))


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as place:
        {"lines": lines, "artifacts": artifacts}[sys.argv[1]](int(sys.argv[2]), Path(place))
