"""Which run, line and stage this process works on, for its log lines. One process works on one run at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

NOTHING: dict[str, str | None] = {"run_id": None, "line": None, "stage": None}
_now = dict(NOTHING)  # module state: threads of libraries log, too


@contextmanager
def about(**known: str | None) -> Iterator[None]:
    """Within the block, log lines are about this `run_id`, `line` or `stage`."""
    before = dict(_now)
    _now.update(known)
    try:
        yield
    finally:
        _now.update(before)


def current() -> dict[str, str | None]:
    """`run_id`, `line` and `stage`; None outside."""
    return dict(_now)
