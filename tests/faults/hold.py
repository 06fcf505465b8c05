"""Holds a training in the middle of a checkpoint until it is killed or let go: no test has to be quick enough."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.wire.prefect_server import ROOT, wait_until

# Every Python process of the job runs this first: who renames a third checkpoint into place for the n-th time waits.
SITE = """
import os, sys, time
wanted, held, times = os.environ["HOLD"] + "/wanted", os.environ["HOLD"] + "/held", int(os.environ["HOLD_AT"])
seconds = float(os.environ["HOLD_SECONDS"])
def audit(event, arguments):
    global times
    if event == "os.rename" and str(arguments[1]).endswith("step-000003"):
        times -= 1
        if times == 0 and os.path.exists(wanted):
            os.rename(wanted, held)
            until = time.monotonic() + seconds
            while os.path.exists(held) and time.monotonic() < until:
                time.sleep(0.02)
sys.addaudithook(audit)
"""


class Hold:
    """The first process that comes to step 3 of its `training`-th training is held there, the others are not.

    It goes on by itself after `seconds`, longer than any test waits: none stays that a failing test has left.
    """

    def __init__(self, place: Path, *, training: int, seconds: float = 1800) -> None:
        place.mkdir()
        (place / "sitecustomize.py").write_text(SITE)
        (place / "wanted").touch()
        self._held = place / "held"
        self.environment = {
            "PYTHONPATH": f"{place}{os.pathsep}{ROOT}",
            "HOLD": str(place),
            "HOLD_AT": str(training),
            "HOLD_SECONDS": str(seconds),
            "OMP_NUM_THREADS": "1",
        }

    def reached(self, lives: Callable[[], bool]) -> None:
        """Come back once a training is held; fail if what shall come to it ends before."""
        wait_until(lambda: self._held.exists() or not lives(), 1500, "training that is held")
        assert self._held.exists()

    def let_go(self) -> None:
        self._held.unlink()
