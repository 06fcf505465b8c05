"""A disk that is full when a run's end is recorded: the history says how it ended, and nobody reads a traceback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_core.runtime.settings import Settings
from tasks.tracking import list_runs, sync
from tasks.tracking.journal import Journal

RUN = "a1" * 16
FIRST = """
import sys
from pathlib import Path
from backprop_core.runtime.settings import Settings
from tasks.tracking.connection import connect
connect(Settings(home=Path(sys.argv[1])))
"""


@pytest.fixture
def small_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home on a file system of 16 MiB of its own, whose database MLflow has made."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    subprocess.run([sys.executable, "-c", FIRST, str(place / "home")], check=True)
    yield place / "home"
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    """Take what is left of the file system."""
    with pytest.raises(OSError, match="No space"), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_a_full_disk_leaves_a_dead_run_dead(small_home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not running for ever; one plain line says why the record waits, and with space the record is whole."""
    config = Settings(home=small_home)
    with Journal(config.journal_path, RUN) as journal:
        journal.start(line="support", name="train")
        assert sync(config).error is None
        fill(small_home.parent / "ballast")
        for step in range(2000):
            journal.metrics(step, {"loss": 1.0})
        journal.end("failed")
    report = sync(config)
    [run] = list_runs(config)
    out, err = capfd.readouterr()
    assert report.error is None or ("no space left" in report.error and "\n" not in report.error)
    assert run["status"] in ("failed", "interrupted")
    assert "Traceback" not in out + err and "sqlalchemy" not in out + err
    (small_home.parent / "ballast").unlink()
    assert sync(config).error is None and not list(config.journal_path.glob("*.jsonl"))
    assert list_runs(config)[0]["status"] in ("failed", "interrupted")


def command(home: Path, *words: str) -> tuple[int, Any, str]:
    """Exit status, JSON and stderr of a command."""
    code = "import sys; from flows.cli.main import main; sys.exit(main(sys.argv[1:]))"
    told = os.environ | {"BACKPROPAGATE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--json"], env=told, capture_output=True, text=True, timeout=250
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def test_commands_on_a_full_disk_say_so(small_home: Path) -> None:
    """What reads is answered; what would write says that there is no space."""
    fill(small_home.parent / "ballast")
    assert command(small_home, "list-runs")[:2] == (0, [])
    status, said, err = command(small_home, "store", "check")
    assert status in (0, 2) and "Traceback" not in err and "UNEXPECTED" not in json.dumps(said)
