"""The temporary Prefect server of one command."""

import contextvars
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect.context import refresh_global_settings_context
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import temporary_settings

from backprop_core.errors import PrefectUnreachable
from flows.cli import prefect_environment
from flows.cli.prefect_environment import (
    DEFAULTS,
    TemporaryServer,
    check_answers,
    connected,
    quiet_prefect,
    start_server,
)


@pytest.fixture
def server(prefect_home: None, tmp_path: Path) -> Iterator[TemporaryServer]:
    """A server on a database of its own."""
    started = TemporaryServer(tmp_path / "server.log")
    yield started
    started.stop()


def test_a_server_for_us_alone(server: TemporaryServer) -> None:
    """It answers on this machine alone, and only to who knows its password, which no argument of a process shows."""
    server.wait()
    server.wait()
    user, _, password = server.password.partition(":")
    assert server.url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{server.url}/version").status_code == 401
    assert httpx.get(f"{server.url}/version", auth=(user, password)).status_code == 200
    assert password not in Path(f"/proc/{server.pid}/cmdline").read_text()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no server behind: whoever waits for the end of its log file sees it."""
    code = "import sys, os; from pathlib import Path; from flows.cli.prefect_environment import TemporaryServer; "
    code += f"server = TemporaryServer(Path({str(tmp_path / 'log')!r})); print(server.pid, flush=True); os.abort()"
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    while Path(f"/proc/{pid}/stat").exists():  # the test's time limit is the limit
        pass


def test_a_server_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last word is in the error, the rest in its log."""
    monkeypatch.setenv("PREFECT_API_DATABASE_TIMEOUT", "soon")
    server = TemporaryServer(tmp_path / "log")
    with pytest.raises(PrefectUnreachable) as caught:
        server.wait()
    server.stop()
    assert str(tmp_path / "log") in caught.value.hint and "soon" in (tmp_path / "log").read_text()


def test_a_server_of_the_users_that_does_not_answer() -> None:
    """It is named, and nothing else is used in its place."""
    url = "http://127.0.0.1:7/api"  # not one that the fuzz has made a secret
    with temporary_settings({"api.url": url}), pytest.raises(PrefectUnreachable, match=url):  # type: ignore[dict-item]
        check_answers(url)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet by default, but nobody is overruled."""
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    quiet_prefect()
    assert {name: os.environ[name] for name in DEFAULTS} == DEFAULTS | {"DO_NOT_TRACK": "0"}


def connect() -> None:
    """Connect, with the settings that Prefect has of this process alone."""
    with connected():
        pass


def test_a_server_that_is_named_after_prefects_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one that is used: Prefect does not start one of its own beside it."""
    monkeypatch.setattr(prefect_environment, "_server", None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    refresh_global_settings_context()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:7/api")
    with pytest.raises(PrefectUnreachable, match=r"127\.0\.0\.1:7"):
        contextvars.Context().run(connect)
    monkeypatch.undo()
    refresh_global_settings_context()


def test_a_variable_without_a_value_names_no_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty PREFECT_API_URL, as Compose writes it, is none: ours starts."""
    monkeypatch.setattr(prefect_environment, "_server", None)
    monkeypatch.setenv("PREFECT_API_URL", "")
    start_server()
    started = prefect_environment._server
    assert started is not None
    started.stop(within=0)


def test_a_server_of_prefects_own_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Prefect starts one itself, as on Windows, and waits in vain, the error has the code of a server's."""
    monkeypatch.setattr(prefect_environment, "_server", None)
    monkeypatch.setattr(SubprocessASGIServer, "_instances", {})
    late = temporary_settings({"api.url": None, "server.ephemeral.startup_timeout_seconds": 0})  # type: ignore[dict-item]
    with late, pytest.raises(PrefectUnreachable, match="temporary server: Timed out"), connected():
        pass
    SubprocessASGIServer().stop()
