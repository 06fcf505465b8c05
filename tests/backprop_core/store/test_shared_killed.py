"""Two machines move one line of a shared store; one is killed in the middle, and connections break all the time."""

import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.store import sharing
from backprop_core.store.artifacts import Store
from tests.wire.s3_server import BUCKET, Cutter, environment, s3_server

COMMAND = [sys.executable, "-m", "tests.backprop_core.store.line_worker"]
VERSIONS = 4


@pytest.mark.slow
def test_a_line_moves_once_for_each_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The killed one's lease passes to the other, which loses none; started again, the killed one ends its work.

    Versions have no gap, each continues the newest one, each moved the champion once.
    """
    address = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    with s3_server() as server:
        cutter = Cutter(server, every=5)
        for name, value in environment(cutter.address).items():
            monkeypatch.setenv(name, value)
        first = started(tmp_path / "one", address, 1)
        assert first.stdout and first.stdout.readline() == "took\n"
        second = started(tmp_path / "two", address, 100)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        said = second.communicate(timeout=240)[0]
        again = started(tmp_path / "one", address, 1).communicate(timeout=240)[0]
        sharing.begin(tmp_path / "look", address)
        lines = Lines(Store(tmp_path / "look"))
    made = {lines.version("support", number).run_id for number in lines.versions("support")}
    assert len(made) == 2 * VERSIONS and lines.versions("support") == [*range(1, 2 * VERSIONS + 1)]
    moves = [int(line.split()[1]) for line in (said + again).splitlines() if line.startswith("moved")]
    assert len(set(moves)) == len(moves) and "STATE_" not in said + again
    assert lines.champion("support") == 2 * VERSIONS
    assert cutter.cuts > 5
    print(f"requests {cutter.requests}, cuts {cutter.cuts}, sent {cutter.sent}, received {cutter.received}")
    cutter.close()


def started(root: Path, address: str, run: int) -> "subprocess.Popen[str]":
    command = [*COMMAND, str(root), address, str(VERSIONS), str(run)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
