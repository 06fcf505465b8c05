"""Requests to Prefect over connections that break."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from backprop_core.errors import PrefectUnreachable
from flows.server.web import prefect_api
from flows.server.web.prefect_api import PrefectApi


class Breaking(BaseHTTPRequestHandler):
    """Reads each POST, and closes the connection without an answer."""

    posts: list[str]

    def do_GET(self) -> None:  # no protection against forged requests
        self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.posts.append(self.path)
        self.close_connection = True

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrefectApi]:
    """Prefect behind connections that break."""
    monkeypatch.setattr(prefect_api, "BUSY", (0, 0))
    monkeypatch.setattr(Breaking, "posts", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as server:
        threading.Thread(target=server.serve_forever).start()
        api = PrefectApi(f"http://127.0.0.1:{server.server_port}", None)
        yield api
        api.close()
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "body", "tries"),
    [
        ("/deployments/1/schedules", [{"active": True}], 1),
        ("/flow_runs/1/resume", {"run_input": {}}, 1),
        ("/deployments/1/create_flow_run", {"idempotency_key": "one"}, 3),
        ("/flow_runs/1/set_state", {"state": {"type": "SCHEDULED"}}, 1),
        ("/flow_runs/1/set_state", {"state": {"state_details": {"transition_id": "one"}}}, 3),
        ("/flow_runs/filter", {}, 3),
    ],
)
def test_only_what_cannot_be_done_twice_is_sent_again(
    breaking: PrefectApi, path: str, body: object, tries: int
) -> None:
    """Prefect may have done what it was asked before the connection broke: a second schedule would be one too many."""
    with pytest.raises(PrefectUnreachable):
        breaking.send("POST", path, body)
    assert Breaking.posts == [path] * tries
