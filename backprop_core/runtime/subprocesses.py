"""Child processes that can be asked about while Ctrl-C may come at any moment.

`Popen.poll` and `Popen.wait` with a timeout take a lock before they enter the block that frees it. A KeyboardInterrupt
between the two leaves it taken, and the next `wait` never returns. So a thread, where no KeyboardInterrupt comes,
waits for the child; everybody else looks at what it has noted.
"""

import math
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

POLL = 0.01  # seconds between two looks


def start(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Popen's process, whose `returncode` is None for as long as it lives. Nobody may call its `poll` and `wait`."""
    process = subprocess.Popen(command, **options)
    threading.Thread(target=process.wait, name=f"waits for {process.pid}", daemon=True).start()
    return process


def ends(process: "subprocess.Popen[bytes]", *, within: float = math.inf) -> bool:
    """Wait until the process has ended, for so many seconds at most; whether it has."""
    deadline = time.monotonic() + within
    while process.returncode is None and time.monotonic() < deadline:
        time.sleep(POLL)
    return process.returncode is not None
