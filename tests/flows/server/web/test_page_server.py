"""The pages over a real socket: HEAD has no body, and they stop when `serve` stops."""

import http.client
import socket

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from flows.server.access_control import AccessControl
from flows.server.web.page_server import PageServer
from tests.flows.server.web.conftest import LineMaker, Pages


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
