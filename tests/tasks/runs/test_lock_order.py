"""Locks are taken in one order: nothing that another run may wait for is held out of turn."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.backprop_core import nano
from tests.faults.lock_order import LockOrder

ROUNDS = 4
RUN = """
import os, sys, time
from pathlib import Path
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import RunSpec
from tasks.runs import prestart, worker_process
from tasks.runs.line_state import working_on

place, own, other, base, data, rounds = sys.argv[1:]
for number in range(int(rounds)):
    job = {"model": {"name": base}, "datasets": [{"path": data}], "training": {"device": "cpu"}}
    spec = RunSpec.model_validate({"line": f"line{number}", **job})
    (Path(place) / f"{own}-{number}").touch()
    while not (Path(place) / f"{other}-{number}").exists():
        time.sleep(0.001)
    prestart.start("retrain", spec, fresh=True)
    with working_on(spec.line):
        worker_process.worker(settings(), spec.training).wait_for_slot()
        worker_process.stop()
        (Path(place) / f"{own}-{number}-had").touch()
        notes = Path(os.environ["LOCK_ORDER"])  # the first one keeps the line until the other is seen to wait for it
        while not (Path(place) / f"{other}-{number}-had").exists():
            if notes.is_file() and f"/line-{spec.line}.lock" in notes.read_text():
                break
            time.sleep(0.01)
"""


def test_two_runs_of_one_line_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Whoever has the line gets the device, though the other's worker may have started first; in the stated order."""
    base, order = nano.build(tmp_path / "base"), LockOrder(tmp_path / "order")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nano.chats(20)))
    told = os.environ | order.environment | {"BACKPROPAGATE_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    more = [str(base), str(tmp_path / "a.jsonl"), str(ROUNDS)]
    with ExitStack() as cleanup:
        pair = [
            subprocess.Popen([*command, *names, *more], env=told, stderr=subprocess.PIPE, text=True)
            for names in ("ab", "ba")
        ]
        for one in pair:
            cleanup.callback(one.kill)
        try:
            said = [one.communicate(timeout=240)[1] for one in pair]
        except subprocess.TimeoutExpired:
            pytest.fail("they wait for each other")
    assert [one.returncode for one in pair] == [0, 0], "".join(said)
    assert sum(text.count("another run is working on line") for text in said) >= ROUNDS - 1
    waits = list(order.waits(tmp_path / "home"))
    assert {number for number in range(ROUNDS) for path, _ in waits if path.endswith(f"/line-line{number}.lock")} == {
        *range(ROUNDS)
    }
    assert order.wrong(tmp_path / "home") == []
