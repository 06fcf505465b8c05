"""What goes on right now, for whoever shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import Field

from backprop_core.schema.records import Record

QUESTION = "question"  # a stage in which somebody at the terminal is asked: nothing else is drawn there


class Progress(Record):
    """`done` of `total` parts of a stage, with its latest figures. total 0: unknown."""

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
    """Tell all listeners."""
    for listener in _listeners:
        listener(event)
