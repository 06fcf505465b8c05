"""Starts child processes and waits for them, safe against Ctrl-C at any moment.

`Popen.poll` and `Popen.wait` with a timeout take a lock before they enter the block that releases it. A
KeyboardInterrupt in between leaves it locked, and the next `wait` never returns. So only a thread, where no
KeyboardInterrupt is raised, waits for the child; all other code reads `returncode`.
"""

import math
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

POLL = 0.01  # seconds between checks


def start(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a process. Its `returncode` is None while it runs. Do not call its `poll` or `wait`."""
    process = subprocess.Popen(command, **options)
    threading.Thread(target=process.wait, name=f"waits for {process.pid}", daemon=True).start()
    return process


def ends(process: "subprocess.Popen[bytes]", *, within: float = math.inf) -> bool:
    """Wait up to `within` seconds for the process to exit; return whether it has."""
    deadline = time.monotonic() + within
    while process.returncode is None and time.monotonic() < deadline:
        time.sleep(POLL)
    return process.returncode is not None
