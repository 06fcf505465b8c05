"""The parent's side of the worker process. No torch here.

A job is a folder. The parent writes `job.json`; the child appends to `events.jsonl` and writes `result.json` last.
Through the child's stdin the parent sends "next FOLDER" and "stop". The child ends when that pipe closes.
"""

import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any, TypeVar

from pydantic import BaseModel

from backprop_core.errors import WorkerDied, WorkerStalled, rebuild
from backprop_core.runtime import log_context, subprocesses
from backprop_core.runtime.settings import USER_OFFLINE
from backprop_core.runtime.subprocesses import POLL
from backprop_core.schema.records import Record
from backprop_core.schema.specs import Backend
from backprop_core.stages import Stage
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.locks import REMINDER

log = logging.getLogger(__name__)
MAIN = "backprop_core.worker.main"
SLOWER, SLOWEST = 0.01, 0.1  # a stage that has run for 10 s is asked every 0.1 s: looking takes time from training
Result = TypeVar("Result", bound=BaseModel)
OnEvent = Callable[[dict[str, Any]], None]


class Orders(Record):
    """The only command-line argument of a worker, as JSON."""

    root: Path
    waits: Path
    ready: Path
    slots: list[Path]
    rests: bool = False
    processes: int = 1
    backend: Backend = "transformers"


class Worker:
    """A child process that runs stages one after another and keeps the base in memory between them.

    It takes the lock files `slots` first, with `rests` as a session does. A job without an event for `stall_seconds` is
    stuck; 0 turns that check off.
    With several `processes`, torchrun starts them: the first is the worker, the others help it train.
    """

    def __init__(
        self,
        store: Store,
        *,
        slots: Sequence[Path],
        rests: bool = False,
        python: str | None = None,
        processes: int = 1,
        backend: Backend = "transformers",
        stall_seconds: float = 0,
    ) -> None:
        self.backend, self.stall_seconds, self.slots = backend, stall_seconds, list(slots)
        self._grace = 10.0 if processes == 1 else 40.0  # seconds to end by itself; torchrun waits 30 for the others
        self._store = store
        self._folder = store.scratch("worker")
        self._log = self._folder / "log"
        self._waits, self._ready = self._folder / "waits", self._folder / "ready"
        orders = Orders(
            root=store.root,
            waits=self._waits,
            ready=self._ready,
            slots=list(slots),
            rests=rests,
            processes=processes,
            backend=backend,
        )
        command = [python or sys.executable, *torchrun(processes), "-m", MAIN, orders.model_dump_json()]
        with self._log.open("wb") as log:
            self._process = subprocesses.start(
                command,
                stdin=PIPE,
                stdout=log,
                stderr=log,
                env=child_environment() | (importable(self._folder) if python else {}),
                start_new_session=processes > 1,  # Ctrl-C is for us: torchrun would end the others
            )
        self._jobs = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def has_device(self) -> bool:
        """Whether it holds its slots."""
        return self._ready.is_file()

    def call(
        self, stage: Stage[Result], *, key: str, on_event: OnEvent, deadline: float = math.inf, **parameters: Any
    ) -> Result:
        """Run one stage and wait for its result. At `deadline` (in `time.monotonic()`), ask a training to stop.

        Raises the stage's own error (Interrupted if it stopped), WorkerDied, or WorkerStalled.
        """
        job = self._folder / f"{self._jobs:04d}-{stage.name}"
        self._jobs += 1
        job.mkdir()
        plain = stage.job(**parameters).model_dump(mode="json")
        given = {"stage": stage.name, "key": key, "parameters": plain, "about": log_context.current()}
        write_atomic(job / "job.json", json.dumps(given))
        self._say(f"next {job}")
        return stage.result.model_validate(self._wait(job, stage.name, on_event, deadline))

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; waiting for its result reports that
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _wait(self, job: Path, stage: str, on_event: OnEvent, deadline: float) -> Mapping[str, Any]:
        events = Tail(job / "events.jsonl")
        try:
            self.wait_for_slot(deadline)
            waited = 0.0  # counted in our own polls, so time in which parent and child are both suspended is left out
            began = time.monotonic()
            while not (job / "result.json").is_file():
                if not self.alive and not (job / "result.json").is_file():
                    raise self._death(stage)
                pause = min(POLL + (time.monotonic() - began) * SLOWER, SLOWEST)
                waited = 0.0 if events.drain(on_event) else waited + pause
                if 0 < self.stall_seconds < waited:
                    raise self._stall(stage)
                if time.monotonic() > deadline:
                    self._say("stop")
                    deadline = math.inf
                time.sleep(pause)
        except BaseException:  # Ctrl-C, or what Prefect makes of SIGTERM
            self._interrupt(job)
            raise
        events.drain(on_event)
        outcome = json.loads((job / "result.json").read_text(encoding="utf-8"))
        if outcome.get("spent"):
            self.close()
        if error := outcome.get("error"):
            raise rebuild(error["code"], error["message"], error["hint"])
        return dict(outcome["ok"])

    def wait_for_slot(self, deadline: float = math.inf, patience: float = math.inf) -> None:
        """Wait until the child has its device, or until the deadline; log a reminder while another run uses it.

        `patience`: seconds for which another run may use the device; the child's start does not count.
        Raises WorkerStalled if the child does not begin to wait for the device.
        """
        began = started = time.monotonic()
        reminder = began + 5
        while not self.has_device and self.alive and time.monotonic() < deadline:
            waited = time.monotonic() - began
            if not self._waits.is_file():
                started = time.monotonic()
                if 0 < self.stall_seconds < waited:
                    raise self._stall("its start")
            elif time.monotonic() - started > patience:
                return
            elif time.monotonic() > reminder:
                reminder = time.monotonic() + REMINDER
                log.warning("another run uses the device; waiting until it ends (%.0f s so far)", waited)
            time.sleep(POLL)

    def _interrupt(self, job: Path, patience: float = 60.0) -> None:
        """Ask the child to stop at its next step boundary and wait until it has saved."""
        self._say("stop")
        deadline = time.monotonic() + patience
        while not (job / "result.json").is_file() and self.alive and time.monotonic() < deadline:
            time.sleep(POLL)

    def _death(self, stage: str) -> WorkerDied:
        status = self._process.returncode
        how = "was killed (out of memory?)" if status in (-9, 137) else f"exited with status {status}"
        lines = self._log.read_text(errors="replace").splitlines()
        last = [line.strip() for line in lines if line.strip(" =-")][-1:] or ["nothing in its log"]
        return WorkerDied(
            f"the worker process {how} during {stage}: {last[0]}", hint="run it again to continue from there"
        )

    def _stall(self, stage: str) -> WorkerStalled:
        """End a child that makes no progress; returns the error to raise."""
        self._process.terminate()
        self._end()
        return WorkerStalled(
            f"the worker process made no progress for {self.stall_seconds:g} s during {stage} and was killed",
            hint="run it again to continue from there; BACKPROPAGATE_STALL_SECONDS sets the time limit",
        )

    def close(self) -> None:
        """Close the child's pipe and wait until it has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._end()
        self._store.sweep()  # removes what it had not finished writing

    def _end(self) -> None:
        """Wait until the child ends; kill it if that takes too long."""
        if not subprocesses.ends(self._process, within=self._grace):
            self._process.kill()
            subprocesses.ends(self._process)


def importable(folder: Path) -> dict[str, str]:
    """Environment for another interpreter: it can import a copy of this package, and no other package from here."""
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def torchrun(processes: int) -> list[str]:
    """Arguments for Python that start several processes of a module on this machine; none for one process."""
    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}"]
    return ["-m", "torch.distributed.run", *options] if processes > 1 else []


class Tail:
    """Reads the events that were added to a file since the last read. Logs the child's warnings."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def drain(self, on_event: OnEvent) -> bool:
        """Pass new events to `on_event`; returns whether there were any."""
        if not self._path.is_file():
            return False
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
        return end > 0


def child_environment() -> dict[str, str]:
    """The child's environment: no progress bars, no telemetry, no request to the Hub, threads that sleep as they wait.

    Threads that spin instead would take the CPU from Prefect and from other jobs.
    """
    defaults = {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "passive",
    }
    fixed = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    return {**defaults, **os.environ, **fixed, USER_OFFLINE: os.environ.get("HF_HUB_OFFLINE", "")}
