"""The most memory that this process has held."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak() -> int:
    """The high-water mark of this process in bytes, since it began.

    `VmHWM` counts for the program that runs; `ru_maxrss` begins with the mark of the process that started it, and is
    taken where there is nothing better: on macOS, and in sandboxes that do not write `VmHWM`.
    """
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    lines = _STATUS.read_bytes().splitlines() if _STATUS.is_file() else []  # a name of 15 bytes may end in a letter
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith(b"VmHWM:")]
    unit = 1 if sys.platform == "darwin" else 1024
    return marks[0] if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
