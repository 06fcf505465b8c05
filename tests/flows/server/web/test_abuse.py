"""What a page or a header makes of hostile input is a refusal with a code, never a traceback."""

import time
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from backprop_core.store.artifacts import Store
from tests.flows.server.web.conftest import LineMaker, Pages, run_id
from tests.flows.server.web.test_actions import HERE, token

PASSWORD = "team:horse staple"


def unguarded(client: TestClient) -> TestClient:
    """The same, with an exception of the application as the answer that a browser gets."""
    return TestClient(client.app, raise_server_exceptions=False, follow_redirects=False)


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "", "javascript:", "http://a@testserver"])
def test_no_origin_passes_or_breaks_the_door(pages: Pages, origin: str) -> None:
    """An Origin that is no address is refused like a foreign one, with a code and what to do."""
    answer = pages().get("/", headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.text.startswith("[INPUT_FORM_EXPIRED]") and "; open " in answer.text


@pytest.mark.parametrize("host", ["[", "evil@testserver", "testserver.evil", "", "testserver:80:80"])
def test_no_host_passes_or_breaks_the_door(pages: Pages, host: str) -> None:
    """A Host that is not exactly an allowed name is refused, with a code and the setting that allows more."""
    answer = pages().get("/", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.text.startswith("[INPUT_ADDRESS_FORBIDDEN]") and "BACKPROPAGATE_ALLOWED_HOSTS" in answer.text


@pytest.mark.parametrize("given", [None, "Basic", "Basic \u00ff", "Bearer x", "Basic dGVhbTpob3JzZSBzdGFwbGU"])
def test_no_password_has_a_code(pages: Pages, given: str | None) -> None:
    """Without the password the answer is 401 with a code; nothing of the page is in it."""
    headers = {"Authorization": given.encode("latin-1")} if given else {}
    answer = pages(password=PASSWORD).get("/", headers=headers)
    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")
    assert answer.text.startswith("[INPUT_AUTH_REQUIRED]")


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 300, "9" * 19])
def test_no_number_breaks_a_page(support: LineMaker, pages: Pages, number: str) -> None:
    """A version number of any length is 404."""
    answer = unguarded(pages()).get(f"/lines/support/versions/{number}/files/a.gguf")
    assert answer.status_code == 404 and "Code: <code>INPUT_REF_UNKNOWN" in answer.text


@pytest.mark.parametrize("path", ["/nothing", "/lines/", "/static/", "/static/%00", "/lines/support/versions/2"])
def test_an_unknown_page_says_what_to_do(support: LineMaker, pages: Pages, path: str) -> None:
    """404 has a code and the next step, as a page and as JSON."""
    answer = pages().get(path)
    assert answer.status_code == 404 and "INPUT_REF_UNKNOWN" in answer.text and "What to do:" in answer.text
    problem = pages().get("/api/v1/nothing").json()
    assert problem["code"] == "INPUT_REF_UNKNOWN" and problem["hint"]


def test_a_wrong_method_says_what_to_do(support: LineMaker, pages: Pages) -> None:
    """405 has a code and names the methods, as a page and as JSON; no GET does what a button does."""
    for path in ("retrain", "schedule", "questions/11111111-1111-1111-1111-111111111111"):
        answer = pages().get(f"/lines/support/{path}")
        assert answer.status_code == 405 and "CONFIG_INVALID" in answer.text and "POST" in answer.text
    assert pages().get("/api/v1/lines/support/rows").json()["code"] == "CONFIG_INVALID"


def test_a_mistake_of_ours_is_a_page_with_a_code(support: LineMaker, pages: Pages) -> None:
    """An exception without a code is answered with one, as a page and as JSON, and none of its text is shown."""
    client = unguarded(pages(api="http://\0secret/api"))  # httpx refuses it with an error of another family
    answer = client.get("/")
    assert answer.status_code == 500 and "RUNTIME_UNEXPECTED" in answer.text and "secret" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    problem = client.get("/api/v1/lines")
    assert problem.status_code == 500 and problem.json()["code"] == "RUNTIME_UNEXPECTED"


def test_a_missing_name_of_a_file_is_a_problem(support: LineMaker, pages: Pages) -> None:
    """What FastAPI refuses by itself is application/problem+json too."""
    browser = pages()
    headers = {**HERE, "X-Backprop-Token": token(browser)}
    answer = browser.post("/api/v1/lines/support/rows", content=b"{}", headers=headers)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "CONFIG_INVALID" and "filename" in answer.json()["detail"]


@pytest.mark.parametrize(
    "given", ["bytes=a-b", "bytes=9-1", "lines=1-2", "bytes=", "bytes=5000-", f"bytes={'9' * 5000}-"]
)
def test_a_malformed_range_is_refused(support: LineMaker, pages: Pages, given: str) -> None:
    """400, or 416 beyond the end with the size of the file."""
    link = "/lines/support/versions/2/files/support-v2-q8_0.gguf"
    answer = unguarded(pages()).get(link, headers={"Range": given})
    assert answer.status_code in (400, 416)
    assert answer.status_code == 400 or answer.headers["content-range"] == "bytes */1004"


DAMAGE: dict[str, Callable[[Store], object]] = {
    "a version that is cut": lambda store: store.layout.line("support").version(2).write_text('{"format": 1,'),
    "a champion that is no number": lambda store: store.layout.line("support").champion.write_text("\0"),
    "a champion that is gone": lambda store: store.layout.line("support").version(2).unlink(),
    "a result that is empty": lambda store: store.layout.run(run_id(2)).result.write_text(""),
    "a result of another shape": lambda store: store.layout.run(run_id(2)).result.write_text("[1]"),
    "a decision that is cut": lambda store: store.layout.run(run_id(2)).decision.write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_says_so_and_hides_no_other(support: LineMaker, pages: Pages, damage: str) -> None:
    """The start page lists the line as damaged beside the others; its own page has the code and what to do."""
    folder = support.store.root.parent / "lines"
    folder.mkdir()
    (folder / "billing.yaml").write_text("")
    DAMAGE[damage](support.store)
    client = unguarded(pages())
    start = client.get("/")
    assert start.status_code == 200 and "/lines/billing" in start.text and ">damaged</span>" in start.text
    for path in ("/lines/support", "/lines/support/rollback?to=1"):
        answer = client.get(path)
        assert answer.status_code == 500 and "STATE_ARTIFACT_DAMAGED" in answer.text and "backup" in answer.text
    assert client.get("/api/v1/lines/support").json()["code"] == "STATE_ARTIFACT_DAMAGED"
    assert client.get("/lines/billing").status_code == 200


def test_a_result_of_another_run_that_is_damaged_hides_no_line(support: LineMaker, pages: Pages) -> None:
    """Only its own row among the rejected ones is missing."""
    support.store.layout.run(run_id(3)).result.write_text("{")
    answer = unguarded(pages()).get("/lines/support")
    assert answer.status_code == 200 and "Version 2 is live" in answer.text


@pytest.mark.parametrize(("zone", "shown"), [("UTC0", "times in UTC ·"), ("CET-1", "times in CET (UTC+01:00) ·")])
def test_the_time_zone_is_shown(pages: Pages, monkeypatch: pytest.MonkeyPatch, zone: str, shown: str) -> None:
    """Every page says in which zone its times are: the machine's, which need not be the reader's."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert shown in pages().get("/").text
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_is_too_large_is_refused_before_it_comes(support: LineMaker, pages: Pages) -> None:
    """3 GB are refused by their announced length, not after 512 MiB were written."""
    browser = pages()
    headers = {**HERE, "X-Backprop-Token": token(browser), "Content-Length": str(3 * 10**9)}
    answer = browser.post("/api/v1/lines/support/rows?filename=a.jsonl", content=b"{}", headers=headers)
    assert answer.status_code == 413 and answer.json()["code"] == "INPUT_TOO_LARGE"
