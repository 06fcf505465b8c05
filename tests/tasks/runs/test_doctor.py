"""`backprop doctor` compares the servers that it talks to with what was tested."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backprop_core.runtime.settings import Settings, settings
from tasks.runs import doctor
from tasks.runs.machine_checks import Part
from tests.wire.stand_in import Request, Service

ASK: dict[str, Callable[[Settings], Part]] = {"prefect": lambda _: doctor.prefect(), "mlflow": doctor.mlflow}


class Versioned(Service):
    """As much of a Prefect and an MLflow server as says that it is there, and its version."""

    version = b""

    def answer(self, request: Request) -> None:
        request.body()
        if request.path.endswith("/version"):
            request.reply(200 if self.version else 404, self.version)
        else:
            request.reply(200, {})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Versioned]:
    with Versioned().running() as server:
        monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path))
        monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        yield server


@pytest.mark.parametrize(
    ("package", "tested", "other"), [("prefect", "3.8.8", "2.20.1"), ("mlflow", "3.17.2", "3.9.0")]
)
def test_a_server_of_another_version_is_named(server: Versioned, package: str, tested: str, other: str) -> None:
    """Its version and the tested range are said; a tested version is fine, and so is a server that does not say."""
    server.version = other.encode()
    part = ASK[package](settings())
    assert part.state == "missing" and f"version {other}" in part.found
    assert f"versions {doctor.tested_versions(package)} were tested" in part.todo
    server.version = f'"{tested}"'.encode()
    part = ASK[package](settings())
    assert (part.state, part.todo) == ("ok", "") and f"version {tested}" in part.found
    server.version = b""
    assert ASK[package](settings()).state == "ok"
    assert not doctor.tested_versions(package).contains(other)
