"""The hold that tests of kills use."""

import subprocess
import sys
from pathlib import Path

from tests.faults.hold import Hold


def test_a_held_process_ends_without_its_test(tmp_path: Path) -> None:
    """Nobody lets it go: when its time is over it goes on, and ends."""
    hold = Hold(tmp_path / "hold", training=1, seconds=0.5)
    (tmp_path / "beside").touch()
    code = "import os, sys; os.rename(sys.argv[1], sys.argv[2])"
    places = [str(tmp_path / "beside"), str(tmp_path / "step-000003")]
    subprocess.run([sys.executable, "-c", code, *places], env=hold.environment, timeout=120, check=True)
    assert (tmp_path / "hold" / "held").exists() and (tmp_path / "step-000003").exists()
