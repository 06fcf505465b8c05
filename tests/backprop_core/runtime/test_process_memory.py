"""The peak of a process, measured in processes of their own; `make gpu` asks a GPU for its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from backprop_core.runtime import process_memory

STATUS = Path("/proc/self/status")
HAS_MARK = STATUS.is_file() and "VmHWM" in STATUS.read_text()
ALLOCATE = """
from backprop_core.runtime import process_memory
before = process_memory.peak()
block = bytearray(256 * 2**20)
del block
print(before, process_memory.peak())
"""
START = """
import subprocess, sys
block = bytearray(512 * 2**20)
print(subprocess.check_output([sys.executable, "-c", sys.argv[1]], text=True))
"""


def measured(*arguments: str) -> list[int]:
    """What a Python program prints, as numbers."""
    told = subprocess.run([sys.executable, "-c", *arguments], check=True, capture_output=True, text=True).stdout
    return [int(word) for word in told.split()]


def test_a_peak_does_not_fall() -> None:
    """What was used for a moment is in it after it was freed."""
    before, after = measured(ALLOCATE)
    assert after - before > 200 * 2**20


@pytest.mark.skipif(not HAS_MARK, reason="this system does not write VmHWM")
def test_a_peak_is_not_that_of_who_started_it() -> None:
    """A worker that a large process starts begins with what it uses itself."""
    before, after = measured(START, ALLOCATE)
    assert before < 256 * 2**20
    assert after - before > 200 * 2**20


def test_a_name_cut_within_a_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system cuts the name of a process at 15 bytes, whatever they are."""
    (tmp_path / "status").write_bytes("Name:\tzwölfmaltrainü".encode()[:-1] + b"\nVmHWM:\t1024 kB\n")
    monkeypatch.setattr(process_memory, "_STATUS", tmp_path / "status")
    assert process_memory.peak() == 2**20


@pytest.mark.parametrize("status", [None, "Name:\tpython\nVmRSS:\t1024 kB\n"])
def test_a_system_without_the_mark_has_a_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str | None
) -> None:
    """Some sandboxes write no VmHWM, macOS has no such file: a training does not fail by it."""
    if status:
        (tmp_path / "status").write_text(status)
    monkeypatch.setattr(process_memory, "_STATUS", tmp_path / "status")
    assert process_memory.peak() > 10 * 2**20
