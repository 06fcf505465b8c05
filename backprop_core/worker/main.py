"""The worker process, which computes with tensors. Started as `python -m backprop_core.worker.main ORDERS`."""

import importlib
import json
import logging
import os
import queue
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from pydantic import BaseModel

from backprop_core.errors import BackpropError, GPUFault, Unexpected, system_error
from backprop_core.models.devices import visible_gpus
from backprop_core.runtime import garbage, parent_watch
from backprop_core.runtime.log_context import about
from backprop_core.runtime.redaction import blank_logs, blank_secrets
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.worker.client import Orders
from backprop_core.worker.gpu_slot import taken

if TYPE_CHECKING:
    from backprop_core.worker.runner import Runner

stopping = threading.Event()  # set by a signal handler, which takes no argument of ours
stopped = threading.Event()  # the parent has said stop, about the job before its next one
USUAL = (  # what the stages of nearly every run import
    *("training.loop", "merging.strategies", "merging.merge_stats"),
    *("evaluation.scoring", "evaluation.generation", "evaluation.lambda_search"),
)


def main(text: str) -> None:
    """Take the slots of the devices, import the heavy packages, then run jobs until the pipe closes.

    Creates the file `waits` of the orders before it waits for the slots, and the file `ready` when it has them.
    """
    orders = Orders.model_validate_json(text)
    os.dup2(2, 1)  # libraries print to stdout, which is not read
    blank_logs()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    rank = int(os.environ["RANK"]) if orders.processes > 1 else 0  # torchrun's
    if len(orders.slots) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus()[rank]
    if rank == 0:
        lead(orders)
    else:
        follow(orders)


def lead(orders: Orders) -> None:
    """Take the slots of the devices, then run the parent's jobs."""
    jobs: queue.SimpleQueue[Path] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(jobs,), daemon=True).start()
    orders.waits.touch()
    with taken(orders.slots, rests=orders.rests):
        orders.ready.touch()
        runner = prepare(orders)
        while True:
            run(jobs.get(), runner.run, alone=orders.processes == 1)


def follow(orders: Orders) -> None:
    """Take part in every training of the leading process (rank 0)."""
    threading.Thread(target=watch, daemon=True).start()
    runner = prepare(orders)
    while True:
        runner.follow()


def prepare(orders: Orders) -> "Runner":
    """Import the heavy packages, and connect to the other processes."""
    if orders.backend == "unsloth":
        importlib.import_module("unsloth")  # it must be imported before transformers
    garbage.put_off()
    from backprop_core.training.distributed import join
    from backprop_core.worker.runner import Runner

    preload()
    garbage.begin()
    return Runner(Store(orders.root, alone=True), should_stop=should_stop, ranks=join(orders.processes))


def should_stop() -> bool:
    """Whether the job is to stop at its next step."""
    return stopping.is_set() or stopped.is_set()


def preload() -> None:
    """Import in advance what the first training needs."""
    from backprop_core.models.loading import peft_module

    for name in USUAL:
        importlib.import_module(f"backprop_core.{name}")
    importlib.import_module("transformers.modeling_utils")
    importlib.import_module("torch._dynamo")  # the optimizer imports it
    peft_module()


def listen(jobs: "queue.SimpleQueue[Path]") -> None:
    """Queue the parent's jobs, and note when it says stop. Exit at once when the pipe closes."""
    while line := parent_watch.read_line().decode():
        word, _, folder = line.strip().partition(" ")
        if word == "next":
            stopped.clear()
            jobs.put(Path(folder))
        else:
            stopped.set()
    os._exit(0)


def watch() -> None:
    """Exit at once when the parent's pipe closes. Only the leading process reads from it."""
    pipe = select.poll()
    pipe.register(0, 0)  # nothing but the hang-up
    pipe.poll()
    os._exit(0)


Emit = Callable[[dict[str, Any]], None]


class Spoken(logging.Handler):
    """Writes the events of a job. Warnings of the core are events too, and the parent logs them."""

    def __init__(self, file: TextIO) -> None:
        super().__init__(logging.WARNING)
        self._file = file

    def event(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), file=self._file)

    def emit(self, record: logging.LogRecord) -> None:
        self.event({"level": record.levelno, "log": record.getMessage()})

    def __enter__(self) -> Self:
        logging.getLogger("backprop_core").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("backprop_core").removeHandler(self)


def run(folder: Path, stage: Callable[[str, str, dict[str, Any], Emit], BaseModel], *, alone: bool) -> None:
    """Read one job, run it, and write its result last.

    `spent` in the result tells the parent to end this process. It is true after a GPU fault, and after any error when
    several processes train together, because the state of the others is unknown.
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with (
        (folder / "events.jsonl").open("a", encoding="utf-8", buffering=1) as events,
        Spoken(events) as told,
        about(**job["about"]),
    ):
        outcome = attempt(lambda: stage(job["stage"], job["key"], job["parameters"], told.event))
    failed = outcome.get("error")
    outcome["spent"] = failed is not None and (not alone or failed["code"] == GPUFault.code)
    write_atomic(folder / "result.json", json.dumps(outcome))


def attempt(work: Callable[[], BaseModel]) -> dict[str, Any]:
    """The result as JSON, or the error; this is the worker's outermost frame."""
    try:
        return {"ok": work().model_dump(mode="json")}
    except BackpropError as error:
        coded = gpu_fault(error) or error
    except Exception as error:  # noqa: BLE001 - the worker's outermost frame
        coded = gpu_fault(error) or system_error(error) or unexpected(error)
    return {"error": {"code": coded.code, "message": coded.message, "hint": coded.hint}}


def gpu_fault(error: Exception) -> BackpropError | None:
    """The coded error for a CUDA error, even one that another error was raised from; None for any other error.

    After a CUDA error this process cannot use the GPU again.
    """
    origin = error.__cause__ or error
    if isinstance(origin, RuntimeError) and "CUDA error" in str(origin):
        reason = str(origin).partition("\n")[0]
        return GPUFault(reason, hint="run it again; if it happens again, look for Xid in the kernel log")
    return None


def unexpected(error: Exception) -> BackpropError:
    """An unexpected error with its traceback, which is logged too."""
    trace = blank_secrets("".join(traceback.format_exception(error)))
    print(trace, file=sys.stderr, flush=True)
    return Unexpected(f"{type(error).__name__}: {error}", hint=f"please report this:\n{trace}")


if __name__ == "__main__":
    main(sys.argv[1])
