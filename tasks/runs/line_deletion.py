"""`backprop line delete`: the records of a line and its job file move aside; artifacts stay until they are pruned."""

from collections.abc import Callable
from pathlib import Path

from backprop_core.lines import deletion
from backprop_core.lines.deletion import DeletedLine
from backprop_core.runtime.settings import Settings
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import nothing


def would_delete(line: str, by: str, config: Settings) -> DeletedLine | None:
    """What deleting a line would remove; None if the store has nothing of it. Raises RunActive."""
    store = Store(config.store_path)
    try:
        deletion.check_idle(line, store)
        return deletion.described(line, by, store) if deletion.has_records(line, store) else None
    finally:
        store.close()


def delete(line: str, by: str, config: Settings, first: Callable[[], None] = nothing) -> DeletedLine | None:
    """Delete a line of the store after `first`; None if the store has nothing of it.

    Raises RunActive, and what `first` raises.
    """
    store = Store(config.store_path)
    try:
        return deletion.delete(line, by, store, first)
    finally:
        store.close()


def set_aside(job: Path) -> Path:
    """Rename a job file, so that it is none any more; returns its new place."""
    number, place = 1, job.with_suffix(".yaml.deleted")
    while place.exists():
        number, place = number + 1, job.with_suffix(f".yaml.deleted-{number + 1}")
    return job.rename(place)
