"""The slot of a device: lock files that let one worker at a time use a CPU or a GPU. They are freed when it ends."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

from backprop_core.models.devices import visible_gpus
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import is_acquired, is_held


def slots_of(store: Store, device: str, gpus: int) -> list[Path]:
    """The lock files of a device: the store's for a CPU, the machine's for each of the first `gpus` GPUs."""
    if device == "cpu":
        return [store.layout.lock("cpu")]
    return [Path(tempfile.gettempdir()) / f"backpropagate-{uuid}.lock" for uuid in visible_gpus()[:gpus]]


@contextmanager
def taken(slots: Sequence[Path]) -> Iterator[None]:
    """Hold all slots; waits for each. Takes them in sorted order, so that two workers never wait for each other."""
    with ExitStack() as locks:
        for slot in sorted(slots):
            slot.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(acquired(slot))
        yield


def acquired(slot: Path) -> FileLock:
    """The lock of a slot, taken. While it is not free, the lock beside it says that it is wanted."""
    lock = FileLock(slot)
    if not is_acquired(lock, timeout=0):
        with FileLock(wanted(slot)):
            lock.acquire()
    return lock


def wanted(slot: Path) -> Path:
    """The lock that is held by who waits for a slot."""
    return slot.with_suffix(".wanted.lock")


def is_taken(slots: Sequence[Path]) -> bool:
    """Whether a worker has one of these slots."""
    return any(map(is_held, slots))


def is_wanted(slots: Sequence[Path]) -> bool:
    """Whether a worker waits for one of these slots."""
    return any(is_held(wanted(slot)) for slot in slots)
