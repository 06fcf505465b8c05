"""How all pages look, what Tab reaches there, and that nothing moves by itself. Without training."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from backprop_core.runtime.settings import settings
from tests.e2e.conftest import OUTPUT
from tests.e2e.looks import WIDE, look, moved, not_reached_by_tab
from tests.e2e.still_pages import AskingPrefect, shown
from tests.flows.server.web.conftest import SECRET, LineMaker, people

LINE = "/lines/support"


@pytest.fixture
def support(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LineMaker:
    """A home with the line `support`, which has two versions."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    made = LineMaker(settings())
    made.version(1, 0.8)
    made.version(2, 0.9, said="it reads well")
    made.rejected(3, "routing fell")
    place = settings().layout
    place.received("support").mkdir(parents=True)
    (place.received("support") / "rows.jsonl").write_text('{"prompt": "Where?", "completion": "Here."}\n' * 2)
    place.jobs.mkdir()
    job = {"line": "support", "model": {"name": "acme/base"}, "datasets": [{"path": str(place.received("support"))}]}
    (place.jobs / "support.yaml").write_text(json.dumps(job))
    return made


@pytest.fixture
def prefect() -> Iterator[AskingPrefect]:
    with AskingPrefect().running() as service:
        yield service


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab without cookies."""
    with browser.new_context(viewport=WIDE) as context:  # type: ignore[arg-type]
        yield context.new_page()


def test_pages_for_people(tab: Page, support: LineMaker, prefect: AskingPrefect) -> None:
    """Signing in, a wrong password, what a person may do who only looks, the audit log: all look right, by Tab too."""
    people(ann="act", eve="look")
    with shown(settings(), prefect) as start:
        sign_in(tab, start, "ann", "wrong")
        expect(tab.get_by_role("alert")).to_be_visible()
        look(tab, "20-sign-in-refused")
        assert not_reached_by_tab(tab) == set()
        sign_in(tab, start, "ann", SECRET)
        expect(tab.get_by_role("button", name="Sign out")).to_be_visible()
        tab.goto(f"{start}/audit")
        look(tab, "21-audit")
        assert not_reached_by_tab(tab) == set()
        tab.get_by_role("button", name="Sign out").click()
        expect(tab.get_by_label("Password")).to_be_visible()
        look(tab, "22-sign-in")
        sign_in(tab, start, "eve", SECRET)
        tab.goto(start + LINE)
        expect(tab.get_by_text("eve may look")).to_be_visible()
        for action in ("Roll back", "make live"):
            expect(tab.get_by_role("link", name=action)).to_have_count(0)
        look(tab, "23-may-look")
        assert not_reached_by_tab(tab) == set()


def sign_in(page: Page, start: str, name: str, password: str) -> None:
    """Fill in the login page."""
    page.goto(start)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_pages_about_a_line(tab: Page, support: LineMaker, prefect: AskingPrefect) -> None:
    """Dataset, version, run, try, settings, schedule, rollback, delete, an error: all look right, and by Tab alone."""
    made = support.lines.version("support", 2)
    paths = {
        "30-dataset": f"/data/{made.datasets[-1].train.digest}",
        "31-rows": f"{LINE}/data",
        "31-delete": f"{LINE}/delete",
        "32-delete-refused": f"{LINE}/delete",
        "33-version": "/versions/support/2",
        "34-run": f"/runs/{made.run_id}",
        "35-try": f"{LINE}/try",
        "36-roll-back": f"{LINE}/rollback?to=1",
        "37-settings": f"{LINE}/settings",
        "38-time": f"{LINE}/time",
        "39-new": "/new",
        "40-history": "/history",
        "41-health": "/health/page",
        "42-unknown": "/lines/none",
        "43-audit-empty": "/audit",
        "44-rename": f"{LINE}/rename",
    }
    with shown(settings(), prefect) as start:
        for name, path in paths.items():
            tab.goto(start + path)
            if name.endswith("refused"):
                tab.get_by_label("Type support").fill("suport")
                tab.get_by_role("button", name="Delete support").click()
                expect(tab.get_by_text("this is not the name of the line")).to_be_visible()
            look(tab, name)
            assert not_reached_by_tab(tab) == set(), name


@pytest.mark.parametrize("path", ["/", LINE], ids=["start", "line"])
def test_a_decision_that_arrives_moves_nothing(
    tab: Page, support: LineMaker, prefect: AskingPrefect, path: str
) -> None:
    """It is announced at the edge of the window, and shown when it is asked for; once answered elsewhere, its place is
    kept. A page that is loaded has it at once."""
    with shown(settings(), prefect) as start:
        tab.goto(start + path)
        tab.wait_for_timeout(500)
        place = tab.locator("main h1").first.bounding_box()
        turn(support, prefect, asks=True)
        expect(tab.get_by_text("A candidate waits for you")).to_be_visible()
        look_at(tab, f"50-arrived{path.replace('/', '-')}")
        assert tab.locator("section.waits").count() == 0
        assert (moved(tab), tab.locator("main h1").first.bounding_box()) == (0, place)
        tab.get_by_role("button", name="Show").click()
        expect(tab.get_by_role("button", name="Approve")).to_be_visible()
        expect(tab.get_by_text("A candidate waits for you")).to_have_count(0)
        tab.evaluate("document.activeElement.blur()")
        below = tab.locator("main > section:not(.waits)").first.bounding_box()
        turn(support, prefect, asks=False)
        expect(tab.get_by_text("Nothing waits here now")).to_be_visible()
        assert tab.locator("main > section:not(.waits)").first.bounding_box() == below
        turn(support, prefect, asks=True)
        tab.goto(start + path)
        expect(tab.get_by_role("button", name="Approve")).to_be_visible()
        assert tab.get_by_text("A candidate waits for you").count() == 0


def test_an_open_page_outlives_its_server(tab: Page, support: LineMaker, prefect: AskingPrefect) -> None:
    """While `serve` is away the page says so and keeps what is typed; once it is back the page is as before, and its
    buttons work: the forms have the tokens of the new server."""
    with shown(settings(), prefect) as start:
        tab.goto(start + LINE)
        tab.get_by_label("A question for").fill("Half a question")
    expect(tab.locator("body.stale")).to_be_visible()
    look_at(tab, "60-away")
    with shown(settings(), prefect, port=int(start.rpartition(":")[2])):
        expect(tab.locator("body:not(.stale)")).to_be_visible()
        expect(tab.get_by_label("A question for")).to_have_value("Half a question")
        tab.get_by_role("button", name="Retrain now").click()
        expect(tab.get_by_text("Code:")).to_be_visible()
        assert "INPUT_FORM_EXPIRED" not in tab.content()  # this Prefect has no deployment of the line


def turn(support: LineMaker, prefect: AskingPrefect, *, asks: bool) -> None:
    """Have a candidate wait, or no longer; the store has a sign of it, as of every run that begins or ends."""
    prefect.asks = asks
    signs = support.store.layout.flow_runs
    signs.mkdir(exist_ok=True)
    (signs / str(len(list(signs.iterdir())))).write_text("")


def look_at(page: Page, name: str) -> None:
    """A picture as it is."""
    page.screenshot(path=OUTPUT / f"{name}.png")
