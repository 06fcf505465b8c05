"""Everything that is done or refused at the pages is in the audit log, without secrets, and stays there."""

import json
import stat
from pathlib import Path

from starlette.testclient import TestClient

from backprop_core.runtime.settings import Settings, settings
from flows.cli import lines_file
from flows.server import audit, private_files
from tests.flows.server.web.conftest import EVIL, SECRET, LineMaker, Pages, people, sign_in
from tests.flows.server.web.test_actions import HERE, press, token


def said(config: Settings) -> list[tuple[str | None, str, int, str | None]]:
    """Who, what, status and code, the oldest first."""
    return [(each.who, each.what, each.status, each.code) for each in reversed(audit.entries(config, 1000))]


def test_every_action_is_written(support: LineMaker, pages: Pages) -> None:
    """Logins, actions and refusals, each with who, what and what came of it; reads are not in it."""
    people(ann="act", eve="look")
    app = pages().app
    ann, eve, stranger = (TestClient(app, client=(f"192.0.2.{n}", 1), follow_redirects=False) for n in (1, 2, 3))
    sign_in(ann, "ann")
    sign_in(eve, "eve")
    press(ann, "rollback", to="1", reason=f"worse {EVIL} password=hunter2hunter")
    eve.post("/lines/support/retrain", data={"token": token_of(eve)}, headers=HERE)
    ann.post("/lines/support/retrain", data={"token": "0" * 64}, headers=HERE)
    ann.post("/lines/support/retrain", headers={"Origin": "http://evil.example"})
    sign_in(stranger, "ann", "wrong guess 1")
    sign_in(stranger, "none", "wrong guess 1")
    stranger.post("/lines/support/retrain", headers=HERE)
    stranger.get("/", auth=("ann", "wrong guess 2"))
    stranger.get("/", headers={"Authorization": "Bearer bpt_wrong"})
    stranger.get("/")
    found = said(settings())
    assert found == [
        ("ann", "login", 303, None),
        ("eve", "login", 303, None),
        ("ann", "roll_back", 503, "DEP_PREFECT_UNREACHABLE"),
        ("eve", "retrain", 403, "INPUT_ACTION_FORBIDDEN"),
        ("ann", "retrain", 403, "INPUT_FORM_EXPIRED"),
        (None, "POST", 403, "INPUT_FORM_EXPIRED"),
        (None, "login", 401, "INPUT_AUTH_REQUIRED"),
        (None, "login", 401, "INPUT_AUTH_REQUIRED"),
        (None, "POST", 401, "INPUT_AUTH_REQUIRED"),
        (None, "GET", 401, "INPUT_AUTH_REQUIRED"),
        (None, "GET", 401, "INPUT_AUTH_REQUIRED"),
    ]
    entries = list(reversed(audit.entries(settings(), 1000)))
    assert entries[2].given == {"to": "1", "reason": f"worse {EVIL} password=***"}
    assert (entries[2].address, entries[2].target, entries[2].how) == (
        "192.0.2.1",
        "/lines/support/rollback",
        "session",
    )
    names = [each.given for each in entries[6:]]
    assert names == [{"name": "ann"}, {}, {}, {"name": "ann"}, {}]  # what is no name may be a password
    kept = settings().layout.audit.read_text() + settings().layout.refused.read_text()
    assert SECRET not in kept and "wrong guess" not in kept and "bpt_wrong" not in kept


def token_of(browser: TestClient) -> str:
    """The one token of a page without buttons."""
    return browser.get("/").text.split('name="token" value="')[1][:64]


def test_a_write_of_the_api_is_written_with_its_body(support: LineMaker, home: Path, pages: Pages) -> None:
    """What was sent as JSON is in the log as the fields of a form are, without secrets."""
    lines_file.create(home / "lines" / "support.yaml", lines_file.template("support", home / "data" / "support"))
    browser = pages()
    headers = {**HERE, "X-Backprop-Token": token(browser)}
    body = {"digest": "0" * 64, "values": {"min_new_rows": "5", "notify": "[https://a:hunter2hunter@example.org]"}}
    assert browser.post("/api/v1/lines/support/settings", json=body, headers=headers).status_code == 400
    given = audit.entries(settings(), 1)[0].given
    assert given["digest"] == "0" * 64 and given["min_new_rows"] == "5"
    assert "example.org" in given["notify"] and "hunter2" not in given["notify"]


def test_without_users_actions_are_written_too(support: LineMaker, pages: Pages) -> None:
    """On a machine of one person, nobody signs in."""
    press(pages(), "retrain")
    assert said(settings()) == [(None, "retrain", 503, "DEP_PREFECT_UNREACHABLE")]
    assert audit.entries(settings(), 1)[0].how == "open"


def test_no_action_without_the_log(support: LineMaker, pages: Pages) -> None:
    """If the log cannot be written, nothing is done, and the page says why."""
    browser = pages()
    given = token(browser)
    settings().layout.audit.mkdir()
    answer = browser.post("/lines/support/retrain", data={"token": given}, headers=HERE)
    assert answer.status_code == 500 and "CONFIG_PLACE_UNUSABLE" in answer.text and "audit.jsonl" in answer.text


def test_strangers_cannot_fill_the_disk(support: LineMaker, pages: Pages) -> None:
    """Of a thousand refusals at once a hundred are kept, in a file of their own."""
    people(ann="act")
    stranger = pages()
    for _ in range(1000):
        assert stranger.post("/lines/support/retrain", headers=HERE).status_code == 401
    assert 100 <= len(audit.entries(settings(), 5000)) < 150
    assert not settings().layout.audit.exists()


def test_a_file_is_rotated_and_survives_a_crash(tmp_path: Path) -> None:
    """Lines go to the next file, the oldest are dropped, a line that was cut costs no other; mode 0600."""
    place, lock = tmp_path / "log", tmp_path / "lock"
    for number in range(100):
        private_files.append(place, lock, json.dumps({"number": number}), largest=200, older=2)
    files = sorted(tmp_path.glob("log*"))
    assert [path.name for path in files] == ["log", "log.1", "log.2"]
    assert all(path.stat().st_size <= 200 and stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert json.loads(place.read_text().splitlines()[-1]) == {"number": 99}
    with place.open("a") as file:
        file.write('{"number": 1')
    private_files.append(place, lock, '{"number": 101}', largest=10_000, older=2)
    assert place.read_text().splitlines()[-2:] == ['{"number": 1', '{"number": 101}']


def test_the_log_is_shown_to_who_may_act(support: LineMaker, pages: Pages) -> None:
    """As a page, escaped, and in the API; who may only look is refused both."""
    people(ann="act", eve="look")
    app = pages().app
    ann, eve = (TestClient(app, follow_redirects=False) for _ in range(2))
    sign_in(ann, "ann")
    sign_in(eve, "eve")
    press(ann, "rollback", to="1", reason=EVIL)
    text = ann.get("/audit").text
    assert "roll back" in text and "/lines/support/rollback" in text and "&lt;script&gt;" in text and EVIL not in text
    entries = ann.get("/api/v1/audit?limit=2").json()
    assert [(each["who"], each["what"]) for each in entries] == [("ann", "roll_back"), ("eve", "login")]
    for path in ("/audit", "/api/v1/audit"):
        answer = eve.get(path)
        assert answer.status_code == 403 and "INPUT_ACTION_FORBIDDEN" in answer.text
    assert "/audit" in ann.get("/health/page").text and "/audit" not in eve.get("/health/page").text
