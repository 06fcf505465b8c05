"""What runs ahead of a body is computed once, and handed to it."""

import threading
from contextvars import ContextVar
from pathlib import Path

import pytest
from prefect.states import Completed

from backprop_core.errors import NoRows
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import TrainSpec
from backprop_core.store.artifacts import Store
from tasks.runs.fan_out import Ahead, Done
from tests.backprop_core import nano

DONE = Done(Completed(), 1.0, [])
HERE = ContextVar("HERE", default="")


def test_two_who_ask_at_once_share_one_computation():
    """The second waits for the first; both have its result, and who asks after the body had it computes again."""
    ahead, asked, go, computed = Ahead(), threading.Event(), threading.Event(), []

    def compute() -> Done:
        computed.append(threading.current_thread().name)
        asked.set()
        assert go.wait(10)
        return DONE

    ahead.begin([lambda: ahead.share("key", compute)])
    assert asked.wait(10)
    threading.Timer(0.05, go.set).start()
    assert ahead.share("key", compute) is DONE and len(computed) == 1
    ahead.forget("key")
    assert ahead.share("key", compute) is DONE and len(computed) == 2
    ahead.close()


def test_an_error_comes_to_all_who_ask():
    """It is raised in the thread that ran ahead, which ends, and in the body."""
    ahead, ran = Ahead(), threading.Event()

    def fail() -> Done:
        ran.set()
        raise NoRows("nothing", hint="give rows")

    ahead.begin([lambda: ahead.share("key", fail)])
    assert ran.wait(10)
    with pytest.raises(NoRows):
        ahead.share("key", lambda: DONE)
    ahead.close()


def test_what_runs_ahead_sees_the_context_of_the_body():
    """Prefect finds the flow run there."""
    ahead, seen, done = Ahead(), [], threading.Event()
    HERE.set("body")
    ahead.begin([lambda: (seen.append(HERE.get()), done.set())])
    assert done.wait(10) and seen == ["body"]
    ahead.close()


def test_what_a_dask_worker_makes_is_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of an artifact names the run for which a worker has made it."""
    distributed = pytest.importorskip("distributed")
    from tasks.runs.dask_worker import Order, work

    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path))
    store = Store(settings().store_path)
    rows = nano.commit_rows(store, nano.chats(5))
    about = {"run_id": "a1" * 16, "line": "support", "stage": "first"}
    order = Order("first", TrainSpec(), 60.0, "topic", False, about)
    cluster = distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        made = client.submit(work, order, {"rows": rows, "most": 2}).result(timeout=60)
    assert store.record(made.digest)["run_id"] == about["run_id"]
