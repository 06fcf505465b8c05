"""A real Prefect server and worker on this machine, used as another service would: JSON over HTTP."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
FOREIGN = ("PREFECT_", "BACKPROPAGATE_", "MLFLOW_")  # what the tests' own environment says is no part of this
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class PrefectServer:
    """Where the server is, what a request needs, and the environment of programs that use it."""

    api: str
    environment: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer, an error's too."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(self.api + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return self.call("GET", "/health")[0] == 200
        except OSError:
            return False

    def with_token(self) -> "PrefectServer":
        """The same with a CSRF token, which the server asks for on everything but GET."""
        client = "tests"
        token = self.call("GET", f"/csrf-token?client={client}")[1]["token"]
        return replace(self, headers={**self.headers, "Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token})

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by `flow/deployment`."""
        status, deployment = self.call("GET", f"/deployments/name/{name}")
        assert status == 200, deployment
        return dict(deployment)

    def create_run(self, deployment: str, parameters: Mapping[str, Any]) -> tuple[int, Any]:
        """Ask for a flow run now: 201 and the flow run, or why not."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.call("POST", f"/deployments/{self.deployment(deployment)['id']}/create_flow_run", body)

    def finished(self, flow_run_id: str, seconds: float = 120) -> dict[str, Any]:
        """The flow run once it is over."""
        seen: dict[str, Any] = {}

        def is_over() -> bool:
            seen.update(self.call("GET", f"/flow_runs/{flow_run_id}")[1])
            return seen["state_type"] in FINAL

        wait_until(is_over, seconds, f"end of flow run {flow_run_id}")
        return seen

    def artifact(self, flow_run_id: str, key: str) -> str:
        """The text of a flow run's one artifact with this key."""
        wanted = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}, "key": {"any_": [key]}}}
        [artifact] = self.call("POST", "/artifacts/filter", wanted)[1]
        return str(artifact["data"])


@contextmanager
def prefect_server(home: Path, *, auth: str, **environment: str) -> Iterator[PrefectServer]:
    """A server of its own on a free port, its database in `home`; ended with the block.

    As in production, it wants `auth` (user:password) and CSRF tokens.
    """
    api = f"http://127.0.0.1:{free_port()}/api"
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    own |= {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
    }
    login = {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()}
    server = PrefectServer(api, own | environment, login)
    port = api.removesuffix("/api").rpartition(":")[2]
    home.mkdir(parents=True, exist_ok=True)
    with running(["server", "start", "--host", "127.0.0.1", "--port", port], server, home / "server.log"):
        wait_until(server.is_ready, 120, "start of the Prefect server", home / "server.log")
        yield server.with_token()


@contextmanager
def process_worker(server: PrefectServer, pool: str, log: Path) -> Iterator[None]:
    """A worker of a process pool, which it makes if it is not there; ended with the block."""
    with running(["worker", "start", "--pool", pool, "--type", "process"], server, log):
        wait_until(lambda: server.call("GET", f"/work_pools/{pool}")[0] == 200, 60, f"work pool {pool}", log)
        yield


@contextmanager
def running(arguments: list[str], server: PrefectServer, log: Path) -> Iterator[None]:
    """`prefect ARGUMENTS` in a process group of its own, of which nothing is left after the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [BIN / "prefect", *arguments],
            env=dict(server.environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            end_group(process)


def end_group(process: "subprocess.Popen[bytes]", seconds: float = 10) -> None:
    """SIGTERM to a process and its children; SIGKILL to what is then left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait(seconds)


def wait_until(condition: Callable[[], bool], seconds: float, what: str, log: Path | None = None) -> None:
    """Come back once the condition holds; fail with the end of the log if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        tail = log.read_text(errors="replace")[-2000:] if log else ""
        assert time.monotonic() < deadline, f"no {what} within {seconds} s\n{tail}"
        time.sleep(0.2)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
