"""Python's search for garbage, put off while many objects are made that stay.

Imports make a million of them, and searching them takes up to a third of a start; of encoding rows it takes a fifth.
There is one collector a process, so it cannot be passed.
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


def young() -> None:
    """Search through what was made since the last search, and never again through what stays of it."""
    gc.collect(0)


@contextmanager
def none() -> Iterator[None]:
    """Search for none while the block runs, which makes objects that stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
