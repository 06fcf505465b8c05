"""Rows whose contenders are whole processes, from start to exit."""

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.measure import BIN, Row, environment, medians

WARM = "warm run, against an empty recorded flow"
HELP = "help, against an empty interpreter"
HELP_REPEATS = 15


def warm() -> Row:
    """The same `multi-run` again in the home of the first, all of it cached; the temporary Prefect server included."""
    command: list[str | Path] = [BIN / "backprop", *jobs.arguments()]
    empty: list[str | Path] = [sys.executable, "-m", "benchmarks.empty_flow"]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        settings = {"BACKPROPAGATE_HOME": f"{name}/home", "PREFECT_HOME": f"{name}/prefect"}
        run(command, **settings)
        seconds = medians({"warm": partial(cached, command, **settings), "empty": partial(timed, empty, **settings)})
    return Row(WARM, seconds["warm"], seconds["empty"], "a flow that does nothing, recorded in MLflow", "s", "less")


def cached(command: list[str | Path], **settings: str) -> float:
    """Seconds of a run of which nothing is computed; raises AssertionError if something is."""
    began = time.perf_counter()
    result = run(command, **settings)
    seconds = time.perf_counter() - began
    again = [stage["stage"] for stage in result["stages"] if not stage["cached"]]
    assert result["status"] == "finished" and not again, f"not cached: {again}"
    return seconds


def help_() -> Row:
    """`backprop --help`: what every command pays before it begins."""
    turns = {
        "help": partial(timed, [BIN / "backprop", "--help"]),
        "empty": partial(timed, [sys.executable, "-c", "pass"]),
    }
    seconds = medians(turns, repeats=HELP_REPEATS)
    return Row(HELP, seconds["help"], seconds["empty"], "python -c pass", "s", "less", HELP_REPEATS)


def run(command: list[str | Path], **settings: str) -> Any:
    """The JSON that a process prints. Raises CalledProcessError if it fails."""
    own = environment(**settings)
    return json.loads(
        subprocess.run(command, env=own, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    )


def timed(command: list[str | Path], **settings: str) -> float:
    """Wall time of a process. Raises CalledProcessError if it fails."""
    own = environment(**settings)
    began = time.perf_counter()
    subprocess.run(command, env=own, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began
