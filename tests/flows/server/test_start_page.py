"""The pages that `serve` shows answer every method of HTTP as they should."""

import http.client
import socket
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from flows.server.access_control import AccessControl
from flows.server.start_page import Page

READS = "GET, HEAD, OPTIONS"


@pytest.fixture
def ask() -> Iterator:
    """Asks the start page: status, headers and body of the answer."""
    listening = socket.create_server(("127.0.0.1", 0))
    where = {"prefect": "http://a", "mlflow": "http://b"}
    page = Page(listening, hosts=["127.0.0.1"], addresses=where, is_alive=lambda: {"prefect": True})

    def ask(method: str, path: str, host: str = "127.0.0.1"):
        connection = http.client.HTTPConnection(*listening.getsockname(), timeout=10)
        connection.request(method, path, headers={"Host": host})
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    yield ask
    page.close()
    listening.close()


@pytest.mark.parametrize("path", ["/", "/health", "/nothing"])
def test_head_is_get_without_a_body(ask, path):
    """Status, kind and length are those of GET, on every page."""
    status, headers, body = ask("GET", path)
    status_of_head, headers_of_head, nothing = ask("HEAD", path)
    same = ("Content-Type", "Content-Length")
    assert status == status_of_head and [headers[n] for n in same] == [headers_of_head[n] for n in same]
    assert body and int(headers["Content-Length"]) == len(body) and nothing == b""
    assert ask("HEAD", path, "evil.example")[0] == ask("GET", path, "evil.example")[0] == 403


def test_other_methods_are_named(ask):
    """OPTIONS says what may be done; what may not is 405 with the same list, never 501."""
    assert ask("OPTIONS", "/")[0] == 204 and ask("OPTIONS", "/")[1]["Allow"] == READS
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE"):
        status, headers, _ = ask(method, "/")
        assert (status, headers["Allow"]) == (405, READS)


def test_head_behind_the_door_is_get():
    """Pages of Prefect and MLflow that know GET alone answer HEAD too; what is refused is refused for both."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("hello"), methods=["GET"])])
    app.router.routes[0].methods = {"GET"}  # as FastAPI has it, without HEAD
    client = TestClient(AccessControl(app, hosts=["testserver"], password=None))
    assert client.get("/").status_code == client.head("/").status_code == 200
    assert TestClient(AccessControl(app, hosts=["other"], password=None)).head("/").status_code == 403
