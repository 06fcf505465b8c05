"""Forks worker processes from one that has imported everything: a start costs milliseconds instead of seconds.

`python -m tests.faults.nursery` reads a line of JSON for each: the worker's arguments, and a FIFO for its stdin. It
answers with the worker's pid, and with its exit status once it has ended.
"""

import gc
import importlib
import json
import os
import sys
from pathlib import Path

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from backprop_core.worker import main

IMPORTS = [
    "backprop_core.worker.runner",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora.bnb",
    "peft.utils.transformers_weight_conversion",
]


def nurse() -> None:
    """Until stdin closes."""
    gc.disable()  # as the worker does while it imports
    for name in IMPORTS:
        importlib.import_module(name)
    main.preload()
    get_checkpoint_conversion_mapping("llama")  # a table that is made once a process
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            work(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)  # taking everything down again would take seconds


def work(arguments: list[str], pipe: Path) -> None:
    """Be a worker, with the FIFO for stdin."""
    os.dup2(os.open(pipe, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0)
    main.main(*arguments)


if __name__ == "__main__":
    nurse()
