"""No signal is lost in a place where Python drops exceptions."""

import os
import signal
import time
import weakref
from collections.abc import Iterator

import pytest
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import capture_sigterm

from tasks.runs.dropped_signals import raised_again


class Thing:
    """What a weak reference can refer to."""


@pytest.fixture(autouse=True)
def ignored() -> Iterator[None]:
    """SIGTERM and SIGINT do not end pytest; their handlers are as before after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def dropped(number: signal.Signals) -> None:
    """A signal comes in the callback of a weak reference, then there is work for seconds."""

    def callback(_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.01)

    thing = Thing()
    reference = weakref.ref(thing, callback)
    del thing
    assert reference() is None
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, TerminationSignal), (signal.SIGINT, KeyboardInterrupt)], ids=["term", "int"]
)
def test_a_dropped_signal_ends_the_run(number: signal.Signals, error: type[BaseException]) -> None:
    """It is raised a moment later, and the handlers are as they were."""
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(error), capture_sigterm(), raised_again():
        dropped(number)
    assert signal.getsignal(signal.SIGINT) is handler
