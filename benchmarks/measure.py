"""Two contenders in turns: nothing that changes with time, such as a warm disk or a busy neighbour, helps only one."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

REPEATS = 5
BIN = Path(sys.executable).parent
FOREIGN = ("BACKPROPAGATE_", "MLFLOW_", "PREFECT_")  # what the user's environment says is no part of a measurement
CORES = len(os.sched_getaffinity(0))  # threads that torch takes where nothing is set
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TRANSFORMERS_VERBOSITY": "error",
}
Turn = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """Medians of ours and of the other's, in `unit`."""

    name: str
    ours: float
    other: float
    other_name: str
    unit: str
    better: Literal["more", "less"]
    repeats: int = REPEATS

    def document(self) -> dict[str, Any]:
        """As results.json has it."""
        figures = {"ours": rounded(self.ours), "other": rounded(self.other), "ratio": rounded(self.ours / self.other)}
        return {**vars(self), **figures}


def rounded(value: float) -> float:
    """Four digits that mean something."""
    return float(f"{value:.4g}")


def medians(turns: Mapping[str, Turn], *, repeats: int = REPEATS) -> dict[str, float]:
    """The median of each, all taken in turns; the first round only warms up and is not counted."""
    rounds = [{name: turn() for name, turn in turns.items()} for _ in range(repeats + 1)][1:]
    return {name: statistics.median(figures[name] for figures in rounds) for name in turns}


def environment(**settings: str) -> dict[str, str]:
    """For a process that is measured: one thread, nothing of the user's own settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return own | ONE_THREAD | settings


def threads(count: int) -> dict[str, str]:
    """Settings of a process in which torch uses this many: it takes the smaller of the two."""
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


@contextmanager
def cores(count: int) -> Iterator[None]:
    """What this process starts in the block runs on this many cores, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Contender:
    """A process that has everything loaded and takes a turn when it is told to; its side of it is `take_turns`."""

    def __init__(self, module: str, *arguments: str | Path, **settings: str) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # open for as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(**settings),
        )
        self._answer("ready")

    def turn(self) -> dict[str, float]:
        """What it measured in one turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return dict(self._answer("a turn"))

    def _answer(self, wanted: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise ChildProcessError(f"{self._process.args!r} ended with {status} before {wanted}\n{self._log.read()}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._log.close()


@contextmanager
def contenders(*specs: tuple[str, ...], **settings: str) -> Iterator[list[Contender]]:
    """Processes, given as module and arguments, for as long as the block runs."""
    with ExitStack() as cleanup:
        started = []
        for module, *arguments in specs:
            started.append(Contender(module, *arguments, **settings))
            cleanup.callback(started[-1].close)
        yield started


def take_turns(turn: Callable[[], Mapping[str, float]]) -> None:
    """A contender's main loop: a JSON line a turn, until the pipe closes. What libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        print(json.dumps("ready"), file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(turn()), file=answers, flush=True)
