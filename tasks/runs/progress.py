"""Progress events of the current stage, for the command line's progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import Field

from backprop_core.schema.records import Record

QUESTION = "question"  # a stage that asks at the terminal: no progress bar meanwhile


class Progress(Record):
    """`done` of `total` parts of a stage, with its latest metrics. total 0: unknown."""

    stage: str
    done: int
    total: int
    values: dict[str, float] = Field(default_factory=dict)


Listener = Callable[[Progress], None]
_listeners: list[Listener] = []  # Prefect calls the stages, on threads of its own: nothing of ours can be passed


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call `listener` with every event while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report(event: Progress) -> None:
    """Send an event to all listeners."""
    for listener in _listeners:
        listener(event)
