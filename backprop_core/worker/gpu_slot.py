"""The slot of a device: lock files that let one worker at a time use a CPU or a GPU. They are freed when it ends."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

from backprop_core.models.devices import visible_gpus
from backprop_core.store.artifacts import Store
from backprop_core.store.locks import is_acquired, is_held


def slots_of(store: Store, device: str, gpus: int, cpu_slot: int = 0) -> list[Path]:
    """The lock files of a device: the store's for a CPU, by number; the machine's for each of the first `gpus` GPUs."""
    if device == "cpu":
        return [store.layout.lock(f"cpu-{cpu_slot}" if cpu_slot else "cpu")]
    return [Path(tempfile.gettempdir()) / f"backpropagate-{uuid}.lock" for uuid in visible_gpus()[:gpus]]


@contextmanager
def taken(slots: Sequence[Path], *, rests: bool = False) -> Iterator[None]:
    """Hold all slots; waits for each. Takes them in sorted order, so that two workers never wait for each other.

    `rests`: wait as a session of questions does, which ends no other session's answer.
    """
    with ExitStack() as locks:
        for slot in sorted(slots):
            slot.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(acquired(slot, asked(slot) if rests else wanted(slot)))
        yield


def acquired(slot: Path, sign: Path) -> FileLock:
    """The lock of a slot, taken. While it is not free, the lock `sign` beside it says who waits."""
    lock = FileLock(slot)
    if not is_acquired(lock, timeout=0):
        with FileLock(sign):
            lock.acquire()
    return lock


def wanted(slot: Path) -> Path:
    """The lock that a run holds while it waits for a slot."""
    return slot.with_suffix(".wanted.lock")


def asked(slot: Path) -> Path:
    """The lock that a session of questions holds while it waits for a slot."""
    return slot.with_suffix(".asked.lock")


def is_taken(slots: Sequence[Path]) -> bool:
    """Whether a worker has one of these slots."""
    return any(map(is_held, slots))


def is_wanted(slots: Sequence[Path]) -> bool:
    """Whether a run waits for one of these slots."""
    return any(is_held(wanted(slot)) for slot in slots)


def is_asked(slots: Sequence[Path]) -> bool:
    """Whether a session of questions waits for one of these slots."""
    return any(is_held(asked(slot)) for slot in slots)
