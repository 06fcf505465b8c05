"""The one worker of this process: started early or when a stage needs it, ended with the flow run."""

import tempfile
import threading
from pathlib import Path

from backprop_core.devices import visible_gpus
from backprop_core.settings import Settings
from backprop_core.store import Store
from backprop_core.worker.handle import Worker

_guard = threading.Lock()
_running: tuple[Worker, Store] | None = None


def worker(config: Settings, device: str) -> Worker:
    """The running worker; started now if there is none, or if the last one has died."""
    global _running
    with _guard:
        if _running and not _running[0].alive:
            _end()
        if _running is None:
            store = Store(config.store_path)
            _running = Worker(store, slot=slot_of(store, device), python=config.worker_python), store
        return _running[0]


def stop() -> None:
    """End the worker, if there is one."""
    with _guard:
        _end()


def _end() -> None:
    global _running
    if _running:
        handle, store = _running
        handle.close()
        store.close()
        _running = None


def slot_of(store: Store, device: str) -> Path:
    """The lock file that lets one worker at a time use the device: the store's for a CPU, the machine's for a GPU."""
    if device == "cpu":
        return store.root / "locks" / "cpu.lock"
    return Path(tempfile.gettempdir()) / f"backpropagate-{visible_gpus()[0]}.lock"
