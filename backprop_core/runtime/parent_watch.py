"""Ends a child process when its parent dies, even by SIGKILL, so that no process is left behind.

A parent that exits normally first writes `STOP` to the child's stdin. If the pipe closes without it, the parent was
killed. On Linux the kernel also kills the child (PR_SET_PDEATHSIG), even if it hangs.
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
FOLLOWS = "BACKPROPAGATE_FOLLOWS"  # a process started with this variable exits when the process named in it does
LOOK = 0.2  # seconds between checks whether a process is alive
PR_SET_PDEATHSIG = 1


def hold(stop: Callable[[], None]) -> None:
    """Call `stop` in a thread when the parent writes STOP; exit this process when the parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def listen() -> None:
        if read_line() == STOP:
            stop()
        else:
            os._exit(1)

    threading.Thread(target=listen, name="lifeline", daemon=True).start()


def read_line() -> bytes:
    """The next line of stdin, or what comes before its end.

    Read from the descriptor: a thread that waits in `sys.stdin` holds its lock, on which an exiting interpreter aborts.
    """
    said = b""
    while not said.endswith(b"\n") and (more := os.read(0, 1)):
        said += more
    return said


def name_self() -> str:
    """This process's pid and start time, for `follow`: a pid alone can be reused."""
    return f"{os.getpid()} {beginning(os.getpid())}"


def follow(named: str) -> None:
    """Exit this process soon after the named one has exited; at once if it already has."""
    if not is_alive(named):
        os._exit(1)
    threading.Thread(target=outlive, args=[named], name="lifeline", daemon=True).start()


def outlive(named: str) -> None:
    """Wait until the named process has exited, then exit this one."""
    while is_alive(named):
        time.sleep(LOOK)
    os._exit(1)


def is_alive(named: str) -> bool:
    """Whether the named process is alive."""
    pid, began = named.split()
    return beginning(int(pid)) == began


def beginning(pid: int) -> str | None:
    """Start time of a process by a monotonic clock (`unknown` outside Linux); None if it is dead or a zombie."""
    if sys.platform == "linux":
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in "ZX" else fields[18]
    import psutil  # slow to import: a tenth of a command's start

    try:
        return None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else "unknown"
    except psutil.NoSuchProcess:
        return None
