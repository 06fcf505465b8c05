"""The one worker of this process: started early or when a stage needs it, ended with the flow run."""

import re
import subprocess
import threading
from functools import cache
from pathlib import Path

from backprop_core.errors import UnslothNotAvailable, UnslothTooOld
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import Backend, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.worker.client import Worker
from backprop_core.worker.gpu_slot import slots_of

INSTALL = (
    "make an environment for it (python -m venv unsloth; unsloth/bin/pip install unsloth), and set "
    "BACKPROPAGATE_UNSLOTH_PYTHON=unsloth/bin/python; or train with training.backend=transformers"
)
UNSLOTH = "2026.9.14"  # oldest release that trains rightly: see `backprop_core.training.unsloth`
IMPORT = "from importlib.metadata import version; print(version('unsloth'), flush=True); import unsloth"
_guard = threading.Lock()
_running: tuple[Worker, Store] | None = None
_is_early = False


def start_early(config: Settings, training: TrainSpec) -> None:
    """Start the worker before a stage needs it, unless Dask has the workers. Until one does, `give_up` ends it."""
    global _is_early
    if config.fan_out:
        return
    worker(config, training)
    _is_early = True


def give_up() -> None:
    """End a worker that no stage has used yet. It holds a device while its run must wait for something else."""
    if _is_early:
        stop()


def worker(config: Settings, training: TrainSpec, stage: str = "evaluate", *, rests: bool = False) -> Worker:
    """The running worker; started now if there is none, or the last one has died or is not for this stage.

    `rests`: it waits for its device as `gpu_slot.taken` says of sessions.
    Unsloth changes transformers for the whole process, so its worker only trains. Raises UnslothNotAvailable.
    """
    global _running, _is_early
    backend = training.backend if stage == "train" else "transformers"
    with _guard:
        if _running and not (_running[0].alive and _running[0].backend == backend):
            _end()
        if _running is None:
            store = Store(config.store_path)
            handle = Worker(
                store,
                slots=slots_of(store, training.device, training.processes, config.cpu_slot),
                rests=rests,
                python=interpreter(config, backend),
                backend=backend,
                processes=training.processes,
                stall_seconds=config.stall_seconds,
            )
            _running = handle, store
        _is_early = False
        return _running[0]


def is_running() -> bool:
    """Whether a worker is running."""
    return _running is not None


def interpreter(config: Settings, backend: Backend) -> str | None:
    """The Python of a worker; None: this one. Raises UnslothNotAvailable, UnslothTooOld."""
    if backend == "transformers":
        return config.worker_python
    if config.unsloth_python is None:
        raise UnslothNotAvailable("training.backend=unsloth, and BACKPROPAGATE_UNSLOTH_PYTHON is not set", hint=INSTALL)
    version, problem = unsloth_in(config.unsloth_python)
    if problem:
        raise UnslothNotAvailable(f"{config.unsloth_python} cannot import unsloth: {problem}", hint=INSTALL)
    if numbers(version) < numbers(UNSLOTH):
        raise UnslothTooOld(
            f"{config.unsloth_python} has unsloth {version}; {UNSLOTH} or newer is needed",
            hint=f"{config.unsloth_python} -m pip install --upgrade unsloth unsloth_zoo",
        )
    return str(config.unsloth_python)


@cache
def unsloth_in(python: Path) -> tuple[str, str]:
    """The release of Unsloth that an interpreter has, and why it cannot import it; empty if it can."""
    try:
        done = subprocess.run([python, "-c", IMPORT], capture_output=True, text=True)
    except OSError as error:
        return "", str(error)
    version = (done.stdout.splitlines() or [""])[0]
    if done.returncode == 0 or (version and numbers(version) < numbers(UNSLOTH)):
        return version, ""
    return version, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]


def numbers(version: str) -> list[int]:
    """`2026.9.14` as numbers, to compare."""
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def stop() -> None:
    """End the worker, if there is one."""
    with _guard:
        _end()


def _end() -> None:
    global _running, _is_early
    if _running:
        handle, store = _running
        handle.close()
        store.close()
        _running, _is_early = None, False
