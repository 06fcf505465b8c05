"""The store is lost and MLflow is kept. Only where BACKPROP_FAULTS is set, as in `make faults`."""

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.hold import Hold
from tests.faults.test_kill import BACKPROP, assert_nothing_left, command, digests, environment
from tests.faults.test_two_homes import done, started
from tests.wire.prefect_server import wait_until

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults"),
]


def test_a_killed_run_is_resumed_elsewhere_from_mlflow_alone(world: Path, tmp_path: Path) -> None:
    """Killed in the second training, resumed in another home with an empty store: the unbroken run's digests.

    The first training comes from the record, the second goes on from its checkpoint; the files of rows are gone too.
    """
    record = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{world}/record.db",
        "BACKPROPAGATE_MLFLOW_CHECKPOINT_SECONDS": "0",
    }
    hold, quiet = Hold(tmp_path / "hold", training=2), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    unbroken = done(command(world), environment(world, "unbroken"))
    with ExitStack() as killing:
        job = started(killing, command(world), env=environment(world, "lost") | record | hold.environment, **quiet)
        hold.reached(lambda: job.poll() is None)
        copied = "mlruns/*/*/artifacts/checkpoints/*/step-*/artifact.json"
        wait_until(lambda: any((world / "lost").glob(copied)), 300, "checkpoint in MLflow")
    [run] = [path.name for path in (world / "lost" / "store" / "runs").iterdir()]
    shutil.rmtree(world / "lost" / "store")
    shutil.rmtree(world / "lost" / "journal")
    for number in range(3):
        (world / f"task{number}.jsonl").rename(world / f"away{number}")
    resumed = done([*BACKPROP, "resume", run[:10], "--json"], environment(world, "found") | record)
    assert (resumed["run_id"], resumed["status"]) == (run, "finished")
    assert [one["cached"] for one in resumed["runs"]] == [True, False, False]
    assert digests(resumed) == digests(unbroken)
    assert_nothing_left(world / "found" / "store")
    assert not any((world / "lost").glob(copied))
