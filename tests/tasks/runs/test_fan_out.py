"""What runs ahead of a body is computed once, and handed to it."""

import threading
from contextvars import ContextVar

import pytest
from prefect.states import Completed

from backprop_core.errors import NoRows
from tasks.runs.fan_out import Ahead, Done

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
