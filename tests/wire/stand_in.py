"""A stand-in for a service: a real HTTP server on this machine that keeps what it was sent and fails on command."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self

SLOW = 3.0  # seconds


@dataclass
class Fault:
    """The next `times` requests that begin with `request` (`POST /api/create`) go wrong in this way."""

    request: str
    how: str
    times: int


class Service:
    """What a stand-in knows, and how it shall fail. Subclasses answer."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.guard = threading.Lock()
        self.url = ""

    def fail(self, request: str, how: str, *, times: int = 1) -> None:
        self.faults.append(Fault(request, how, times))

    def count(self, request: str) -> int:
        """How many requests began so."""
        return sum(line.startswith(request) for line in self.requests)

    def fault(self, line: str) -> str:
        with self.guard:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times and line.startswith(fault.request):
                    fault.times -= 1
                    return fault.how
        return ""

    def answer(self, request: "Request") -> None:
        """Answer one request."""
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Listen on a free port while the block runs."""
        handler = type("Bound", (Request,), {"service": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Request(BaseHTTPRequestHandler):
    """One request. `fault` is how it shall fail: drop, 500, 401, 413, slow; others are the service's own."""

    service: ClassVar[Service]
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # headers and body in one go: no waiting for acknowledgements

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, *_: object) -> None:
        pass

    def serve(self) -> None:
        self.fault = self.service.fault(f"{self.command} {self.path}")
        if self.fault == "slow":
            time.sleep(SLOW)
        if self.fault == "drop":
            self.rfile.read(min(self.length, 1000))
            self.drop()
        elif self.fault.isdecimal():
            self.refuse(int(self.fault))
        else:
            self.service.answer(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def body(self) -> bytes:
        return self.rfile.read(self.length)

    def json(self) -> Any:
        return json.loads(self.body())

    def drop(self) -> None:
        """Go away without an answer."""
        self.close_connection = True
        self.connection.close()

    def refuse(self, status: int) -> None:
        """Answer before what is sent was read, say that the connection ends, and read the rest for nobody.

        A close over unread bytes resets the connection, and the answer can be lost with it.
        """
        self.reply(status, {"error": f"refused with {status}"}, Connection="close")
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        while self.connection.recv(1 << 16):
            pass

    def reply(self, status: int, value: Any = None, **headers: str) -> None:
        """A JSON answer, or raw bytes."""
        data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        if self.command != "HEAD" or "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def lines(self, *events: Any) -> None:
        """A stream of JSON lines, ended by closing the connection."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            self.wfile.write(json.dumps(event).encode() + b"\n")
            self.wfile.flush()
