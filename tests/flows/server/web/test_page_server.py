"""The pages over a real socket: HEAD has no body, and they stop when `serve` stops."""

import http.client
import socket
from contextlib import suppress

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from backprop_core.runtime.settings import settings
from flows.server import audit
from flows.server.access_control import AccessControl
from flows.server.web.page_server import PageServer
from tests.flows.server.web.conftest import LineMaker, Pages, people


def test_head_has_no_body(support: LineMaker, pages: Pages) -> None:
    """Over HTTP, HEAD has the length of GET and nothing else; after `close` nothing listens."""
    listening = socket.create_server(("127.0.0.1", 0))
    place = listening.getsockname()
    server = PageServer(listening, pages().app)

    def ask(method: str) -> tuple[int, str | None, bytes]:
        connection = http.client.HTTPConnection(*place, timeout=10)
        connection.request(method, "/lines/support", headers={"Host": "testserver"})
        answer = connection.getresponse()
        found = answer.status, answer.headers["Content-Length"], answer.read()
        connection.close()
        return found

    (status, length, body), head = ask("GET"), ask("HEAD")
    assert (status, int(length or 0)) == (200, len(body)) and head == (200, length, b"")
    server.close()
    with socket.socket() as again:
        assert again.connect_ex(place) != 0


def test_head_behind_the_door_is_get() -> None:
    """Pages of Prefect and MLflow that know GET alone answer HEAD too; what is refused is refused for both."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("hello"), methods=["GET"])])
    app.router.routes[0].methods = {"GET"}  # type: ignore[attr-defined]  # as FastAPI has it, without HEAD
    client = TestClient(AccessControl(app, hosts=["testserver"], password=None))
    assert client.get("/").status_code == client.head("/").status_code == 200
    assert TestClient(AccessControl(app, hosts=["other"], password=None)).head("/").status_code == 403


@pytest.mark.parametrize(("proxy", "believed"), [(None, False), ("127.0.0.1", True), ("192.0.2.9", False)])
def test_only_a_named_proxy_says_who_asks(support: LineMaker, pages: Pages, proxy: str | None, believed: bool) -> None:
    """X-Forwarded-Proto and -For count from the proxy that the setting names, and from nobody else."""
    people(ann="act")
    listening = socket.create_server(("127.0.0.1", 0))
    place = listening.getsockname()
    server = PageServer(listening, pages().app, proxy)
    headers = {"Host": "testserver", "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
    connection = http.client.HTTPConnection(*place, timeout=10)
    connection.request("GET", "/", headers=headers | {"Authorization": "Bearer wrong", "Accept": "text/html"})
    connection.getresponse().read()
    connection.request("GET", "/login", headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    server.close()
    assert ("secure" in answer.headers["Set-Cookie"].lower()) == believed
    assert audit.entries(settings(), 1)[0].address == ("192.0.2.7" if believed else "127.0.0.1")


def test_oversize_requests_are_refused(support: LineMaker, pages: Pages) -> None:
    """Headers of a megabyte, ten thousand cookies, a form of a gigabyte: a 4xx, and the server goes on."""
    people(ann="act")
    listening = socket.create_server(("127.0.0.1", 0))
    place = listening.getsockname()
    server = PageServer(listening, pages().app)
    cookies = "; ".join(f"backprop-session-{number}=x" for number in range(10_000))
    found = []
    for headers in ({"X-Large": "x" * 2**20}, {"Cookie": cookies}, {"Authorization": "Basic " + "A" * 60_000}):
        connection = http.client.HTTPConnection(*place, timeout=10)
        with suppress(ConnectionError):
            connection.request("GET", "/login", headers={"Host": "testserver", **headers})
            found.append(connection.getresponse().status)
        connection.close()
    assert found and set(found) <= {400, 401, 431}
    connection = http.client.HTTPConnection(*place, timeout=10)
    connection.request("GET", "/health", headers={"Host": "testserver"})
    assert connection.getresponse().status == 200
    connection.close()
    server.close()
