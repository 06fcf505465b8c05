"""The pages of lines in a browser: retrain, decide, download and add rows without any other page."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.backprop_core import nano
from tests.e2e.conftest import OUTPUT
from tests.e2e.test_browser import LONG
from tests.flows.test_retrain import batch
from tests.wire.prefect_server import Served, served

JOB = """
model: {{name: {base}}}
datasets: [{{path: {data}}}]
training: {{steps: 12, batch_size: 8, learning_rate: 0.01, lora: {{rank: 8}}}}
evaluation: {{heldout_max: 20}}
gate: {{max_drop: 1}}
export: {{quantizations: [f16]}}
approval: {{ask: true}}
min_new_rows: 1
schedule: {{cron: "0 3 * * *"}}
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    """A home with one line, whose job reads a directory of rows, served."""
    home = tmp_path / "home"
    for name in ("data/support", "lines"):
        (home / name).mkdir(parents=True)
    base = nano.build(home / "data" / "base")
    batch(home / "data" / "support", 1)
    job = JOB.format(base=base, data=home / "data" / "support")
    (home / "lines" / "support.yaml").write_text(job)
    with served(home, OMP_NUM_THREADS="1") as service:
        yield service


def picture(page: Page, name: str) -> None:
    """The page on a small laptop and on a telephone; nothing is wider than the screen."""
    for label, width, height in (("", 1280, 720), ("-narrow", 390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=OUTPUT / f"{name}{label}.png", full_page=width < 1000)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.set_viewport_size({"width": 1280, "height": 720})


def test_a_line_in_the_browser_alone(page: Page, service: Served, tmp_path: Path) -> None:
    """One click retrains, one approves with a reason; a downloaded file has its digest; bad rows are named."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(service.addresses["page"])
    picture(page, "page-1-lines")
    page.get_by_role("link", name="support").last.click()
    add(page, tmp_path / "bad.jsonl", '{"text": "a"}\n{"tex')
    expect(page.get_by_text("bad.jsonl")).to_be_visible()
    page.get_by_role("button", name="Retrain now").click()
    expect(page.get_by_text("The retrain begins")).to_be_visible()
    decide(page)
    download(page)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    [schedule] = service.prefect.deployment("retrain/support")["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (False, "0 3 * * *")
    picture(page, "page-4-paused")
    assert said == []


def add(page: Page, file: Path, rows: str) -> None:
    """Choose a file of rows and send it."""
    file.write_text(rows)
    page.get_by_label("A file of rows").set_input_files(file)
    page.get_by_role("button", name="Add", exact=True).click()


def decide(page: Page) -> None:
    """Approve what waits; the first decision is seen without scrolling, and what is typed outlives refreshes."""
    approve = page.get_by_role("button", name="Approve")
    expect(approve).to_be_visible(timeout=LONG)
    expect(approve).to_be_in_viewport()
    page.get_by_label("Reason").fill("it reads <b>well</b>")
    page.wait_for_timeout(4000)  # it has refreshed itself
    expect(page.get_by_label("Reason")).to_have_value("it reads <b>well</b>")
    picture(page, "page-2-waits")
    approve.click()
    expect(page.get_by_text("Version 1 is live since")).to_be_visible(timeout=LONG)
    expect(page.get_by_text("approved by a person: it reads <b>well</b>").first).to_be_visible()
    picture(page, "page-3-live")


def download(page: Page) -> None:
    """The file, as the link names its digest."""
    link = page.get_by_role("link", name="f16")
    with page.expect_download() as started:
        link.click()
    content = Path(started.value.path()).read_bytes()
    assert (
        content.startswith(b"GGUF") and link.get_attribute("title") == f"sha256 {hashlib.sha256(content).hexdigest()}"
    )
