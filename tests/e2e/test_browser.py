"""A new user's way in the browser alone: from `backprop serve` to a version that a person let go live."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.backprop_core import nano
from tests.e2e.conftest import OUTPUT
from tests.flows.test_retrain import batch
from tests.wire.ollama_server import OllamaServer
from tests.wire.prefect_server import Served, served

JOB = """
model: {{name: {base}}}
datasets: [{{path: {data}}}]
training: {{steps: 12, batch_size: 8, learning_rate: 0.01, lora: {{rank: 8}}}}
evaluation: {{heldout_max: 20}}
gate: {{max_drop: 1}}
export: {{quantizations: [f16]}}
publish: {{ollama: support}}
approval: {{ask: true}}
min_new_rows: 1
"""
RUN = "by-a-person"
LONG = 600_000  # milliseconds: two slow cores


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer().running() as server:
        yield server


@pytest.fixture
def service(ollama: OllamaServer, tmp_path: Path) -> Iterator[Served]:
    """A home with one line's file and its rows, served."""
    home = tmp_path / "home"
    for name in ("data", "lines"):
        (home / name).mkdir(parents=True)
    base, data = nano.build(home / "data" / "base"), batch(home / "data", 1)
    (home / "lines" / "support.yaml").write_text(JOB.format(base=base, data=data))
    with served(home, OMP_NUM_THREADS="1", OLLAMA_HOST=ollama.url) as service:
        yield service


def picture(page: Page, name: str) -> None:
    """The page as it is now, on a wide and on a narrow screen."""
    for label, width in (("", 1440), ("-narrow", 420)):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(1000)  # it is drawn anew
        page.screenshot(path=OUTPUT / f"{name}{label}.png")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.wait_for_timeout(1000)  # and again


def test_from_the_form_to_a_released_version(page: Page, service: Served, ollama: OllamaServer) -> None:
    """Start a retrain from its form, follow it, approve what it made: it is live."""
    page.goto(service.addresses["page"])
    picture(page, "1-page")
    page.get_by_role("link", name="Prefect").click()
    fill_the_form(page)
    run = page.url
    page.get_by_role("tab", name="Subflow Runs").click()
    page.get_by_role("link", name="approval-support").first.click(timeout=LONG)
    approve(page)
    follow_to_its_end(page, run)
    look_at_mlflow(page, run)
    assert ollama.models.keys() == {"support:v1", "support:latest"}


def fill_the_form(page: Page) -> None:
    """From Prefect's first page to the page of the flow run."""
    page.get_by_role("link", name="Deployments").first.click()
    page.get_by_placeholder("Search deployments").fill("support")
    expect(page.get_by_role("link", name="support").first).to_be_visible()
    picture(page, "2-deployments")
    page.get_by_role("link", name="support").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    expect(page.get_by_text("The line to continue.")).to_be_visible()
    page.get_by_label("Run Name").fill(RUN)
    picture(page, "3-form")
    press(page.get_by_role("button", name="Submit"), lambda: expect(page).not_to_have_url(re.compile(r"/run\b")))
    page.get_by_role("link", name="Runs", exact=True).first.click()
    page.get_by_role("link", name=RUN).first.click()
    expect(page).to_have_url(re.compile("/runs/flow-run/"))


def press(button: Locator, done: Callable[[], None]) -> None:
    """Click; and once more, as a person would, if the page has lost the click while it was drawn anew."""
    button.click()
    try:
        done()
    except AssertionError:
        button.click()
        done()


def approve(page: Page) -> None:
    """Answer the question on its page, as a person does."""
    expect(page.get_by_text("Waiting for approval").first).to_be_visible()
    page.get_by_role("button", name="Open menu").first.click()
    page.get_by_role("menuitem", name="Resume").click()
    form = page.get_by_role("dialog")
    expect(form.get_by_text("May this go live in line support?")).to_be_visible()
    picture(page, "4-question")
    form.get_by_role("button", name="Select Answer").click()
    page.get_by_role("option", name="approve").click()
    form.get_by_label("Reason (Optional)").fill("it reads well")
    picture(page, "5-answer")
    press(form.get_by_role("button", name="Resume"), lambda: expect(form).to_be_hidden())


def follow_to_its_end(page: Page, run: str) -> None:
    """The page of the flow run, until it says that it is over."""
    page.goto(run)
    expect(page.get_by_text(RUN).first).to_be_visible()
    waiting = page.get_by_text(re.compile("^(Running|Waiting for approval)$"))
    expect(waiting).to_have_count(0, timeout=LONG)
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=LONG)
    picture(page, "6-done")


def look_at_mlflow(page: Page, run: str) -> None:
    """From the flow run's artifacts: what was learned, then the run in MLflow and its version."""
    artifact(page, run, "backprop-matrix")
    expect(page.get_by_role("img", name="The forgetting matrix")).to_be_visible()
    picture(page, "7-matrix")
    artifact(page, run, "backprop-mlflow")
    page.get_by_role("link", name="the run in MLflow").first.click()
    expect(page.get_by_text("Finished", exact=True)).to_be_visible()
    expect(page.get_by_text("v1", exact=True).first).to_be_visible()  # of the registered model
    picture(page, "8-mlflow")


def artifact(page: Page, run: str, key: str) -> None:
    """The newest artifact with this key, from the page of the flow run."""
    page.goto(run)
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("link", name=key).click()
    page.locator("a[href*='/artifacts/artifact/']").first.click()
