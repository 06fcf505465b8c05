"""A served home on this machine, used as a browser or another service would: over HTTP."""

import base64
import json
import os
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

ROOT = Path(__file__).parents[2]
FOREIGN = ("PREFECT_", "BACKPROPAGATE_", "MLFLOW_")  # what the tests' own environment says is no part of this
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class PrefectServer:
    """Where the server is, what a request needs, and the environment of programs that use it."""

    api: str
    environment: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer, an error's too; asked again while a busy database makes Prefect say 503.

        What only reads is asked again, too, when no answer came in time.
        """
        status, answer = 503, None
        for _ in range(20):
            try:
                status, answer = self.call_once(method, path, body)
            except TimeoutError:
                if method != "GET":
                    raise
            if status != 503:
                break
            time.sleep(0.5)
        return status, answer

    def call_once(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(self.api + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

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


@dataclass(frozen=True)
class Served:
    """What `backprop serve` runs: its process, its addresses, its environment, and Prefect with the password."""

    process: "subprocess.Popen[bytes]"
    addresses: Mapping[str, Any]
    environment: Mapping[str, str]
    prefect: PrefectServer


@contextmanager
def served(
    home: Path, *, place: Path | None = None, user: str = "", password: str = "", **environment: str
) -> Iterator[Served]:
    """`backprop serve` on free ports with everything of it in `home`, for a user or for all; ended with the block.

    It is started in the directory `place`; in `home`, if none is named.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    own |= {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "BACKPROPAGATE_HOME": str(home),
        "PYTHONPATH": str(ROOT),
    }
    own |= environment
    command = [sys.executable, "-m", "flows", "serve", "--json"]
    login = {}
    if user:
        own["BACKPROPAGATE_AUTH_PASSWORD"] = password
        command += ["--auth", user]
        login["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    pipe, log, directory = subprocess.PIPE, home / "serve.log", place or home
    home.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as file,
        subprocess.Popen(command, env=own, cwd=directory, stdout=pipe, stderr=file) as process,
    ):
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, log.read_text()
            addresses = json.loads(line)
            assert "error" not in addresses, addresses
            server = PrefectServer(f"{addresses['prefect']}/api", own, login)
            yield Served(process, addresses, own, server.with_token())
        finally:
            process.terminate()
            process.wait(100)


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
