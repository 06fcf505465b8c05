"""For all tests: nothing is sent anywhere, and nothing of the user's own settings is seen."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from backprop_core.runtime import redaction
from tests import warm_worker as warm

MEMORY, ROOM = Path("/dev/shm"), 6 << 30  # bytes; the tests take less than half

# A disk takes 5 ms to sync, and each new database of MLflow's syncs a thousand times
free = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available) if MEMORY.is_dir() else 0
if "TMPDIR" not in os.environ and free > ROOM:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)  # also of xdist's processes
for name in [name for name in os.environ if name.startswith(("BACKPROPAGATE_", "PREFECT_", "MLFLOW_"))]:
    del os.environ[name]
os.environ |= {
    "PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",
}
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def freed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """If all tests pass, nothing of theirs stays in memory; until then, a later test may use what one has left."""
    yield
    if os.environ.get("TMPDIR") == str(MEMORY) and not request.session.testsfailed:
        shutil.rmtree(tmp_path_factory.getbasetemp(), ignore_errors=True)


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process redacts each secret it has read until it ends; what is one in a test is ordinary text in the next."""
    monkeypatch.setattr(redaction, "_kept", set(redaction._kept))


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An interpreter that starts a worker in a tenth of a second: see `tests/warm_worker.py`."""
    folder = tmp_path_factory.mktemp("warm")
    python, address = folder / "python", folder / "socket"
    python.write_text(f"#!{sys.executable} -IS\n{Path(warm.__file__).read_text('utf-8')}", encoding="utf-8")
    python.chmod(0o755)
    os.environ[warm.SOCKET] = str(address)
    from backprop_core.worker.client import child_environment

    command = [sys.executable, "-m", "tests.warm_worker", str(address)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=child_environment()) as process:
        while not address.exists() and process.poll() is None:
            time.sleep(0.05)
        yield python
        process.communicate()


@pytest.fixture(scope="module")
def warm_worker(request: pytest.FixtureRequest) -> Iterator[None]:
    """For flow runs in the test's own process."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(os, "pidfd_open"):  # Linux
            patch.setenv("BACKPROPAGATE_WORKER_PYTHON", str(request.getfixturevalue("warm_python")))
        yield
