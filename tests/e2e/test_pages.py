"""A line in the browser alone, from an empty home to a version that was rolled back."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Download, Page, expect

from tests.e2e.looks import COUNT_CLICKS, WIDE, clicks, look, moved, not_reached_by_tab
from tests.e2e.test_browser import LONG
from tests.wire.ollama_server import OllamaServer
from tests.wire.prefect_server import ROOT, Served, served

BASE = ROOT / "examples" / "base"
REPLIES = (ROOT / "examples" / "data" / "reply.jsonl").read_text().splitlines(keepends=True)
ASKED = (
    "send the mixer back? Kind regards",
    "my grill order is not right. Best wishes",
)  # the first two that are held out
FIRST = [row for row in REPLIES if any(each in row for each in ASKED)]  # so every version answers the same two
LATER = [row for row in REPLIES if row not in FIRST]
BAD = REPLIES[0] + '{"prompt": "the kettle'
SHELVES = [f'{{"prompt": "Where is article {number}?", "completion": "On shelf 7."}}\n' for number in range(60)]
REASON = "it reads <b>well</b>"
FIELDS = {"Name": "support", "Base model": str(BASE), "New rows that a run needs": "20", "Ollama model": "support"}
BOLD = {"gate.confidence": "0.5"}  # few rows are enough
FAST = {"training.learning_rate": "0.002", "training.replay_rows": "0"}  # an answer changes


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer().running() as server:
        yield server


@pytest.fixture
def service(ollama: OllamaServer, tmp_path: Path) -> Iterator[Served]:
    """An empty home, served; runs may read the small base, too."""
    home = tmp_path / "home"
    allowed = f"{home / 'data'}:{BASE}"
    with served(home, OMP_NUM_THREADS="1", OLLAMA_HOST=ollama.url, BACKPROPAGATE_ALLOWED_PATHS=allowed) as service:
        yield service


def test_a_line_in_the_browser_alone(page: Page, service: Served, ollama: OllamaServer, tmp_path: Path) -> None:
    """Everything that a line needs in its first days is a few clicks away, and no page breaks on the way."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.add_init_script(COUNT_CLICKS)
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    start = service.addresses["page"]
    make_a_line(page, start, tmp_path)
    change_settings(page, BOLD)
    make_version_1(page, start)
    change_settings(page, FAST)
    add_rows(page, tmp_path / "replies.jsonl", LATER[78:198])
    make_version_2(page, start, ollama)
    add_rows(page, tmp_path / "shelves.jsonl", SHELVES)
    reject_version_3(page, start)
    say_why_nothing_happened(page, start)
    roll_back(page, start, ollama)
    check_the_download(page, start)
    change_the_time(page, start, service)
    try_it(page, start)
    look_at_the_rest(page, start)
    assert said == []


def make_a_line(page: Page, start: str, place: Path) -> None:
    """From the empty start page; a file that cannot be read is refused with its line, and nothing is lost."""
    page.goto(start)
    look(page, "01-empty")
    page.get_by_role("link", name="Make the first line").click()
    page.get_by_label("Ollama", exact=True).check()
    for label, value in FIELDS.items():
        page.get_by_label(label).first.fill(value)
    choose(page, place / "bad.jsonl", [BAD])
    page.get_by_role("button", name="Make the line").click()
    expect(page.get_by_role("status").filter(has_text="line 2")).to_be_visible()
    look(page, "02-bad-file")
    choose(page, place / "first.jsonl", [*FIRST, *LATER[:78]])
    page.get_by_role("button", name="Make the line").click()
    expect(page.get_by_text("The line is deployed")).to_be_visible()
    look(page, "03-new-line")


def choose(page: Page, file: Path, rows: list[str]) -> None:
    """Choose a file of rows."""
    file.write_text("".join(rows))
    page.locator("input[type=file]").set_input_files(file)


def change_settings(page: Page, settings: Mapping[str, str]) -> None:
    """The job file's fields, on one page."""
    page.get_by_role("link", name="Settings").click()
    look(page, "04-settings")
    for path, value in settings.items():
        field = page.locator(f"[name='{path}']")
        if not field.is_visible():
            page.locator("summary", has_text=path.partition(".")[0]).click()
        field.fill(value)
    page.get_by_role("button", name="Save and deploy").first.click()
    expect(page.get_by_text("Saved and deployed")).to_be_visible()


def retrain(page: Page, start: str) -> None:
    """One click; it is seen to begin at once."""
    with clicks(page, 1, start):
        page.get_by_role("button", name="Retrain support now").click()
        expect(page.get_by_text("The retrain begins")).to_be_visible()


def make_version_1(page: Page, start: str) -> None:
    """Retrain, follow it, and approve it from the start page; what is typed outlives refreshes."""
    retrain(page, start)
    expect(page.locator("#running").get_by_text(re.compile("running since"))).to_be_visible(timeout=LONG)
    assert moved(page) < 0.1
    look(page, "05-running")
    show_the_candidate(page)
    expect(page.get_by_role("button", name="Approve")).to_be_visible(timeout=LONG)
    look(page, "06-first-version-waits")
    with clicks(page, 1, start):
        approve = page.get_by_role("button", name="Approve")
        page.get_by_label("Reason").fill(REASON)
        page.wait_for_timeout(4000)  # it has refreshed itself
        expect(page.get_by_label("Reason")).to_have_value(REASON)
        expect(approve).to_be_in_viewport()
        approve.click()
        expect(page.get_by_text("Approved: it goes live now")).to_be_visible()
    expect(page.get_by_text("Version 1 is live since")).to_be_visible(timeout=LONG)
    expect(page.get_by_text(f"approved by a person: {REASON}").first).to_be_visible()


def show_the_candidate(page: Page) -> None:
    """An open page announces it, and moves nothing until it is asked for."""
    page.get_by_role("button", name="Show", exact=True).click(timeout=LONG)


def add_rows(page: Page, file: Path, rows: list[str]) -> None:
    """More rows, on the page of the line."""
    choose(page, file, rows)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text(f"{len(rows)} rows were added")).to_be_visible()


def make_version_2(page: Page, start: str, ollama: OllamaServer) -> None:
    """The candidate's scores and an answer that changed are on the page of the line: approve there."""
    retrain(page, start)
    show_the_candidate(page)
    block = page.locator("section.waits")
    expect(block).to_be_visible()
    cells = block.locator("table", has=page.get_by_role("columnheader", name="Live")).last.locator("tr td")
    live, candidate = cells.nth(1).inner_text(), cells.nth(2).inner_text()
    assert live and candidate and live != candidate
    look(page, "07-changed-answers")
    try_the_candidate(page)
    block.get_by_label("Reason").fill("no task is worse")
    block.get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Version 2 is live since")).to_be_visible(timeout=LONG)
    expect(page.get_by_text("Nothing runs.")).to_be_visible(timeout=LONG)
    assert ollama.models["support:latest"] == ollama.models["support:v2"]
    look(page, "08-version-2")


def try_the_candidate(page: Page) -> None:
    """While it waits, it answers between the live version and the base, and a vote on it stands beside its scores."""
    page.get_by_label("A question for the live version, the candidate and the base").fill("My grill is late.")
    page.get_by_role("button", name="Ask", exact=True).click()
    better = page.get_by_role("button", name="Better")
    expect(better.first).to_be_visible(timeout=LONG)
    names = page.locator(".trial .beside .soft.small:first-child").all_inner_texts()
    assert ["Candidate" in name for name in names] == [False, True, False], names
    answers = page.locator(".trial .said").all_inner_texts()
    assert len(answers) == 3 and all(answers)
    look(page, "07-try-candidate")
    better.first.click()
    expect(page.locator(".trial").get_by_text("is better than")).to_be_visible()
    page.reload()
    expect(page.locator("section.waits").get_by_text("better").first).to_be_visible()


def reject_version_3(page: Page, start: str) -> None:
    """A no, with a reason: the line stays as it is. The candidate appears although a person writes elsewhere."""
    retrain(page, start)
    page.get_by_label("A question for").fill("Half a question")
    show_the_candidate(page)
    block = page.locator("section.waits")
    block.get_by_label("Reason").fill("the tone is wrong")
    expect(page.get_by_label("A question for")).to_have_value("Half a question")
    block.get_by_role("button", name="Reject").click()
    expect(page.get_by_text("Rejected: the line stays as it is")).to_be_visible()
    expect(page.get_by_text("Nothing runs.")).to_be_visible(timeout=LONG)
    expect(page.locator("#rejected").get_by_text("the tone is wrong")).to_be_visible()
    expect(page.get_by_text("Version 2 is live since")).to_be_visible()


def say_why_nothing_happened(page: Page, start: str) -> None:
    """The start page says what is live and how the last run ended, without a click."""
    with clicks(page, 0, start):
        expect(page.get_by_text(re.compile("version 2 since"))).to_be_visible()
        expect(page.locator("#lines").get_by_text("Rejected", exact=True)).to_be_visible()
        expect(page.locator("#lines").get_by_text("the tone is wrong")).to_be_visible()
    look(page, "09-lines")
    assert not_reached_by_tab(page) == set()


def roll_back(page: Page, start: str, ollama: OllamaServer) -> None:
    """Two clicks make the version before live again, everywhere."""
    with clicks(page, 2, start):
        page.get_by_role("link", name="Roll back").click()
        look(page, "10-roll-back")
        page.get_by_label("Reason").fill("too early")
        page.get_by_role("button", name="Make version 1 live").click()
        expect(page.get_by_text("The rollback begins")).to_be_visible()
    expect(page.get_by_text("Version 1 is live since")).to_be_visible(timeout=LONG)
    assert ollama.models["support:latest"] == ollama.models["support:v1"]
    expect(page.get_by_text("Nothing runs.")).to_be_visible(timeout=LONG)
    assert not_reached_by_tab(page) == set()


def check_the_download(page: Page, start: str) -> None:
    """One click has the live version's file; its digest is the link's and the header's."""
    with clicks(page, 1, start), page.expect_download() as started:
        page.get_by_role("link", name="q8_0").click()
    link = page.get_by_role("link", name="q8_0")
    digest = hashlib.sha256(content_of(started.value)).hexdigest()
    assert link.get_attribute("title") == f"sha256 {digest}"
    headers = page.request.head(started.value.url).headers
    assert headers["etag"] == f'"{digest}"'


def content_of(download: Download) -> bytes:
    content = Path(download.path()).read_bytes()
    assert content.startswith(b"GGUF")
    return content


def change_the_time(page: Page, start: str, service: Served) -> None:
    """Another time in Prefect's API, and nothing else of the deployment is another."""
    before = service.prefect.deployment("retrain/support")
    page.goto(f"{start.rstrip('/')}/lines/support")
    page.get_by_role("link", name="change", exact=True).click()
    page.get_by_label("Time", exact=True).fill("04:30")
    look(page, "11-time")
    page.get_by_role("button", name="Change the time").click()
    expect(page.get_by_text("The schedule has another time")).to_be_visible()
    after = service.prefect.deployment("retrain/support")
    assert (cron(before), cron(after)) == ("0 3 * * *", "30 4 * * *")
    assert without_times(after) == without_times(before)


def cron(deployment: Mapping[str, Any]) -> str:
    """When a deployment runs."""
    [schedule] = deployment["schedules"]
    return str(schedule["schedule"]["cron"])


def without_times(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """A deployment without what tells of a schedule's time, and of when it was written and polled."""
    [schedule] = deployment["schedules"]
    kept = {name: value for name, value in schedule.items() if name not in ("updated", "schedule", "slug")}
    times = {name: value for name, value in schedule["schedule"].items() if name != "cron"}
    rest = {name: value for name, value in deployment.items() if name not in ("updated", "last_polled", "schedules")}
    return {**rest, "schedules": [{**kept, "schedule": times}]}


def try_it(page: Page, start: str) -> None:
    """A question is one click away; answers stand side by side, take a vote, and become a row when corrected."""
    with clicks(page, 1, start):
        page.get_by_role("link", name="Try support").click()
        expect(page.get_by_label("A question for the live version")).to_be_visible()
    page.get_by_label("A question for the live version").fill("Answer this customer.\nHello, my mixer is broken.")
    page.get_by_role("button", name="Ask", exact=True).click()
    better = page.get_by_role("button", name="Better")
    expect(better).to_be_visible(timeout=LONG)
    answers = page.locator(".trial .said").all_inner_texts()
    assert len(answers) == 2 and all(answers)
    look(page, "12-try")
    better.click()
    expect(page.get_by_text("is better than")).to_be_visible()
    page.get_by_text("Correct the answer").click()
    page.get_by_label("The right answer").fill("Please send the mixer back.")
    page.get_by_role("button", name="Add as row").click()
    expect(page.get_by_text("Added. The next run takes it.")).to_be_visible()


def look_at_the_rest(page: Page, start: str) -> None:
    """Every other page; the page of the line does not move while it refreshes."""
    page.goto(f"{start.rstrip('/')}/versions/support/2")
    look(page, "13-version")
    for path, name in (("history", "14-history"), ("health/page", "15-health"), ("new", "16-new")):
        page.goto(f"{start.rstrip('/')}/{path}")
        look(page, name)
    page.goto(f"{start.rstrip('/')}/history")
    page.locator("#history td a[href^='/runs/']").first.click()
    look(page, "17-run")
    page.goto(f"{start.rstrip('/')}/lines/support")
    page.wait_for_timeout(22_000)  # it refreshes every 20 seconds
    assert moved(page) < 0.01
