"""Python's search for garbage, put off while a process starts.

Imports make a million objects that stay, and searching them takes up to a third of a start. There is one collector a
process, so it cannot be passed.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


def put_off() -> None:
    """Search no more, until `begin`."""
    gc.disable()


def begin() -> None:
    """Search from now on, but never through what is there: what comes now can be long."""
    gc.freeze()
    gc.enable()


def never_at_exit() -> None:
    """Leave the last search out: it would take a second at the end of a long command."""
    atexit.register(gc.freeze)


@contextmanager
def none() -> Iterator[None]:
    """Search for none while the block runs, which imports."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
