"""Serves the pages on a socket, in a thread of `serve`."""

import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp

from backprop_core.errors import ServerFailed


class PageServer:
    """Serves an application on a socket, in a thread, until it is closed; `proxy` may say who asks, and how."""

    def __init__(self, listening: socket.socket, app: ASGIApp, proxy: str | None = None) -> None:
        config = uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=proxy is not None,
            forwarded_allow_ips=proxy or "",
            timeout_graceful_shutdown=1,  # a download does not keep `serve` from ending
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="pages", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ServerFailed("the start page did not start", hint="run it again with --verbose")
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
