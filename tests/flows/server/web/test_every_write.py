"""No write of any page or of the API gets by without the token of a page and the role to act, whoever adds it."""

import re
from collections.abc import Iterator
from typing import Any

from starlette.testclient import TestClient

from backprop_core.runtime.settings import settings
from flows.server import users
from tests.flows.server.web.conftest import LineMaker, Pages, people
from tests.flows.server.web.test_actions import HERE

ANYONE = {"POST /login", "POST /logout"}


def writes(client: TestClient) -> Iterator[tuple[str, str]]:
    """Method and path of every route that is no read, below the layers around the application."""
    app: Any = client.app
    while not hasattr(app, "routes"):
        app = app._app
    described = app.state.api.openapi()["paths"]
    found = [(route.path, method) for route in app.routes for method in getattr(route, "methods", None) or ()]
    found += [(f"/api/v1{path}", method.upper()) for path, methods in described.items() for method in methods]
    for path, method in found:
        if method not in ("GET", "HEAD", "OPTIONS") and f"{method} {path}" not in ANYONE:
            filled = re.sub(r"\{name\}", "support", path)
            yield method, re.sub(r"\{.*?\}", "11111111-1111-4111-8111-111111111111", filled)


def test_every_write_needs_the_token_of_its_page(support: LineMaker, pages: Pages) -> None:
    """Without it the answer is 403 with its code, before anything of the request is looked at."""
    client = pages()
    found = list(writes(client))
    assert len(found) >= 10
    for method, path in found:
        answer = client.request(method, path, params={"filename": "a.jsonl"}, headers=HERE)
        assert answer.status_code == 403 and "INPUT_FORM_EXPIRED" in answer.text, (method, path)


def test_every_write_needs_the_role_to_act(support: LineMaker, pages: Pages) -> None:
    """A service whose user may only look is refused each of them; the same service may act with the other role."""
    people(eve="look")
    secret = users.new_token("eve", settings())[1]
    client = pages()
    headers = {"Authorization": f"Bearer {secret}"}
    for method, path in writes(client):
        answer = client.request(method, path, params={"filename": "a.jsonl"}, headers=headers)
        assert answer.status_code == 403 and "INPUT_ACTION_FORBIDDEN" in answer.text, (method, path)
    users.set_role("eve", "act", settings())
    answer = client.post("/lines/support/retrain", headers=headers)
    assert answer.status_code == 503  # Prefect is away: it was let in
