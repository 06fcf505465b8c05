"""The one worker of this process: started early or when a stage needs it, ended with the flow run."""

import tempfile
import threading
from pathlib import Path

from backprop_core.devices import visible_gpus
from backprop_core.settings import Settings
from backprop_core.store import Store
from backprop_core.worker.handle import Worker

_guard = threading.Lock()
_worker: Worker | None = None


def worker(settings: Settings, store: Store, device: str) -> Worker:
    """The running worker, started now if there is none."""
    global _worker
    with _guard:
        if _worker is None:
            _worker = Worker(store, slot=slot_of(store, device), python=settings.worker_python)
        return _worker


def running() -> Worker | None:
    """The worker, if one was started."""
    return _worker


def stop() -> None:
    """End the worker, if there is one."""
    global _worker
    with _guard:
        if _worker is not None:
            _worker.close()
            _worker = None


def slot_of(store: Store, device: str) -> Path:
    """The lock file that lets one worker at a time use the device: the store's for a CPU, the machine's for a GPU."""
    if device == "cpu":
        return store.root / "locks" / "cpu.lock"
    return Path(tempfile.gettempdir()) / f"backpropagate-{visible_gpus()[0]}.lock"
