"""Watches every Python process of a job: who waits for a lock notes which ones its run holds meanwhile."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests.wire.prefect_server import ROOT

# A FileLock polls; its second attempt that fails is a wait. Two looks at a lock, by two FileLocks, are none. The run is
# the process with its worker, above or below it.
SITE = """
import fcntl, json, os, sys
original, failed, seen = fcntl.flock, {}, []
def run():
    import psutil
    own = psutil.Process()
    words = getattr(sys, "orig_argv", [])
    above = [own.ppid()] if "backprop_core.worker.main" in words else []
    return {own.pid, *above, *(child.pid for child in own.children(recursive=True))}
def held():
    pids = run()
    with open("/proc/locks") as locks:
        for line in locks:
            words = line.split()
            if words[1] == "FLOCK" and int(words[4]) in pids:
                yield int(words[5].split(":")[2])
def flock(file, operation):
    path = os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")
    frame = sys._getframe(1)
    while frame and not hasattr(frame.f_locals.get("self"), "lock_file"):
        frame = frame.f_back
    seen.append(frame and frame.f_locals["self"])  # so that no other FileLock has its id
    waiter = path, id(seen[-1])
    try:
        result = original(file, operation)
    except OSError:
        failed[waiter] = failed.get(waiter, 0) + 1
        if failed[waiter] == 2:
            with open(os.environ["LOCK_ORDER"], "a") as notes:
                notes.write(json.dumps({"waits_for": path, "holds": sorted(held())}) + "\\n")
        raise
    failed.pop(waiter, None)
    return result
fcntl.flock = flock
"""
ORDER = [
    r"/locks/line-.*",
    r"/journal/[0-9a-f]{32}",
    r"/locks/prune",
    r"/leases/.*",
    r"/locks/cpu",
    r"/locks/[0-9a-f]{64}",
]


class LockOrder:
    """Notes of the waits of processes that have its `environment`."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        (place / "sitecustomize.py").write_text(SITE)
        self._notes = place / "notes.jsonl"
        self.environment = {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "LOCK_ORDER": str(self._notes)}

    def waits(self, home: Path) -> Iterator[tuple[str, list[str]]]:
        """What was waited for, and the locks below `home` that were held meanwhile."""
        names = {path.stat().st_ino: str(path) for path in home.rglob("*.lock")}
        for line in self._notes.read_text().splitlines() if self._notes.is_file() else []:
            note = json.loads(line)
            yield note["waits_for"], [names[inode] for inode in note["holds"] if inode in names]

    def wrong(self, home: Path) -> list[tuple[str, list[str]]]:
        """Waits of those who hold a lock that comes later."""
        return [
            (path, later)
            for path, held in self.waits(home)
            if (later := [one for one in held if comes_later(one, path)])
        ]


def comes_later(held: str, awaited: str) -> bool:
    """Whether a lock that is held comes after one that is waited for."""
    places = [rank(held), rank(awaited)]
    return None not in places and places[0] > places[1]


def rank(path: str) -> int | None:
    """A lock's place in the order; None for one that is held for a moment only."""
    return next((number for number, name in enumerate(ORDER) if re.search(rf"{name}\.lock$", path)), None)
