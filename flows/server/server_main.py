"""One server process: `python -m flows.server.server_main NAME FD [HOSTS]` serves on the socket FD.

It prints "up" when it is ready, and ends when its parent stops it or dies. With HOSTS, a comma-separated list, it
refuses other Host headers, other origins, and, with BACKPROPAGATE_AUTH_STRING, requests without that password.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import uvicorn
from filelock import FileLock, Timeout

from backprop_core.runtime import garbage, parent_watch

LONGEST = 120.0  # seconds: creating the database takes four, on a busy machine many times that
PATIENCE = 5.0  # seconds to write what is pending


class Server(uvicorn.Server):
    """Prints "up" when it is ready."""

    is_prefect = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with migrating(lambda: self.started) if self.is_prefect else nullcontext():
            await super().startup(sockets)
        garbage.begin()
        print("up", flush=True)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # it is a generator there
        """Ignore Ctrl-C; the parent handles it and still reports here."""
        return nullcontext()


@contextmanager
def migrating(is_done: Callable[[], bool]) -> Iterator[None]:
    """Let one server at a time create or migrate the tables of Prefect's SQLite database.

    Two at once break each other's migration, and one of them dies. If this version of Prefect has migrated the database
    before, there is no wait. No other lock is held meanwhile.
    """
    from prefect import __version__
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    kind, _, place = (url.get_secret_value() if url else "").partition(":///")
    database = Path(place.partition("?")[0])
    if not kind.startswith("sqlite") or not database.name or ":memory:" in place:
        yield
        return
    note = database.with_name(f".{database.name}.backprop-migrated")
    if database.is_file() and note.is_file() and note.read_text() == __version__:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with suppress(Timeout):  # then go on without the lock
            lock = FileLock(database.with_name(f".{database.name}.backprop-lock"))
            held.enter_context(lock.acquire(timeout=LONGEST))
        yield
        if is_done():
            note.write_text(__version__)


def end(server: Server) -> None:
    """Stop the server."""
    if server.started:
        server.should_exit = True
        time.sleep(PATIENCE)
    os._exit(0)


def main() -> None:
    """Serve one application."""
    garbage.put_off()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, descriptor, *hosts = sys.argv[1:]
    listening = socket.socket(fileno=int(descriptor))
    server = Server(uvicorn.Config(app(name, hosts), factory=True, log_level="error"))
    server.is_prefect = name != "mlflow"
    parent_watch.hold(stop=lambda: end(server))
    server.run(sockets=[listening])
    os._exit(0)  # everything is written; freeing a million objects would take another second


def app(name: str, hosts: list[str]) -> Callable[[], Any]:
    """The factory of an application: `temporary-prefect`, `prefect` or `mlflow`; with hosts, behind access control."""

    def make() -> Any:
        made = APPLICATIONS[name]()
        if hosts:
            from flows.server.access_control import AccessControl

            made = AccessControl(made, hosts=hosts[0].split(","), password=os.environ.get("BACKPROPAGATE_AUTH_STRING"))
        return made

    return make


def temporary_prefect() -> Any:
    """Prefect's application, without its user interface."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def prefect() -> Any:
    """Prefect's application with its user interface and services."""
    from prefect.server.api.server import create_app

    from flows.server.deployment_names import OldNames

    return OldNames(create_app(final=True))


def mlflow() -> Any:
    """MLflow's application on the database of the home."""
    from backprop_core.runtime.settings import settings
    from tasks.tracking.server import application

    return application(settings())


APPLICATIONS = {"temporary-prefect": temporary_prefect, "prefect": prefect, "mlflow": mlflow}

if __name__ == "__main__":
    main()
