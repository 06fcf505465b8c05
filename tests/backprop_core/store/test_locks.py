"""Who waits for a lock says so, holds nothing that comes after it, and can be stopped."""

import logging
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from backprop_core.errors import Interrupted, RunActive, WorkerStalled
from backprop_core.models import base as bases
from backprop_core.schema.refs import TrainResult
from backprop_core.schema.specs import LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.leases import Lease
from backprop_core.training.stages import train
from backprop_core.worker.client import Worker
from backprop_core.worker.gpu_slot import taken
from tests.backprop_core import nano

SPEC = TrainSpec(steps=2, batch_size=4, precision="fp32", device="cpu", lora=LoraSpec(rank=4))


def is_free(lock: FileLock) -> bool:
    try:
        with lock.acquire(timeout=0):
            return True
    except Timeout:
        return False


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lease_that_is_taken_stops_nobody_else(tmp_path):
    """A run that is worked on elsewhere is refused at once; meanwhile every other run of the store gets its lease."""
    store, raised = Store(tmp_path), []
    first = Lease("a" * 32, store)

    def again() -> None:
        try:
            Lease("a" * 32, Store(tmp_path))
        except RunActive as error:
            raised.append(error)

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    for name in "bcd":
        other = threading.Thread(target=lambda name=name: Lease(name * 32, store).end(finished=True), daemon=True)
        other.start()
        other.join(5)
        assert not other.is_alive()
    thread.join(10)
    assert len(raised) == 1 and "a" * 32 in raised[0].message
    first.end(finished=True)
    Lease("a" * 32, store).end(finished=True)


def test_a_run_says_that_it_waits_for_a_prune(tmp_path, caplog):
    """Before it waits it gives up what it has; after the prune it goes on."""
    store, given_up = Store(tmp_path), []
    with store.lock("prune"):

        def run() -> None:
            Lease("a" * 32, store, before_wait=lambda: given_up.append(1)).end(finished=True)

        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: "the store is being pruned; waiting" in caplog.text)
        assert given_up == [1] and thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_devices_are_taken_in_one_order(tmp_path):
    """A worker of two devices that waits for the first does not hold the second, however they were named to it."""
    first, second, has = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "b.lock"), threading.Event()

    def take() -> None:
        with taken([Path(second.lock_file), Path(first.lock_file)]):
            has.set()

    with first:
        worker = threading.Thread(target=take)
        worker.start()
        time.sleep(0.5)
        assert is_free(second) and not has.is_set()
    worker.join(10)
    assert has.is_set()


@pytest.mark.slow
def test_a_worker_that_does_not_start_is_stalled(tmp_path, warm_python):
    """The stall limit sees a child that never comes to wait for its device; one that waits for it is not stuck."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 100\n")
    python.chmod(0o755)
    slot, store = tmp_path / "slot.lock", Store(tmp_path / "store")
    stuck = Worker(store, slots=[slot], python=str(python), stall_seconds=1)
    with pytest.raises(WorkerStalled, match="during its start"):
        stuck.wait_for_slot()
    stuck.close()
    with FileLock(slot):
        waits = Worker(store, slots=[slot], python=str(warm_python), stall_seconds=5)
        waits.wait_for_slot(time.monotonic() + 6)
        assert waits.alive
    waits.close()


@pytest.mark.slow
def test_a_training_that_another_run_does_is_waited_for(tmp_path, caplog):
    """The wait for a key is no stall, it is said, and a wish to stop ends it."""
    caplog.set_level(logging.WARNING)
    store = Store(tmp_path / "store")
    base = bases.resolve(ModelSpec(name=str(nano.build(tmp_path / "base"))), store)
    job = {"base": base, "rows": nano.commit_rows(store, nano.chats(12)), "spec": SPEC, "start": None}
    worker = Worker(store, slots=[store.root / "locks" / "cpu.lock"], stall_seconds=120)
    results: list[TrainResult] = []
    call = lambda key, **more: worker.call(  # noqa: E731
        train, key=key, on_event=lambda event: None, **job, **more
    )
    call("a" * 64)  # everything is imported and loaded
    worker.stall_seconds = 3
    with store.lock("b" * 64):
        thread = threading.Thread(target=lambda: results.append(call("b" * 64)))
        thread.start()
        until(lambda: "another run does the same training; waiting" in caplog.text)
        time.sleep(4)
        assert thread.is_alive() and not results
    thread.join(60)
    assert len(results) == 1
    with store.lock("c" * 64), pytest.raises(Interrupted):
        call("c" * 64, deadline=time.monotonic() + 0.5)
    worker.close()
