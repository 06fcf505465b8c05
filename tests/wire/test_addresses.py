"""No request reaches a cloud's metadata service: however it is written, by redirect, or by a moving name."""

import socket
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from backprop_core.data.sources import snapshot
from backprop_core.errors import AddressForbidden
from backprop_core.evaluation.judge import Judge
from backprop_core.runtime import url_guard
from backprop_core.runtime.url_guard import client, refuse
from backprop_core.schema.specs import JudgeSpec
from tests.wire.stand_in import Request, Service

METADATA = "http://169.254.169.254/latest/meta-data/"
WRITTEN = [
    "169.254.169.254",
    "169.254.170.2",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "fe80::1",
    "fd00:ec2::254",
    "metadata.google.internal",
    "Metadata.Google.Internal.",
]
ALLOWED = ["127.0.0.1", "localhost", "::1", "10.0.0.7", "192.168.1.20", "172.17.0.1", "fd12:3456::1", "1.1.1.1"]


class Elsewhere(Service):
    """Sends whoever asks for /away to the metadata service, and gives others one row."""

    def answer(self, request: Request) -> None:
        if request.path == "/away":
            return request.reply(302, b"", Location=METADATA)
        if request.path == "/near":
            return request.reply(302, b"", Location=f"{self.url}/rows.jsonl")
        return request.reply(200, b'{"text": "a row"}\n')


@pytest.fixture
def server() -> Iterator[Elsewhere]:
    with Elsewhere().running() as server:
        yield server


@pytest.mark.parametrize("host", WRITTEN)
def test_every_way_to_write_it_is_refused(host: str) -> None:
    """Decimal, hexadecimal, octal, short, inside IPv6, by its name: all of them are the same address."""
    with pytest.raises(AddressForbidden, match="credentials"):
        refuse(host)


@pytest.mark.parametrize("host", ALLOWED)
def test_where_models_are_served_is_not(host: str) -> None:
    """Loopback and private networks stay open."""
    refuse(host)


@pytest.mark.parametrize("url", [METADATA, "http://2852039166/", "HTTP://[0:0:0:0:0:ffff:a9fe:a9fe]/x.jsonl"])
def test_a_dataset_there_is_refused(tmp_path, url: str) -> None:
    """A dataset's URL at the metadata service is a coded error."""
    with pytest.raises(AddressForbidden):
        snapshot(url, scratch=tmp_path)


def test_a_redirect_there_is_refused(tmp_path, server) -> None:
    """A redirect is followed, but not to the metadata service."""
    with pytest.raises(AddressForbidden, match=r"169\.254\.169\.254"):
        snapshot(f"{server.url}/away", scratch=tmp_path)
    assert snapshot(f"{server.url}/near", scratch=tmp_path).digest
    assert server.requests == ["GET /away", "GET /near", "GET /rows.jsonl"]


def test_a_judge_there_is_refused() -> None:
    """The judge's address is held to the same rule; nothing is tried again."""
    with Judge(JudgeSpec(address="http://0xa9fea9fe/v1", model="m")) as judge, pytest.raises(AddressForbidden):
        judge.grade({"row": 0, "messages": [], "reference": "a", "output": "a"})


def test_a_name_that_moves_is_refused(server, monkeypatch) -> None:
    """A name that means another address when the connection is made gets no request."""
    meant = iter(["198.51.100.1", "127.0.0.1"])
    resolve = socket.getaddrinfo

    def resolver(host: str, *rest: Any, **options: Any) -> Any:
        return resolve(next(meant) if host == "moves.test" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(url_guard, "FORBIDDEN", [ip_network("127.0.0.0/8")])
    url = server.url.replace("127.0.0.1", "moves.test")
    with client(trust_env=False) as http, pytest.raises(AddressForbidden, match=r"127\.0\.0\.1"):
        http.get(url)
    assert server.requests == []
