"""A page that refreshes costs little: nothing is rendered twice, and Prefect is asked again only when it has to be."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from starlette.testclient import TestClient

from flows.server.web.prefect_api import PrefectApi
from tests.flows.server.web.conftest import LineMaker, Pages
from tests.wire.stand_in import Request, Service

LINE = "/lines/support"


class IdlePrefect(Service):
    """A Prefect in which nothing runs."""

    def answer(self, request: Request) -> None:
        request.body()
        if "/filter" in request.path:
            request.reply(200, [])
        else:
            request.reply(404, {})


@pytest.fixture
def idle() -> Iterator[IdlePrefect]:
    with IdlePrefect().running() as service:
        yield service


@pytest.fixture
def browser(idle: IdlePrefect, support: LineMaker, pages: Pages) -> TestClient:
    return pages(f"{idle.url}/api")


def refresh(browser: TestClient, has: str) -> tuple[int, str]:
    """Status and tag of a refresh of the page."""
    answer = browser.get(LINE, headers={"If-None-Match": has})
    return answer.status_code, answer.headers["etag"]


def test_an_unchanged_page_is_not_sent_again(browser: TestClient, support: LineMaker) -> None:
    """304 while it is the same; whole as soon as the line has another version."""
    browser.get("/")  # the cookie is in the form's token
    seen = [refresh(browser, browser.get(LINE).headers["etag"])[0] for _ in range(3)]
    assert seen.count(304) >= 2  # times on the page are relative: it is another one each minute
    _, has = refresh(browser, "")
    support.version(3, 0.95)
    assert refresh(browser, has)[0] == 200


def test_a_refresh_asks_prefect_seldom(browser: TestClient, idle: IdlePrefect, support: LineMaker) -> None:
    """A load asks anew. A refresh does so when a run has begun or ended in the store, and after a write of the page."""
    sign = support.store.layout.flow_runs
    sign.mkdir(exist_ok=True)

    def asked() -> bool:
        before = len(idle.requests)
        refresh(browser, "")
        return len(idle.requests) > before

    browser.get(LINE)
    assert not asked() and not asked()
    (sign / "begun").write_text("")
    assert asked() and not asked()
    before = len(idle.requests)
    browser.get(LINE)
    assert len(idle.requests) > before


def test_a_write_makes_what_was_kept_old(idle: IdlePrefect) -> None:
    """An answer is kept until something is written, by whichever page."""
    with closing(PrefectApi(f"{idle.url}/api", None)) as api:

        def asked() -> int:
            api.query("/flow_runs/filter", {})
            return idle.count("POST /api/flow_runs/filter")

        assert [asked(), asked()] == [1, 1]
        api.send("PATCH", "/deployments/1", {})
        assert asked() == 2


def test_a_lost_server_is_not_remembered(idle: IdlePrefect, support: LineMaker, pages: Pages) -> None:
    """As soon as Prefect answers again, so does the page; that it was away is kept no longer than it was."""
    browser = pages(f"{idle.url}/api")
    idle.fail("POST", "500", times=100)
    assert "Not known now" in browser.get(LINE).text
    idle.faults.clear()
    assert "Not known now" not in browser.get(LINE, headers={"If-None-Match": ""}).text
