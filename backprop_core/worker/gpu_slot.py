"""The slot of a device: lock files that let one worker at a time use a CPU or a GPU. They are freed when it ends."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

from backprop_core.models.devices import visible_gpus
from backprop_core.store.artifacts import Store


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
            locks.enter_context(FileLock(slot))
        yield
