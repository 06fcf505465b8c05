"""The child: everything that touches a tensor. Started as `python -m backprop_core.worker.main STORE SLOT READY`."""

import gc
import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TextIO

from filelock import FileLock
from pydantic import BaseModel

from backprop_core.errors import BackpropError, Unexpected, blank_secrets
from backprop_core.store import Store, disk_error, write_atomic

stopping = threading.Event()


def main(root: str, slot: str, ready: str) -> None:
    """Take the device's slot, import what is heavy, then run jobs until the pipe closes.

    The file `ready` appears once the slot is taken.
    """
    os.dup2(2, 1)  # libraries print; nobody reads our stdout
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    jobs: queue.SimpleQueue[Path] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(jobs,), daemon=True).start()
    store = Store(Path(root))
    Path(slot).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(slot):
        Path(ready).touch()
        gc.disable()  # the imports make a million objects that stay
        from backprop_core.worker.stages import Stages

        preload()
        gc.freeze()
        gc.enable()
        stages = Stages(store, should_stop=stopping.is_set)
        while True:
            run(jobs.get(), stages.run)


def preload() -> None:
    """What the first training would import: while nobody waits for it yet."""
    from backprop_core.model import peft_module

    importlib.import_module("transformers.modeling_utils")
    importlib.import_module("torch._dynamo")  # the optimizer asks for it
    peft_module()


def listen(jobs: "queue.SimpleQueue[Path]") -> None:
    """Hand on what the parent says; die at once when the pipe closes."""
    for line in sys.stdin:
        word, _, folder = line.strip().partition(" ")
        if word == "next":
            jobs.put(Path(folder))
        else:
            stopping.set()
    os._exit(0)


Emit = Callable[[dict[str, Any]], None]


class Spoken(logging.Handler):
    """A job's events, and the core's warnings among them: the parent says them where somebody reads."""

    def __init__(self, file: TextIO) -> None:
        super().__init__(logging.WARNING)
        self._file = file

    def event(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), file=self._file)

    def emit(self, record: logging.LogRecord) -> None:
        self.event({"level": record.levelno, "log": blank_secrets(record.getMessage())})

    def __enter__(self) -> Self:
        logging.getLogger("backprop_core").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("backprop_core").removeHandler(self)


def run(folder: Path, stage: Callable[[str, str, dict[str, Any], Emit], BaseModel]) -> None:
    """One job: read it, run it, write its result last."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with (folder / "events.jsonl").open("a", encoding="utf-8", buffering=1) as events, Spoken(events) as told:
        outcome = attempt(lambda: stage(job["stage"], job["key"], job["parameters"], told.event))
    write_atomic(folder / "result.json", json.dumps(outcome))


def attempt(work: Callable[[], BaseModel]) -> dict[str, Any]:
    """The result as JSON, or the error; this is the worker's outermost frame."""
    try:
        return {"ok": work().model_dump(mode="json")}
    except BackpropError as error:
        coded = error
    except Exception as error:  # noqa: BLE001 - the worker's outermost frame
        coded = disk_error(error) or unexpected(error)
    return {"error": {"code": coded.code, "message": coded.message, "hint": coded.hint}}


def unexpected(error: Exception) -> Unexpected:
    """What nobody thought of, with its traceback, which goes to the log too."""
    trace = blank_secrets("".join(traceback.format_exception(error)))
    print(trace, file=sys.stderr, flush=True)
    return Unexpected(blank_secrets(f"{type(error).__name__}: {error}"), hint=f"please report this:\n{trace}")


if __name__ == "__main__":
    main(*sys.argv[1:])
