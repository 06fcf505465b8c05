"""A real S3 server on this machine, and a proxy before it that counts what passes and cuts connections."""

import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import boto3  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "knows", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "team"


def environment(address: str) -> dict[str, str]:
    """The variables with which a process uses this server and no account of this machine."""
    nothing = {"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_EC2_METADATA_DISABLED": "true"}
    return {**KEYS, **nothing, "AWS_ENDPOINT_URL": address}


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "who", "aws_secret_access_key": "knows", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **keys)
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):  # moto keeps its buckets for the process
        client.create_bucket(Bucket=BUCKET)
    client.close()
    try:
        yield address
    finally:
        server.stop()


@dataclass
class Cutter:
    """A TCP proxy that breaks the connection at every n-th request: before it is sent, or before its answer is."""

    target: str
    every: int = 0  # 0: never
    last: int = 0  # after so many requests refuse everything, as if the machine had died; 0: never
    down: bool = False  # refuse everything
    requests: int = 0
    cuts: int = 0
    sent: int = 0
    received: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        host, port = self.target.removeprefix("http://").split(":")
        with client, suppress(OSError):
            if self.down:
                return
            with socket.create_connection((host, int(port))) as server:
                back = threading.Thread(target=self._back, args=(server, client), daemon=True)
                back.start()
                self._forward(client, server)
                server.shutdown(socket.SHUT_WR)
                back.join()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what the client sends; a request begins with its method."""
        while data := client.recv(1 << 16):
            if self.down:
                return
            cut = data.startswith((b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")) and self._is_due()
            if cut == "before":
                raise ConnectionAbortedError
            self.sent += len(data)
            server.sendall(data)
            if cut == "after":
                server.settimeout(0.2)
                with suppress(TimeoutError):
                    server.recv(1 << 16)
                raise ConnectionAbortedError

    def _is_due(self) -> str:
        with self.guard:
            self.requests += 1
            self.down = self.down or 0 < self.last < self.requests
            if self.down:
                return "before"
            if not self.every or self.requests % self.every:
                return ""
            self.cuts += 1
            return "before" if self.cuts % 2 else "after"

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                self.received += len(data)
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


def main() -> None:
    """Serve until stdin closes; the address is the only line of stdout."""
    logging.disable()
    with s3_server() as address:
        print(address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
