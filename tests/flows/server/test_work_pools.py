"""Runs go to the pool and the queue of what they need."""

import pytest

from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import LineSpec
from flows.server.work_pools import Place, place_of

SPLIT = Settings(queue="gpus", cpu_pool="small", cpu_queue="cpus")
LINE = {"line": "support", "datasets": [{"path": "a.jsonl"}]}


@pytest.mark.parametrize(
    ("config", "flow", "job", "place"),
    [
        (Settings(), "train", None, Place("pool", "default")),
        (Settings(), "rollback", None, Place("pool", "default")),
        (SPLIT, "train", None, Place("pool", "gpus")),
        (SPLIT, "release", None, Place("small", "cpus")),
        (SPLIT, "publish", None, Place("small", "cpus")),
        (Settings(cpu_queue="cpus"), "rollback", None, Place("pool", "cpus")),
        (Settings(cpu_pool="small"), "rollback", None, Place("small", "default")),
        (SPLIT, "retrain", {}, Place("pool", "gpus")),
        (SPLIT, "retrain", {"training": {"device": "cpu"}}, Place("small", "cpus")),
        (SPLIT, "retrain", {"queue": "80-gb"}, Place("pool", "80-gb")),
        (SPLIT, "drift", {"queue": "80-gb"}, Place("pool", "80-gb")),
    ],
)
def test_what_a_run_needs_decides_its_queue(config, flow, job, place):
    """A flow or a line that needs no GPU goes to the place for that, a line that names a queue to it, others as set."""
    spec = None if job is None else LineSpec.model_validate(LINE | job)
    assert place_of(config, "pool", flow, spec) == place
