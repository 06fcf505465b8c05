"""Every row, measured now: a table on stdout, and `benchmarks/results.json`.

python -m benchmarks.run [--only NAME]
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import (
    bucket,
    checkpoints,
    convert,
    curation,
    flow,
    history,
    pages,
    processes,
    quantize,
    serving,
    tokenizing,
    trackers,
    training,
)
from benchmarks.measure import Row

RESULTS = Path(__file__).parent / "results.json"
ROWS: dict[str, Callable[[], Row]] = {
    training.BEST: training.against_best,
    training.DEFAULTS: training.against_defaults,
    training.BEST + training.TWO_THREADS: partial(training.against_best, count=2),
    training.DEFAULTS + training.TWO_THREADS: partial(training.against_defaults, count=2),
    training.MEMORY: training.peak_memory,
    training.REAL: training.real_speed,
    training.REAL_MEMORY: training.real_memory,
    checkpoints.NAME: checkpoints.against_none,
    flow.NAME: flow.against_core,
    processes.WARM: processes.warm,
    processes.HELP: processes.help_,
    convert.NAME: convert.against_copy,
    convert.MEMORY: convert.memory,
    quantize.NAME: quantize.against_llama_cpp,
    **curation.ROWS,
    tokenizing.NAME: tokenizing.against_map,
    tokenizing.NAME + tokenizing.TWO_THREADS: partial(tokenizing.against_map, 2),
    history.NAME: partial(history.against_query, history.NAME),
    history.LARGE: partial(history.against_query, history.LARGE),
    trackers.NAME: trackers.against_mlflow,
    bucket.NAME: bucket.against_transfer,
    pages.NAME: pages.against_query,
    serving.UP: serving.until_up,
    serving.IDLE: serving.memory,
    serving.JOB: serving.through_serve,
    serving.FIRST: serving.to_first_task,
}


def main() -> None:
    """Measure, print each row as it comes, keep them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure every row.")
    parser.add_argument("--only", metavar="NAME", default="", help="rows whose name has this in it; the others stay")
    wanted = [name for name in ROWS if parser.parse_args().only in name]
    if not wanted:
        parser.error("no such row; there are:\n" + "\n".join(ROWS))
    kept = {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.is_file() else {}
    for name in wanted:
        row = ROWS[name]()
        kept[name] = row.document()
        print(line(row), flush=True)
    documents = [kept[name] for name in ROWS if name in kept]
    RESULTS.write_text(json.dumps(documents, indent=1) + "\n", encoding="utf-8")


def line(row: Row) -> str:
    """A row of the table."""
    figures = f"{row.ours:>12.4g} {row.other:>12.4g} {row.unit:<9} {row.ours / row.other:>7.3f}"
    return f"{row.name:<64} {figures} ({row.better} is better; against {row.other_name})"


if __name__ == "__main__":
    main()
