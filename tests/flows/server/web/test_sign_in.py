"""Who comes in, and who may act: sessions, passwords, tokens, roles."""

import re
import time
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient

from backprop_core.errors import AuthRequired, ConfigInvalid
from backprop_core.runtime.settings import settings
from flows.server import users
from flows.server.serve import password
from flows.server.users import User
from flows.server.web import sessions
from flows.server.web.throttle import MOST_KEYS, Throttle
from tests.flows.server.web.conftest import SECRET, LineMaker, Pages, people, sign_in
from tests.flows.server.web.test_actions import HERE, press, token

HTML = {"Accept": "text/html"}
ACTIONS = ("retrain", "rollback", "schedule", "questions/11111111-1111-1111-1111-111111111111")


def signed_in(pages: Pages, name: str, **given: str) -> TestClient:
    """A browser of a user."""
    browser = pages(**given)
    assert sign_in(browser, name).status_code == 303
    return browser


def test_a_browser_signs_in_and_out(support: LineMaker, pages: Pages) -> None:
    """The page that was asked for comes after the login, without a script; after signing out nothing comes any more."""
    people(ann="act")
    browser = pages()
    asked = browser.get("/lines/support?a=1", headers=HTML)
    assert asked.status_code == 401 and 'value="/lines/support?a=1"' in asked.text and "support" not in asked.headers
    assert "www-authenticate" not in asked.headers and asked.headers["cache-control"] == "no-store"
    assert "90.0" not in asked.text and "<script" not in asked.text
    answer = sign_in(browser, "ann", then="/lines/support?a=1")
    assert (answer.status_code, unquote(answer.headers["location"])) == (303, "/lines/support?a=1")
    [cookie] = [each for each in answer.headers.get_list("set-cookie") if "session" in each]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie and "Path=/" in cookie
    page = browser.get("/lines/support", headers=HTML)
    assert page.status_code == 200 and "ann" in page.text and "Sign out" in page.text
    stolen = dict(browser.cookies)
    old = token(browser)
    out = browser.post("/logout", data={"token": old}, headers=HERE)
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    for name, value in stolen.items():
        browser.cookies.set(name, value, domain="testserver.local")
    assert browser.get("/lines/support").status_code == 401
    assert browser.post("/lines/support/retrain", data={"token": old}, headers=HERE).status_code == 401


def test_behind_tls_the_cookie_is_secure(support: LineMaker, pages: Pages) -> None:
    """A session over TLS is never sent without it."""
    people(ann="act")
    app = pages().app
    browser = TestClient(app, base_url="https://testserver", follow_redirects=False)
    page = browser.get("/login").text
    [given] = re.findall('name="token" value="([0-9a-f]{64})"', page)
    data = {"token": given, "then": "/", "name": "ann", "password": SECRET}
    answer = browser.post("/login", data=data, headers={"Origin": "https://testserver"})
    assert answer.status_code == 303 and "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "then", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "/\nx", "", "/login"]
)
def test_a_login_leads_nowhere_else(support: LineMaker, pages: Pages, then: str) -> None:
    """The page after the login is one of this server."""
    people(ann="act")
    assert sign_in(pages(), "ann", then=then).headers["location"] == "/"


def test_a_session_that_was_planted_is_none(support: LineMaker, pages: Pages) -> None:
    """A login always begins a new session, so that nobody knows it before; the old one of the browser ends."""
    people(ann="act", mallory="act")
    browser = pages()
    browser.cookies.set("backprop-session", "planted", domain="testserver.local")
    assert browser.get("/").status_code == 401
    sign_in(browser, "mallory")
    first = browser.cookies["backprop-session"]
    assert first != "planted"
    planted = token(browser)
    sign_in_again = browser.get("/login", headers=HTML)
    assert sign_in_again.status_code == 303  # who is signed in goes on
    browser.post("/logout", data={"token": planted}, headers=HERE)
    sign_in(browser, "ann")
    assert browser.cookies["backprop-session"] not in (first, "planted")
    replayed = browser.post("/lines/support/retrain", data={"token": planted}, headers=HERE)
    assert replayed.status_code == 403 and "INPUT_FORM_EXPIRED" in replayed.text  # a token of another session


def test_a_login_comes_from_our_page(support: LineMaker, pages: Pages) -> None:
    """Another site cannot sign somebody in under its own name."""
    people(mallory="act")
    browser = pages()
    data = {"name": "mallory", "password": SECRET, "token": "0" * 64}
    assert browser.post("/login", data=data, headers=HERE | HTML).status_code == 403
    assert browser.post("/login", data=data, headers={"Origin": "http://evil.example"}).status_code == 403
    assert not [name for name in browser.cookies if "session" in name]


def test_a_session_dies_with_its_user(support: LineMaker, pages: Pages) -> None:
    """Whoever is removed or gets another password is out at once; another role counts at once."""
    people(ann="act", bob="act", eve="act")
    app = pages().app
    browsers = {name: TestClient(app, follow_redirects=False) for name in ("ann", "bob", "eve")}
    for name, browser in browsers.items():
        sign_in(browser, name)
    config = settings()
    users.remove("ann", config)
    users.set_password("bob", "another staple", config)
    users.set_role("eve", "look", config)
    assert [browser.get("/").status_code for browser in browsers.values()] == [401, 401, 200]
    assert press(browsers["eve"], "retrain").status_code == 403


def test_sessions_end() -> None:
    """Idle for long, or long after the login; and there are never more than a bounded number."""
    clock = [0.0]
    known = sessions.Sessions(lambda: clock[0])
    ann = User(name="ann", role="act", password="hash")
    first = known.begin(ann)
    clock[0] += sessions.IDLE + 1
    assert known.user(first, {"ann": ann}) is None
    second = known.begin(ann)
    while clock[0] < sessions.IDLE + sessions.WHOLE:
        assert known.user(second, {"ann": ann}) == ann
        clock[0] += sessions.IDLE - 1
    assert known.user(second, {"ann": ann}) is None
    for _ in range(sessions.MOST + 5):
        last = known.begin(ann)
    assert len(known) == sessions.MOST and known.user(last, {"ann": ann}) == ann


def crawled(browser: TestClient) -> dict[str, str]:
    """Every page that links lead to, from the start page on."""
    found: dict[str, str] = {}
    ahead = ["/"]
    while ahead:
        path = ahead.pop()
        if path in found or "/files/" in path or path.startswith(("/static/", "/api/v1/openapi")):
            continue
        answer = browser.get(path, headers=HTML)
        found[path] = answer.text
        ahead += [unescape(each) for each in re.findall('href="(/[^"#]*)', answer.text)]
    return found


def test_who_may_look_sees_no_button(support: LineMaker, pages: Pages) -> None:
    """Every page is there, without a form that acts; who may act has them."""
    people(ann="act", eve="look")
    app = pages().app
    ann, eve = (TestClient(app, follow_redirects=True) for _ in range(2))
    sign_in(ann, "ann")
    sign_in(eve, "eve")
    acting, looking = crawled(ann), crawled(eve)
    assert sum(text.count('name="token"') for text in acting.values()) > len(acting)  # the negative control
    assert {"/", "/lines/support", "/history", "/health/page"} <= {*looking}
    for path, text in looking.items():
        assert text.count('name="token"') == text.count('action="/logout"') == 1, path
        assert "eve may look" in text and text.rstrip().endswith("</html>")


def test_who_may_look_is_refused_every_write(support: LineMaker, pages: Pages) -> None:
    """403 with a code, with a valid token of the page, by form and by API, by session, password and token."""
    people(eve="look")
    secret = users.new_token("eve", settings())[1]
    browser = signed_in(pages, "eve")
    [given] = {*re.findall('name="token" value="([0-9a-f]{64})"', browser.get("/").text)}
    for path in ACTIONS:
        answer = browser.post(f"/lines/support/{path}", data={"token": given}, headers=HERE)
        assert answer.status_code == 403 and "INPUT_ACTION_FORBIDDEN" in answer.text
        bearer = pages().post(f"/lines/support/{path}", headers={"Authorization": f"Bearer {secret}"})
        assert bearer.status_code == 403 and "INPUT_ACTION_FORBIDDEN" in bearer.text
    rows = browser.post("/api/v1/lines/support/rows?filename=a", headers=HERE | {"X-Backprop-Token": given})
    assert (rows.status_code, rows.json()["code"]) == (403, "INPUT_ACTION_FORBIDDEN")


def test_a_service_uses_a_token(support: LineMaker, pages: Pages) -> None:
    """A token reads, downloads and writes without cookie, form or Origin; revoked or cut, it is refused at once."""
    people(nightly="act")
    config = settings()
    id, secret = users.new_token("nightly", config)
    service = pages()
    headers = {"Authorization": f"Bearer {secret}"}
    assert service.get("/api/v1/lines", headers=headers).status_code == 200
    file = "/lines/support/versions/2/files/support-v2-q8_0.gguf"
    assert len(service.get(file, headers=headers).content) == 1004
    written = service.post("/api/v1/lines/support/rows?filename=a.jsonl", content=b"{}", headers=headers)
    assert written.status_code == 503  # Prefect is away: it was let in
    assert secret not in config.layout.users.read_text()
    for wrong in (secret[:-1], secret + "x", "", id):
        answer = service.get("/api/v1/lines", headers={"Authorization": f"Bearer {wrong}"})
        assert (answer.status_code, answer.json()["code"]) == (401, "INPUT_AUTH_REQUIRED")
        assert answer.headers["content-type"] == "application/problem+json"
    users.revoke("nightly", id, config)
    assert service.get("/api/v1/lines", headers=headers).status_code == 401


def test_a_thousand_logins(support: LineMaker, pages: Pages) -> None:
    """After ten wrong ones the next are refused with a code in no time; the right one still works from elsewhere."""
    people(ann="act")
    app = pages().app
    here = TestClient(app, client=("192.0.2.1", 1), follow_redirects=False)
    page = here.get("/login").text
    [given] = re.findall('name="token" value="([0-9a-f]{64})"', page)
    data = {"token": given, "then": "/", "name": "ann"}
    statuses = []
    began, worked = time.monotonic(), time.process_time()
    for number in range(1000):
        answer = here.post("/login", data=data | {"password": f"guess number {number}"}, headers=HERE)
        statuses.append(answer.status_code)
    seconds, worked = time.monotonic() - began, time.process_time() - worked
    assert statuses[:10] == [401] * 10 and set(statuses[10:]) <= {401, 429}
    assert statuses[10:].count(401) <= seconds / 60  # one attempt a minute is let through
    assert "INPUT_TOO_MANY_ATTEMPTS" in answer.text and 0 < int(answer.headers["retry-after"]) <= 61
    assert here.post("/login", data=data | {"password": SECRET}, headers=HERE).status_code == 429  # not even looked at
    assert here.get("/", auth=("ann", SECRET)).status_code == 429
    elsewhere = TestClient(app, client=("192.0.2.2", 1), follow_redirects=False)
    assert sign_in(elsewhere, "ann").status_code == 303
    assert worked < 100  # of this process alone; a thousand hashes would take five minutes


def test_names_cannot_be_tried_either(support: LineMaker, pages: Pages) -> None:
    """Other names from one address are refused after a while, whether they exist or not; an IPv6 /64 is one address."""
    people(ann="act")
    app = pages().app
    statuses, began = list[int](), time.monotonic()
    while 429 not in statuses and len(statuses) < 100:
        client = TestClient(app, client=(f"2001:db8::{len(statuses) + 1:x}", 1))
        answer = client.get("/api/v1/lines", auth=(f"name{len(statuses)}", "wrong guess 1"))
        statuses.append(answer.status_code)
    faded = (time.monotonic() - began) / 10  # on a busy machine the first attempts are forgiven before the last
    assert set(statuses[:-1]) == {401} and statuses[-1] == 429 and 20 <= len(statuses[:-1]) <= 20 + faded
    assert TestClient(app, client=("2001:db8:0:1::1", 1)).get("/api/v1/lines", auth=("ann", SECRET)).status_code == 200


def test_an_unknown_name_is_no_faster(support: LineMaker, pages: Pages) -> None:
    """Neither the answer nor its time says whether there is such a user."""
    people(ann="act")
    client = pages(password="team:horse staple")

    def took(name: str) -> tuple[float, str]:
        times = []
        for number in range(3):
            began = time.process_time()  # of this process alone, as others may be busy
            answer = client.get("/api/v1/lines", auth=(name, f"wrong guess {number}"))
            times.append(time.process_time() - began)
        return min(times), answer.text

    (ann, said), (team, _), (none, other) = took("ann"), took("team"), took("none")
    assert said == other
    assert max(ann, team, none) < 3 * min(ann, team, none)  # without a hash it would be a fortieth


def test_services_are_not_slowed(support: LineMaker, pages: Pages) -> None:
    """A right password is hashed once, however often it comes; it ends with its user."""
    people(ann="act")
    client = pages()
    assert client.get("/api/v1/lines", auth=("ann", SECRET)).status_code == 200
    began = time.process_time()
    for _ in range(20):
        assert client.get("/api/v1/lines", auth=("ann", SECRET)).status_code == 200
    assert time.process_time() - began < 20 * 0.15
    users.set_password("ann", "another staple", settings())
    assert client.get("/api/v1/lines", auth=("ann", SECRET)).status_code == 401


def test_a_damaged_file_lets_nobody_in(support: LineMaker, pages: Pages) -> None:
    """Nor does a file whose last user is gone: once asked, always asked."""
    people(ann="act")
    browser = signed_in(pages, "ann")
    settings().layout.users.write_text("{")
    answer = browser.get("/")
    assert answer.status_code == 500 and "CONFIG_INVALID" in answer.text and "support" not in answer.text
    settings().layout.users.unlink()
    assert browser.get("/").status_code == 401


def test_strangers_learn_no_line(support: LineMaker, pages: Pages) -> None:
    """No answer to a stranger, whatever was asked, has the name of a line in it."""
    people(ann="act")
    client = TestClient(pages().app, follow_redirects=False)
    for method in ("GET", "POST", "PUT", "OPTIONS", "HEAD"):
        for path in (
            "/",
            "/login",
            "/logout",
            "/health",
            "/nothing",
            "/static/page.css",
            "/static/none",
            "/api/v1/docs",
        ):
            answer = client.request(method, path, headers=HTML | HERE)
            assert "support" not in answer.text, (method, path)
            assert answer.status_code < 500


def test_the_password_of_serve_signs_in_too(support: LineMaker, pages: Pages) -> None:
    """The user of `serve --auth` has no entry in the file, and may act."""
    people(eve="look")
    browser = pages(password="team:horse staple")
    assert sign_in(browser, "team").status_code == 303
    assert press(browser, "retrain").status_code == 503  # Prefect is away: it was let in


def test_the_door_is_bounded() -> None:
    """What attempts leave in memory has a bound."""
    throttle = Throttle(burst=1, seconds=1.0)
    for number in range(MOST_KEYS + 10):
        throttle.add(number)
    assert len(throttle) == MOST_KEYS


def test_with_users_serve_needs_a_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect and MLflow would be open to those who may only look, and their user is not one of the file."""
    monkeypatch.setenv("BACKPROPAGATE_AUTH_PASSWORD", SECRET)
    assert password(None, "127.0.0.1", settings()) is None
    people(ann="look")
    with pytest.raises(AuthRequired, match="Prefect and MLflow"):
        password(None, "127.0.0.1", settings())
    with pytest.raises(ConfigInvalid, match="ann is a user"):
        password("ann", "127.0.0.1", settings())
    assert password("team", "127.0.0.1", settings()) == f"team:{SECRET}"
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert password(None, "0.0.0.0", settings()) is None  # neither is served here, and the pages ask
