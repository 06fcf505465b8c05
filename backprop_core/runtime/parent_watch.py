"""A process that ends when its parent does, however that ends: nothing of a killed command goes on working.

A parent that ends in order says `STOP` on the child's stdin first. A pipe that closes without that word says that the
parent was killed. The kernel says so too, on Linux, even to a child that is stuck.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

STOP = b"stop\n"
FOLLOWS = "BACKPROPAGATE_FOLLOWS"  # the process that one started with this in its environment ends with
LOOK = 0.2  # seconds between two looks whether a process lives
PR_SET_PDEATHSIG = 1


def hold(stop: Callable[[], None]) -> None:
    """From now on, `stop` is called in a thread when the parent says so, and this process ends when the parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def listen() -> None:
        if sys.stdin.buffer.readline() == STOP:
            stop()
        else:
            os._exit(1)

    threading.Thread(target=listen, name="lifeline", daemon=True).start()


def name_self() -> str:
    """This process as `follow` knows it: its number alone may be another's later."""
    return f"{os.getpid()} {beginning(os.getpid())}"


def follow(named: str) -> None:
    """End this process soon after the one with this name has ended; at once if it has."""
    if not is_alive(named):
        os._exit(1)
    threading.Thread(target=outlive, args=[named], name="lifeline", daemon=True).start()


def outlive(named: str) -> None:
    """Wait for the end of a process, then end this one."""
    while is_alive(named):
        time.sleep(LOOK)
    os._exit(1)


def is_alive(named: str) -> bool:
    """Whether the process with this name lives."""
    pid, began = named.split()
    return beginning(int(pid)) == began


def beginning(pid: int) -> str | None:
    """When a process began, by a clock that is never set, where the system says that; None if it lives no more.

    A process that was not reaped lives no more.
    """
    if sys.platform == "linux":
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in "ZX" else fields[18]
    import psutil  # costs every command a tenth of its start

    try:
        return None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else "unknown"
    except psutil.NoSuchProcess:
        return None
