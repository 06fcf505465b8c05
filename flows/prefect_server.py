"""The temporary Prefect server: `python -m flows.prefect_server FD` serves on the socket FD until stdin closes."""

import gc
import os
import signal
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext

import uvicorn

PATIENCE = 5.0  # seconds for what is still to be written


class Server(uvicorn.Server):
    """Says "up" on stdout when it answers; ends when stdin closes."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print("up", flush=True)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # it is a generator there
        """Ctrl-C is for the parent, which still has to report here."""
        return nullcontext()


def end_with_stdin(server: Server) -> None:
    """Wait until the parent has no more use for the server, or is dead."""
    sys.stdin.buffer.read()
    if server.started:
        server.should_exit = True
        time.sleep(PATIENCE)
    os._exit(0)


def main() -> None:
    """Serve Prefect's API."""
    gc.disable()  # the imports make a million objects that stay; a sixth of the start would go into counting them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening = socket.socket(fileno=int(sys.argv[1]))
    server = Server(uvicorn.Config("flows.prefect_server:app", factory=True, log_level="error", lifespan="on"))
    threading.Thread(target=end_with_stdin, args=[server], daemon=True).start()
    server.run(sockets=[listening])
    os._exit(0)  # everything is written; taking a million objects apart would take another second


def app() -> object:
    """Prefect's application, without its user interface."""
    from prefect.server.api.server import create_app

    made = create_app(ephemeral=True, final=True)
    gc.enable()
    return made


if __name__ == "__main__":
    main()
