"""`backprop serve`: Prefect and MLflow with their user interfaces, every deployment and a worker, until Ctrl-C.

It starts only servers whose address is not set, and keeps their sockets, so that a server that dies restarts on the
same address. This process does not import Prefect.
"""

import getpass
import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from backprop_core.errors import AuthRequired, ConfigInvalid, InputNotFound, ServerActive, ServerFailed
from backprop_core.runtime.redaction import blank_address, keep_secret
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from flows.server import users
from flows.server.passwords import check_strength
from flows.server.server_process import STARTING, Child

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = logging.getLogger(__name__)
ADDRESSES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")  # of servers that run elsewhere
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ASKED = 1.0  # seconds: checking whether `serve` runs holds the lock for a moment
STUCK = 5.0  # seconds for a process that does not come up to end
QUICK = 20.0  # seconds: a process that dies sooner after a restart is not restarted again
LOOKS = "3"  # seconds between two polls of the worker; Prefect's default of 10 makes a click seem lost


class Addresses(Record):
    """The addresses of everything, kept in the home while `serve` runs."""

    page: str
    prefect: str
    api: str
    mlflow: str
    pid: int
    allowed: list[str]  # directories that runs may read


def password(user: str | None, host: str, config: Settings) -> str | None:
    """`user:password`, from the environment, a file or a prompt; None without a user.

    Raises AuthRequired if other machines can reach `host` or there are users, and no user is given, or if there is no
    terminal to ask on, and ConfigInvalid for a password that could not be blanked in logs.
    """
    known = users.read(config)
    if user is None:
        if known and not all(map(os.environ.get, ADDRESSES)):
            raise AuthRequired(
                "people sign in at the pages, but Prefect and MLflow have no password",
                hint="set the user for both, who may act at the pages too: --auth USER",
            )
        if host in LOOPBACK or known:
            return None
        raise AuthRequired(f"other machines can reach {host}", hint="set a user: --auth USER")
    if user in known:
        raise ConfigInvalid(
            f"{user} is a user of the pages already", hint="give --auth another name: its password opens Prefect too"
        )
    secret = secret_of(user, config)
    check_strength(user, secret)
    keep_secret(secret)
    return f"{user}:{secret}"


def secret_of(user: str, config: Settings) -> str:
    if config.auth_password:
        return config.auth_password.get_secret_value()
    if config.auth_password_file:
        try:
            return config.auth_password_file.expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise InputNotFound(
                f"cannot read {config.auth_password_file}: {error.strerror}",
                hint="correct BACKPROPAGATE_AUTH_PASSWORD_FILE",
            ) from error
    if not sys.stdin.isatty():
        raise AuthRequired(
            f"no password for {user}", hint="set BACKPROPAGATE_AUTH_PASSWORD or BACKPROPAGATE_AUTH_PASSWORD_FILE"
        )
    return getpass.getpass(f"Password for {user}: ", stream=sys.stderr)


def allowed_hosts(host: str, config: Settings) -> list[str]:
    """The allowed Host headers: the names of this machine, and those of the settings."""
    own = [*LOOPBACK, host]
    if host not in LOOPBACK:
        own += [socket.gethostname().lower(), socket.getfqdn().lower()]
        own += [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)]
    named = config.allowed_hosts.lower().split(",") if config.allowed_hosts else []
    return list(dict.fromkeys([*own, *(name.strip() for name in named)]))


def pattern(host: str) -> str:
    """A name with any port, as a glob for MLflow. Our own access control compares exactly."""
    return f"[[]{host}]*" if ":" in host else f"{host}*"


@contextmanager
def alone(config: Settings) -> Iterator[dict[str, Any]]:
    """Lock the home for one `serve`. Yields the addresses of the last time.

    Raises ServerActive with the address of a running `serve`.
    """
    layout = config.layout
    layout.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        held = FileLock(layout.serve_lock).acquire(timeout=ASKED)
    except Timeout as error:
        page = read(layout.serve).get("page", "its address is not known yet")
        raise ServerActive(
            f"backprop serve already runs in this home: {page}", hint="use it, or stop it with Ctrl-C where it runs"
        ) from error
    with held:
        with suppress(FileNotFoundError):
            layout.serve.replace(layout.serve_before)
        yield read(layout.serve_before)


def write(config: Settings, addresses: Addresses) -> None:
    """Write the file of addresses atomically."""
    config.layout.serve_new.write_text(addresses.model_dump_json())
    config.layout.serve_new.replace(config.layout.serve)


def read(place: Path) -> dict[str, Any]:
    """The addresses in a file; empty if it does not exist."""
    try:
        return dict(json.loads(place.read_text()))
    except FileNotFoundError:
        return {}


def running(config: Settings) -> Addresses | None:
    """The addresses of this home's `serve`; None if it does not run."""
    place = config.layout.serve
    if not place.is_file():
        return None
    try:
        with FileLock(config.layout.serve_lock, timeout=0):
            return None
    except Timeout:
        known = read(place)
        return Addresses.model_validate(known) if known else None


class Service:
    """The processes of `serve`. `start` them and `watch` them; leaving the context ends them all."""

    def __init__(self, config: Settings, *, host: str, port: int | None, auth: str | None, known: Mapping[str, Any]):
        self._config, self._host, self._auth = config, host, auth
        self._hosts = allowed_hosts(host, config)
        self._cleanup = ExitStack()
        self._wanted: list[tuple[str, list[str], socket.socket | None]] = []
        self._children: dict[str, tuple[Child, float]] = {}
        ports = [port + offset if port else 0 for offset in range(3)]
        self._page = self._listen(ports[0], known.get("page"))
        prefect, mlflow = os.environ.get("PREFECT_API_URL"), os.environ.get("MLFLOW_TRACKING_URI")
        if prefect is None:
            listening = self._listen(ports[1], known.get("prefect"))
            prefect = f"{self._url(listening)}/api"
            self._wanted.append(("prefect", ["flows.server.server_main", "prefect"], listening))
        if mlflow is None:
            listening = self._listen(ports[2], known.get("mlflow"))
            mlflow = self._url(listening)
            self._wanted.append(("mlflow", ["flows.server.server_main", "mlflow"], listening))
        beside = [STARTING] if self._owns("prefect") else []
        self._wanted.append(("worker", ["flows.server.flow_worker", *beside], None))
        self._api, self._tracking = prefect, mlflow

    def _listen(self, port: int, before: str | None) -> socket.socket:
        """A socket on this port; for 0, on the port of the last time, or else on a free one."""
        candidates = [port] if port else [int(before.rpartition(":")[2]) if before else 0, 0]
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        for candidate in candidates:
            try:
                listening = socket.create_server((self._host, candidate), family=family, backlog=128)
                return self._cleanup.enter_context(listening)
            except OSError as error:
                failed = error
        raise ServerFailed(
            f"cannot listen on {self._host}:{port}: {failed.strerror}", hint="choose another --port or --host"
        ) from failed

    def _url(self, listening: socket.socket) -> str:
        name = "127.0.0.1" if self._host in ("0.0.0.0", "::") else self._host
        return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"

    @property
    def addresses(self) -> Addresses:
        return Addresses(
            page=self._url(self._page),
            prefect=self._api.removesuffix("/api"),
            api=self._api,
            mlflow=self._tracking,
            pid=os.getpid(),
            allowed=[str(root) for root in self._config.allowed_roots],
        )

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("worker", "mlflow", "prefect"):  # runs still report to the servers
            if name in self._children:
                self._children[name][0].stop()
        self._cleanup.close()

    def start(self) -> None:
        """Start everything at once; the worker waits for Prefect's server by itself. Raises ServerFailed."""
        for wanted in self._wanted:
            self._start(*wanted)
        pages = self._pages()
        for child, _ in self._children.values():
            child.wait()
        self._serve(pages)

    def _pages(self) -> "ASGIApp":
        """The web application. Importing it takes a second, in which the servers start."""
        from flows.server.web.app import application
        from flows.server.web.mlflow_api import MlflowApi
        from flows.server.web.prefect_api import PrefectApi
        from flows.server.web.state import Sources

        prefect = PrefectApi(self._api, self._auth if self._owns("prefect") else None)
        mlflow = MlflowApi(self._tracking, self._auth if self._owns("mlflow") else None, self._config.namespace)
        known = self.addresses
        where = {"prefect": blank_address(known.prefect), "mlflow": blank_address(known.mlflow)}
        sources = Sources(self._config, prefect, mlflow, where, self.is_alive)
        self._cleanup.callback(prefect.close)
        self._cleanup.callback(mlflow.close)
        return application(sources, hosts=self._hosts, password=self._auth)

    def _serve(self, app: "ASGIApp") -> None:
        from flows.server.web.page_server import PageServer

        self._cleanup.callback(PageServer(self._page, app, self._config.trusted_proxy).close)

    def _owns(self, server: str) -> bool:
        """Whether it runs this server itself."""
        return any(name == server for name, *_ in self._wanted)

    def _start(
        self, name: str, arguments: list[str], listening: socket.socket | None, again: float = -math.inf
    ) -> Child:
        """Start one process; `again` is the time of its last restart."""
        sockets = [listening.fileno()] if listening else []
        words = [*map(str, sockets), ",".join(self._hosts)] if listening else []
        place = self._config.layout.log(name)
        child = Child(name, [*arguments, *words], log=place, environment=self._environment(name), sockets=sockets)
        self._children[name] = child, again
        return child

    def _environment(self, name: str) -> dict[str, str]:
        """The environment of a child: addresses, credentials, and the settings of Prefect's server."""
        told = dict(os.environ)
        if name == "mlflow":
            told.pop("MLFLOW_TRACKING_URI", None)
            names = [pattern(host) for host in self._hosts]
            told["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(names)
            origins = (f"{scheme}://{name}" for scheme in ("http", "https") for name in names)
            told["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(origins)
            return told | ({"BACKPROPAGATE_AUTH_STRING": self._auth} if self._auth else {})
        told |= {"PREFECT_API_URL": self._api, "MLFLOW_TRACKING_URI": self._tracking}
        if self._auth and self._owns("prefect"):
            told["PREFECT_API_AUTH_STRING"] = self._auth
        if self._auth and self._owns("mlflow"):
            told["MLFLOW_TRACKING_USERNAME"], _, told["MLFLOW_TRACKING_PASSWORD"] = self._auth.partition(":")
        if name == "prefect":
            told |= self._prefect_server()
        told.setdefault("PREFECT_WORKER_QUERY_SECONDS", LOOKS)
        return told

    def _prefect_server(self) -> dict[str, str]:
        return {
            "PREFECT_SERVER_UI_API_URL": "/api",
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(self._config.layout.prefect_ui),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": self._api.removesuffix("/api"),
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            **({"PREFECT_SERVER_API_AUTH_STRING": self._auth} if self._auth else {}),
        }

    def is_alive(self) -> dict[str, bool]:
        """Whether each process lives, by name."""
        return {name: child.alive for name, (child, _) in self._children.items()}

    def watch(self) -> None:
        """Restart processes that have died. Raises ServerFailed for one that dies again at once."""
        for name, arguments, listening in self._wanted:
            child, again = self._children[name]
            if child.alive and not child.is_late:
                continue
            child.stop(within=STUCK)
            if time.monotonic() - again < QUICK:
                raise ServerFailed(f"{name} has died twice in a row", hint=f"see {child.log}")
            log.warning("%s has died and is restarted; see %s", name, child.log)
            self._start(name, arguments, listening, time.monotonic())
