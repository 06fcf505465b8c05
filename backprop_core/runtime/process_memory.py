"""The most memory that this process has held."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak() -> int:
    """The high-water mark of this process in bytes, since it began.

    `VmHWM` counts for the program that runs; `ru_maxrss` begins with the mark of the process that started it.
    """
    if sys.platform == "linux":
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
