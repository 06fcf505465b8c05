"""Prefect for one command: without log output, and with a temporary server that starts before Prefect is imported.

Prefect can start a temporary server itself, but only after its own import, and open to every user of the machine.
Ctrl-C would end that server before the flow has reported its interruption, and the flow would wait a minute for it.
With a server of the user's choice, nothing is started here.
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
from backprop_core.runtime.settings import settings
from flows.server.server_process import Child

DEFAULTS = {
    "DO_NOT_TRACK": "1",  # the client's usage data
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the server's
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
}


def quiet_prefect() -> None:
    """Turn off Prefect's logs and telemetry unless the user has set them. Call it before Prefect is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


class TemporaryServer(Child):
    """A Prefect server in a child process, on a loopback port, with a random password.

    The socket listens from the start, so that no request is lost.
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
        atexit.register(self.stop)  # Prefect's own handlers still send something: the last registered runs first


_server: TemporaryServer | None = None  # Prefect, too, has one server a process


def start_server() -> None:
    """Start a temporary server unless the user has set one. Returns at once; `connected` waits for it."""
    global _server
    if (
        not os.environ.get("PREFECT_API_URL") and os.name == "posix" and _server is None
    ):  # Windows: no inherited sockets
        _server = TemporaryServer(settings().layout.log("prefect-server"))


def is_temporary() -> bool:
    """Whether Prefect's server is the temporary one of this command, which has no pages."""
    return _server is not None and os.environ.get("PREFECT_API_URL") == _server.url


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Prefect's server for the block. Raises PrefectUnreachable."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings, temporary_settings

    garbage.begin()
    if not get_current_settings().api.url and os.environ.get("PREFECT_API_URL"):
        refresh_global_settings_context()  # Prefect was imported before the variable was set
    url = get_current_settings().api.url
    if url and (_server is None or url != _server.url):  # the user's, also from a profile that only Prefect finds
        check_answers(url)
        yield
        return
    if _server is None:
        start_prefects_own()
        yield
        return
    _server.wait()
    os.environ |= {"PREFECT_API_URL": _server.url, "PREFECT_API_AUTH_STRING": _server.password}
    refresh_global_settings_context()
    with temporary_settings({"flows.heartbeat_frequency": None}):  # heartbeats cost a second, and have no listener
        yield


def check_answers(url: str) -> None:
    """Raise PrefectUnreachable unless the user's Prefect server answers."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem:
        raise PrefectUnreachable(
            f"no Prefect server answers at {url}: {problem}",
            hint="start it, or unset PREFECT_API_URL to run without a server",
        )


def start_prefects_own() -> None:
    """Let Prefect start a temporary server itself, where ours cannot be. Raises PrefectUnreachable."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        get_client(sync_client=True)
    except (RuntimeError, ValueError, httpx.HTTPError) as error:  # it is late or has died, or the user has forbidden it
        raise PrefectUnreachable(
            f"Prefect could not start a temporary server: {str(error).strip().partition(chr(10))[0]}",
            hint="run it again, or start a server and name it in PREFECT_API_URL",
        ) from error


@contextmanager
def refusals(hint: str) -> Iterator[None]:
    """Turn refusals and timeouts of the Prefect server in the block into coded errors.

    Raises DeploymentRefused, PrefectUnreachable.
    """
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        yield
    except PrefectHTTPStatusError as error:
        raise DeploymentRefused(
            f"the Prefect server refused the request: {error.response.status_code} {error.response.text[:300]}",
            hint=f"check PREFECT_API_AUTH_STRING; {hint}",
        ) from error
    except httpx.HTTPError as error:
        raise PrefectUnreachable(f"the Prefect server does not answer: {error}", hint="start it again") from error
