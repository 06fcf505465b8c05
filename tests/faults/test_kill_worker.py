"""SIGKILL of the worker at twenty random moments of a training: run again, it ends with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import BinaryIO

import pytest

from backprop_core.worker.client import Orders, child_environment
from tests.faults.small_job import KEY, STEPS, SmallJob

POINTS = 20
FRESH = {1, 3, 17}  # the points whose worker is an interpreter of its own
POLL = 0.0005


@dataclass(frozen=True)
class Running:
    """A worker process: its pid, its stdin, and a way to wait for its exit status."""

    pid: int
    pipe: BinaryIO
    wait: Callable[[], int]


class Nursery:
    """Starts workers forked from a process that has imported everything."""

    def __init__(self, root: Path) -> None:
        self._root, self._number = root, count()
        with (root / "nursery.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=child_environment(),
            )
        assert self._answer() == "ready"

    def start(self, arguments: list[str]) -> Running:
        pipe = self._root / f"stdin-{next(self._number)}"
        os.mkfifo(pipe)
        print(json.dumps({"arguments": arguments, "pipe": str(pipe)}), file=self._process.stdin, flush=True)
        pid = int(self._answer())
        return Running(pid, pipe.open("wb", buffering=0), lambda: int(self._answer()))

    def _answer(self) -> str:
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate()


def start_fresh(arguments: list[str]) -> Running:
    """A worker as its handle starts it."""
    command = [sys.executable, "-m", "backprop_core.worker.main", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=child_environment(), bufsize=0)
    return Running(process.pid, process.stdin, process.wait)


class Work:
    """The job given to one worker: a folder, as `worker.handle` writes it."""

    def __init__(self, job: SmallJob, name: str, start: Callable[[list[str]], Running]) -> None:
        self.folder = job.store.root.parent / name
        self.folder.mkdir(parents=True)
        slot = job.store.root / "locks" / "cpu.lock"
        ready, waits = self.folder / "ready", self.folder / "waits"
        orders = Orders(root=job.store.root, ready=ready, waits=waits, slots=[slot])
        self.worker = start([orders.model_dump_json()])
        text = json.dumps({"stage": "train", "key": KEY, "parameters": job.parameters, "about": {}})
        (self.folder / "job.json").write_text(text)
        self.worker.pipe.write(f"next {self.folder}\n".encode())

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    def marks(self) -> int:
        """Marks that it has passed: one a step, and its result."""
        events = self.folder / "events.jsonl"
        return (events.read_bytes().count(b'"done"') if events.is_file() else 0) + self.done

    def kill(self) -> int:
        os.kill(self.worker.pid, signal.SIGKILL)
        self.worker.pipe.close()
        return self.worker.wait()

    def digest(self) -> str:
        """The adapter's, once it is done; the worker ends."""
        until(lambda: self.done)
        self.worker.pipe.close()
        assert self.worker.wait() == 0
        return json.loads((self.folder / "result.json").read_text())["ok"]["adapter"]["digest"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def uninterrupted(world, nursery, tmp_path_factory) -> tuple[str, list[float]]:
    """Digest of a training that nobody killed, and the seconds that each of its parts took."""
    work = Work(SmallJob(world / "base", tmp_path_factory.mktemp("whole") / "store"), "work", nursery.start)
    began = time.monotonic()
    times = [0.0]
    for mark in range(1, STEPS + 2):
        until(lambda mark=mark: work.marks() >= mark)
        times.append(time.monotonic() - began)
    return work.digest(), [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_at_a_random_moment(world, nursery, uninterrupted, tmp_path, point):
    """Before the first checkpoint, in a save, in the last step, while committing: the unbroken digest, nothing left.

    The moments are spread evenly over the job's parts: up to the first step, each step with the save before it, the
    last save with the commit. In a part they are counted from the mark that it begins with, on a slow machine too.
    """
    digest, seconds = uninterrupted
    moment = (point + random.Random(point).random()) / POINTS * len(seconds)
    part = int(moment)
    job = SmallJob(world / "base", tmp_path / "store")
    killed = Work(job, "killed", start_fresh if point in FRESH else nursery.start)
    until(lambda: killed.marks() >= part)
    time.sleep((moment - part) * seconds[part])
    assert killed.kill() == -signal.SIGKILL
    assert Work(job, "again", nursery.start).digest() == digest
    job.assert_nothing_left()
