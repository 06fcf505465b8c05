"""A signal is not lost where Python drops what its handler raises.

It drops that in the callback of a weak reference and in `__del__`: the import system has such callbacks.
"""

import signal
import sys
import threading
import time
from _thread import interrupt_main, start_new_thread
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from prefect.exceptions import TerminationSignal

SOON = 0.05  # seconds until it is raised again; then the callback has ended


@contextmanager
def raised_again() -> Iterator[None]:
    """Within the block, what a handler of SIGTERM or Ctrl-C raised is raised again where Python had dropped it."""
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread
        yield
        return
    before = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt | TerminationSignal):
            raise_soon(dropped.exc_value)
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def raise_soon(error: BaseException) -> None:
    """Raise it in the main thread, by a handler of SIGINT that stands there until then."""
    before = signal.getsignal(signal.SIGINT)

    def raise_it(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, before)
        raise error

    def interrupt() -> None:
        time.sleep(SOON)
        interrupt_main()

    signal.signal(signal.SIGINT, raise_it)
    start_new_thread(interrupt, ())  # not a Thread: starting one takes locks, which who was interrupted may hold
