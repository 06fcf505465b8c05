"""Two processes that train one run together, on a CPU: the run of one process, and none of them outlives the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from backprop_core.errors import CheckpointInvalid, NoRows, WorkerDied
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models import base as bases
from backprop_core.models.loading import load
from backprop_core.schema.refs import TrainResult
from backprop_core.schema.specs import EarlyStopping, LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.distributed import ALONE, Ranks
from backprop_core.training.loop import train
from backprop_core.training.stages import train as train_stage
from backprop_core.worker.client import Worker
from tests.backprop_core import nano
from tests.backprop_core.worker.test_worker import is_alive

SPEC = TrainSpec(
    steps=6,
    batch_size=7,
    learning_rate=1e-2,
    precision="fp32",
    device="cpu",
    checkpoint_seconds=0,
    lora=LoraSpec(rank=4, alpha=8),
)
NO = {"role": "assistant", "content": "no!"}
TWO = SPEC.model_copy(update={"processes": 2})


class Place:
    """A store with a base and rows, and workers of two processes."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "store")
        self.path = nano.build(root / "base")
        base = bases.resolve(ModelSpec(name=str(self.path)), self.store)
        self.rows = nano.commit_rows(self.store, nano.chats(24))
        self.job = {"base": base, "rows": self.rows, "start": None}
        self.workers: list[Worker] = []

    def start(self) -> Worker:
        slot = self.store.root / f"{len(self.workers)}.lock"
        self.workers.append(Worker(self.store, slots=[slot], processes=2))
        return self.workers[-1]

    def train(self, worker: Worker, spec: TrainSpec, key: str, on_event=lambda event: None, **more) -> TrainResult:
        return worker.call(train_stage, key=key, on_event=on_event, spec=spec, **self.job, **more)

    def train_alone(self, key: str, on_metrics, heldout=None, **fields) -> TrainResult:
        """The training of SPEC in this process."""
        base = load(self.path, precision="fp32", device="cpu")
        options = {"start": None, "store": self.store, "should_stop": lambda: False, "on_metrics": on_metrics}
        return train(base, self.rows, spec=SPEC.model_copy(update=fields), key=key, heldout=heldout, **options)

    def tensors(self, result: TrainResult) -> adapters.Tensors:
        return adapters.read_adapter(self.store.local(result.adapter)).tensors


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("ranks"))
    yield place
    for worker in place.workers:
        worker.close()
    place.store.close()


@pytest.fixture(scope="module")
def two(place) -> Worker:
    return place.start()


def test_the_examples_of_a_step_are_dealt_out():
    """Every example goes to one process, the longest ones to different ones; alone a process has them all."""
    lengths = [5, 90, 7, 80, 6]
    assert [Ranks(rank, 2).share(range(5), lengths) for rank in (0, 1)] == [[1, 2, 0], [3, 4]]
    assert sorted(ALONE.share(range(5), lengths)) == list(range(5))


def test_two_processes_train_as_one(place, two):
    """The loss of every step, and the adapter, equal those of one process on the same batches, but for rounding."""
    alone, together = [], []
    first = place.train_alone("one", lambda step, total, values: alone.append(values))
    second = place.train(two, TWO, "two", lambda event: together.append(event["values"]))
    for single, double in zip(alone, together, strict=True):
        assert double == pytest.approx(single, rel=1e-5)
        assert double["loss"] == pytest.approx(single["loss"], abs=1e-6)
    expected, tensors = place.tensors(first), place.tensors(second)
    assert max((tensors[name] - expected[name]).abs().max() for name in expected) < 1e-5
    assert torch.stack([tensor.abs().max() for tensor in expected.values()]).min() > 1e-3


def test_two_processes_stop_at_the_same_step(place, two):
    """Each scores its share of the held-out rows: the curve, the best step and the adapter are those of one process."""
    stopping = {"steps": 16, "learning_rate": 2e-2, "early_stopping": EarlyStopping(eval_steps=2, patience=2)}
    heldout = nano.commit_rows(place.store, [{"messages": [*row["messages"][:1], NO]} for row in nano.chats(9)])
    alone, together = [], []
    first = place.train_alone("stops", lambda *seen: alone.append(seen[-1]), heldout=heldout, **stopping)
    spec = TWO.model_copy(update=stopping)
    second = place.train(two, spec, "stops too", lambda event: together.append(event["values"]), heldout=heldout)
    curves = [[values["heldout_loss"] for values in each if "heldout_loss" in values] for each in (alone, together)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert second.steps == first.steps < 16
    assert (second.kept.step, second.kept.planned) == (first.kept.step, 16)
    assert second.kept.loss == min(curves[1])


def test_one_process_alone_does_not_go_on_with_the_checkpoint_of_two(place, two):
    """How many processes train is part of the fingerprint."""
    place.train(two, TWO, "three")
    with pytest.raises(CheckpointInvalid, match="processes was 2, is 1"):
        place.train_alone("three", print)


def test_two_others_go_on_to_the_same_bits_where_one_of_two_was_killed(place, two):
    """The out-of-memory killer takes the second process: coded, retryable, and all of that worker ends.

    With dropout, whose generators are each process's own, and with steps that have too few examples for two.
    """
    spec = TWO.model_copy(update={"steps": 40, "batch_size": 1, "lora": LoraSpec(rank=4, alpha=8, dropout=0.3)})
    whole, done = place.train(two, spec, "whole"), []

    def kill(event) -> None:
        if event["done"] == 3:
            [helper] = [pid for pid in children(two.pid) if b"\0RANK=1\0" in environment(pid)]
            os.kill(helper, signal.SIGKILL)

    with pytest.raises(WorkerDied) as caught:
        place.train(two, spec, "killed", kill)
    assert caught.value.retryable
    again, nothing = place.start(), nano.commit_rows(place.store, [])
    assert place.train(again, spec, "killed", lambda event: done.append(event["done"])).adapter == whole.adapter
    assert 1 < done[0] < done[-1] == 40
    with pytest.raises(NoRows):
        again.call(train_stage, key="no", on_event=print, spec=spec, **place.job | {"rows": nothing})
    assert not again.alive


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


PARENT = """
import sys, time
from pathlib import Path
from backprop_core.store.artifacts import Store
from backprop_core.worker.client import Worker
root = Path(sys.argv[1])
worker = Worker(Store(root), slots=[root / "lock"], processes=2)
worker.wait_for_slot()
print(worker.pid, flush=True)
time.sleep(60)
"""


def test_nothing_outlives_the_parent(tmp_path):
    """SIGKILL of the parent: torchrun and both processes are gone, and the device is free."""
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        launcher = int(parent.stdout.readline())
        family = [Path("/proc") / str(pid) for pid in [launcher, *children(launcher)]]
        assert len(family) == 3
        parent.kill()
    deadline = time.monotonic() + 30
    while any(is_alive(process) for process in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [process for process in family if is_alive(process)]
    with FileLock(tmp_path / "lock", timeout=0):
        pass
