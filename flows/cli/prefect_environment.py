"""Prefect for one command: quiet, and with a temporary server that starts before Prefect is imported.

Prefect would start a temporary server by itself: only after its own import, open to every user of the machine, and in
the way of Ctrl-C, which would end it before the flow could report that it was stopped, and the flow would wait a minute
for it. With a server of the user's choice nothing is started here.
"""

import atexit
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backprop_core.errors import DeploymentRefused, PrefectUnreachable
from backprop_core.runtime import garbage
from flows.server.server_process import Child

DEFAULTS = {
    "DO_NOT_TRACK": "1",  # the client's usage data
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the server's
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
}


def quiet_prefect() -> None:
    """Keep Prefect quiet and without telemetry, but for what the user has set. To be called before it is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


class TemporaryServer(Child):
    """A Prefect server in a child process, on a port of this machine that only we know the password of.

    The socket listens from the start, so that nothing is missed.
    """

    failure = PrefectUnreachable

    def __init__(self, log: Path) -> None:
        self.password = f"backprop:{secrets.token_urlsafe(24)}"
        secret = {"PREFECT_SERVER_API_AUTH_STRING": self.password, "PREFECT_UI_ENABLED": "false"}
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            super().__init__(
                "Prefect's temporary server",
                ["flows.server.server_main", "temporary-prefect", str(listening.fileno())],
                log=log,
                environment=os.environ | secret,
                sockets=[listening.fileno()],
            )
        atexit.register(self.stop)  # before Prefect's own, which still send something: the last in is the first out


_server: TemporaryServer | None = None  # Prefect, too, has one server a process


def start_server(log: Path) -> None:
    """Start a temporary server unless the user has named one. Returns at once; `connected` waits for it."""
    global _server
    if "PREFECT_API_URL" not in os.environ and os.name == "posix" and _server is None:  # Windows passes no sockets on
        _server = TemporaryServer(log)


def is_temporary() -> bool:
    """Whether Prefect's server is the one of this command: without pages, and gone when it ends."""
    return _server is not None and os.environ.get("PREFECT_API_URL") == _server.url


@contextmanager
def connected() -> Iterator[None]:
    """Prefect's server answers while the block runs. Raises PrefectUnreachable."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings, temporary_settings

    garbage.begin()
    url = get_current_settings().api.url
    if _server is None or url not in (
        None,
        _server.url,
    ):  # the user's, from a profile or a file that only Prefect finds
        if url:
            check_answers(url)
        yield
        return
    _server.wait()
    os.environ |= {"PREFECT_API_URL": _server.url, "PREFECT_API_AUTH_STRING": _server.password}
    refresh_global_settings_context()
    with temporary_settings({"flows.heartbeat_frequency": None}):  # they cost a second, and nobody would listen
        yield


def check_answers(url: str) -> None:
    """Raise PrefectUnreachable unless the user's Prefect server answers."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem:
        raise PrefectUnreachable(
            f"no Prefect server answers at {url}: {problem}", hint="start it, or unset PREFECT_API_URL to do without"
        )


@contextmanager
def refusals(hint: str) -> Iterator[None]:
    """What the Prefect server refuses while the block runs, as a coded error; so is that it does not answer.

    Raises DeploymentRefused, PrefectUnreachable.
    """
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        yield
    except PrefectHTTPStatusError as error:
        raise DeploymentRefused(
            f"the Prefect server refuses it: {error.response.status_code} {error.response.text[:300]}",
            hint=f"check PREFECT_API_AUTH_STRING; {hint}",
        ) from error
    except httpx.HTTPError as error:
        raise PrefectUnreachable(f"the Prefect server does not answer: {error}", hint="start it again") from error
