"""The processes that a command starts beside itself: they end with it, and it never waits for one for ever."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from backprop_core.errors import PrefectUnreachable, ServerFailed
from flows.server import flow_worker
from flows.server.server_process import Child, why

ROOT = Path(__file__).parents[3]
PARENT = """
import os, sys, time
from pathlib import Path
from flows.server.server_process import Child
child = Child("one", sys.argv[2:], log=Path(sys.argv[1]), environment=os.environ)
child.wait()
print(child.pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, subprocess, sys, time
sys.path.insert(0, {root!r})
from backprop_core.runtime import parent_watch as lifeline
import os
os.environ[lifeline.FOLLOWS] = lifeline.name_self()
def never():
    time.sleep(600)
lifeline.hold(stop=never)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
run = subprocess.Popen([sys.executable, "-c", "import flows, time; print('run', flush=True); time.sleep(600)"],
    start_new_session=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
run.stdout.readline()
print("up", flush=True)
while True:
    time.sleep(1)
"""

FAILING = """
import sys
sys.path.insert(0, {root!r})
from backprop_core.errors import ConfigInvalid
from backprop_core.runtime import parent_watch
parent_watch.hold(stop=lambda: None)
raise ConfigInvalid("the pool is full", hint="empty it")
"""


def module(place: Path, text: str) -> dict[str, str]:
    """An environment in which `python -m stubborn` runs this text."""
    (place / "stubborn.py").write_text(text.format(root=str(ROOT)))
    return os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}


@pytest.mark.parametrize("frozen", [False, True])
def test_children_end_with_a_killed_parent(tmp_path, frozen):
    """SIGKILL of the parent: its child, stuck or not, and what the child has started are gone within seconds."""
    if frozen and sys.platform != "linux":
        pytest.skip("the kernel tells a stuck child on Linux only")
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), "stubborn"]
    with subprocess.Popen(command, env=module(tmp_path, STUBBORN), stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        [run] = child.children()
        if frozen:
            child.send_signal(signal.SIGSTOP)
        parent.kill()
        began = time.monotonic()
        _, alive = psutil.wait_procs([child, run], timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    assert time.monotonic() - began < 10


def test_a_child_that_says_nothing_is_an_error(tmp_path):
    """The wait for a server is bounded, and the error names its log; so is the wait for its end."""
    silent = "import time; time.sleep(600)"
    child = Child("silence", ["stubborn"], log=tmp_path / "log", environment=module(tmp_path, silent), patience=2)
    assert not child.is_late
    with pytest.raises(ServerFailed, match="no answer for 2 s") as caught:
        child.wait()
    assert str(tmp_path / "log") in caught.value.hint
    child.stop()
    assert not child.alive


def test_a_child_that_is_started_again_is_watched(tmp_path):
    """Nobody waits for a server that is started again; whether it says nothing for too long can be asked."""
    silent = "import time; time.sleep(600)"
    child = Child("silence", ["stubborn"], log=tmp_path / "log", environment=module(tmp_path, silent), patience=1)
    time.sleep(1.5)
    assert child.is_late
    child.stop(within=1)
    assert not child.is_late


def test_a_child_that_does_not_end_is_killed(tmp_path):
    """Ctrl-C does not wait for ever for a server that is stuck."""
    child = Child("stuck", ["stubborn"], log=tmp_path / "log", environment=module(tmp_path, STUBBORN))
    child.wait()
    began = time.monotonic()
    child.stop(within=1)
    assert not child.alive and time.monotonic() - began < 20


def test_why_a_child_does_not_start_is_said(tmp_path):
    """A child that waits for its parent's word, and fails, ends as other programs do; its coded error is shown."""
    child = Child("worker", ["stubborn"], log=tmp_path / "log", environment=module(tmp_path, FAILING))
    with pytest.raises(ServerFailed, match=r"worker did not start: \[CONFIG_INVALID\] the pool is full; empty it"):
        child.wait()
    child.stop()
    assert "Fatal Python error" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("x.ConfigInvalid: [CONFIG_INVALID] a; b\nFatal Python error\n<no Python frame>\n", "[CONFIG_INVALID] a; b"),
        ("[INPUT_NOT_FOUND] a; b\n[CONFIG_INVALID] c; d\nbye\n", "[CONFIG_INVALID] c; d"),
        ("Traceback\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("", "its log is empty"),
    ],
)
def test_the_last_coded_error_of_a_log_is_its_reason(tmp_path, log, said):
    """What the interpreter says after it is no reason; without one the last line is."""
    (tmp_path / "log").write_text(log)
    assert why(tmp_path / "log") == said


def test_a_worker_waits_for_the_server_beside_it_alone(monkeypatch):
    """A Prefect server elsewhere that accepts connections and never answers is an error after a while."""
    monkeypatch.setattr(flow_worker, "ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            with pytest.raises(PrefectUnreachable, match="does not answer within 1 s"):
                flow_worker.wait_for_prefect(starting=False)
            monkeypatch.setattr(flow_worker, "START", 2.0)
            flow_worker.wait_for_prefect(starting=True)
    with temporary_settings({PREFECT_API_URL: url}):
        flow_worker.wait_for_prefect(starting=False)  # it is down: deploying says so
