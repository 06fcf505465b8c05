"""The parent's side of the worker process. No torch here.

A job is a folder: `job.json` from the parent, `events.jsonl` as it goes on, `result.json` last. The pipe to the child's
stdin says "next FOLDER" and "stop"; when it closes, the child ends.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from backprop_core.errors import WorkerDied, rebuild
from backprop_core.store import Store, write_atomic

log = logging.getLogger(__name__)
POLL = 0.01  # seconds between two looks at a running job
Result = TypeVar("Result", bound=BaseModel)
OnEvent = Callable[[dict[str, Any]], None]


class Worker:
    """A child process that runs stages one after another and holds the base between them."""

    def __init__(self, store: Store, *, slot: Path, python: str | None = None) -> None:
        self._store = store
        self._folder = store.scratch("worker")
        self._log = self._folder / "log"
        self._ready = self._folder / "ready"
        places = [str(store.root), str(slot), str(self._ready)]
        command = [python or sys.executable, "-m", "backprop_core.worker.main", *places]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=child_environment()
            )
        self._jobs = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, stage: str, result: type[Result], *, key: str, on_event: OnEvent, **parameters: Any) -> Result:
        """Run one stage and wait for it. Raises what the stage raised, or WorkerDied."""
        job = self._folder / f"{self._jobs:04d}-{stage}"
        self._jobs += 1
        job.mkdir()
        plain = {name: TypeAdapter(type(value)).dump_python(value, mode="json") for name, value in parameters.items()}
        write_atomic(job / "job.json", json.dumps({"stage": stage, "key": key, "parameters": plain}))
        self._say(f"next {job}")
        return result.model_validate(self._wait(job, stage, on_event))

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; whoever waits for its result says so
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _wait(self, job: Path, stage: str, on_event: OnEvent) -> Mapping[str, Any]:
        events = Tail(job / "events.jsonl")
        try:
            self.wait_for_slot()
            while not (job / "result.json").is_file():
                if self._process.poll() is not None and not (job / "result.json").is_file():
                    raise self._death(stage)
                events.drain(on_event)
                time.sleep(POLL)
        except BaseException:  # Ctrl-C, or what Prefect makes of SIGTERM
            self._interrupt(job)
            raise
        events.drain(on_event)
        outcome = json.loads((job / "result.json").read_text(encoding="utf-8"))
        if error := outcome.get("error"):
            raise rebuild(error["code"], error["message"], error["hint"])
        return dict(outcome["ok"])

    def wait_for_slot(self) -> None:
        """Until the child has its device; says so when another run keeps it."""
        began, said = time.monotonic(), False
        while not self._ready.is_file() and self.alive:
            if not said and time.monotonic() - began > 5:
                log.warning("another run uses the device; waiting until it ends")
                said = True
            time.sleep(POLL)

    def _interrupt(self, job: Path, patience: float = 60.0) -> None:
        """Ask the child to stop at its next step boundary and wait until it has saved."""
        self._say("stop")
        deadline = time.monotonic() + patience
        while not (job / "result.json").is_file() and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL)

    def _death(self, stage: str) -> WorkerDied:
        status = self._process.returncode
        how = "was killed (out of memory?)" if status in (-9, 137) else f"ended with status {status}"
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing in its log"]
        return WorkerDied(
            f"the worker process {how} during {stage}: {last[0]}", hint="run it again; it goes on from there"
        )

    def close(self) -> None:
        """End the child; it has nothing to do any more."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._store.sweep()  # what it was writing


class Tail:
    """Reads the events that were added to a file since the last look; what the child says to people is logged here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def drain(self, on_event: OnEvent) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        for line in data[:end].splitlines():
            event = json.loads(line)
            if "log" in event:
                log.log(event["level"], event["log"])
            else:
                on_event(event)


def child_environment() -> dict[str, str]:
    """No bars, no telemetry, no look at the hub for what is on disk, and threads that sleep while they wait.

    Threads that spin instead take the processor from Prefect and from other jobs, who then make them wait.
    """
    defaults = {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "passive",
    }
    return {**defaults, **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
