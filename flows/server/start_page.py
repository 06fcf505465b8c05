"""The start page of `serve`, with links to Prefect and MLflow, and `/health` for monitoring."""

import html
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flows.server.access_control import name_of

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>backprop</title>
<style>body {{ font: 16px/1.5 sans-serif; margin: 4em auto; max-width: 40em }} td {{ padding-right: 2em }}</style>
<h1>backprop</h1>
<p><a href="{prefect}">Prefect</a>: start, schedule and follow runs<br>
<a href="{mlflow}">MLflow</a>: metrics, plots and versions of their results</p>
<table>{rows}</table>
</html>
"""


class Page:
    """Serves on a socket, in a thread, until it is closed."""

    def __init__(
        self,
        listening: socket.socket,
        *,
        hosts: Sequence[str],
        addresses: Mapping[str, Any],
        is_alive: Callable[[], dict[str, bool]],
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if name_of(self.headers.get("Host", "")) not in hosts:
                    self.answer(403, "text/plain", "Host header not allowed")
                    return
                alive = is_alive()
                if self.path == "/health":
                    document = {"status": "ok" if all(alive.values()) else "failing", **alive}
                    self.answer(200 if all(alive.values()) else 503, "application/json", json.dumps(document))
                elif self.path == "/":
                    self.answer(200, "text/html; charset=utf-8", page(addresses, alive))
                else:
                    self.answer(404, "text/plain", "only / and /health exist")

            do_HEAD = do_GET

            def refuse(self) -> None:
                if self.command == "OPTIONS":
                    self.answer(204, "text/plain", "")
                else:
                    self.close_connection = True  # the body is not read
                    self.answer(405, "text/plain", "this page is read-only")

            do_OPTIONS = do_POST = do_PUT = do_PATCH = do_DELETE = do_TRACE = do_CONNECT = refuse

            def answer(self, status: int, kind: str, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                if status in (204, 405):
                    self.send_header("Allow", "GET, HEAD, OPTIONS")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listening
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()


def page(addresses: Mapping[str, Any], alive: Mapping[str, bool]) -> str:
    rows = "".join(f"<tr><td>{name}<td>{'running' if lives else 'restarting'}" for name, lives in alive.items())
    links = {name: html.escape(str(addresses[name])) for name in ("prefect", "mlflow")}
    return PAGE.format(rows=rows, **links)
