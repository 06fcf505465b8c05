"""The tutorial as a reader does it: its commands, its changes of a file, and its clicks."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.test_browser import LONG, picture
from tests.wire.prefect_server import FOREIGN, ROOT, Served, served

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
CHANGES = ("model:", "min_new_rows:", "export:", "schedule:")  # blocks of the tutorial that are lines of the job's file


def blocks(section: str) -> list[str]:
    """The indented blocks of a section of the tutorial, each a text."""
    text = TUTORIAL.partition(f"## {section}")[2].partition("\n## ")[0]
    found = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.MULTILINE)
    return [re.sub("^ {4}", "", block, flags=re.MULTILINE).strip("\n") for block in found]


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A reader's home directory, with what sections 3 and 5 ask to be done before `backprop serve`."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "examples").symlink_to(ROOT / "examples")
    commands, *changes = [*blocks("3. A line, and its first version"), *blocks("5. Every night")]
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = own | {"HOME": str(tmp_path), "PATH": path, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-euc", commands], cwd=checkout, env=environment, check=True)
    file = checkout / "lines" / "support.yaml"
    text = file.read_text()
    for change in changes:
        if change.startswith(CHANGES):
            text = changed(text, change.replace("/home/you", str(tmp_path)))
    file.write_text(text)
    return tmp_path


def changed(text: str, block: str) -> str:
    """A line's file with the lines of a block in the place of those that have the same key, commented out or not."""
    for line in filter(str.strip, block.splitlines()):
        key = re.escape(line.partition(":")[0])
        text, count = re.subn(rf"^(# )?{key}:.*$", line.replace("\\", r"\\"), text, count=1, flags=re.MULTILINE)
        assert count, f"the file has no {key}"
    return text


@pytest.fixture
def service(reader: Path) -> Iterator[Served]:
    """What the reader serves."""
    with served(reader / ".backpropagate", place=reader / "checkout", OMP_NUM_THREADS="1") as service:
        yield service


def test_the_first_quick_run_makes_version_1_live(page: Page, service: Served) -> None:
    """Deployments, `retrain/support`, Run, Quick run, as the tutorial says: nothing is asked, version 1 is live."""
    page.goto(service.addresses["page"])
    page.get_by_role("link", name="Prefect").click()
    page.get_by_role("link", name="Deployments").first.click()
    page.get_by_placeholder("Search deployments").fill("support")
    page.get_by_role("link", name="support").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Quick run").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("link", name="support v1").first).to_be_visible(timeout=LONG)
    picture(page, "tutorial-1-runs")
    page.get_by_role("link", name="support v1").first.click()
    expect(page).to_have_url(re.compile("/runs/flow-run/"))
    run = page.url.rstrip("/").rpartition("/")[2].partition("?")[0]
    assert service.prefect.finished(run, LONG / 1000)["state_name"] == "Completed"
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    picture(page, "tutorial-2-done")
    text = service.prefect.artifact(run, "backprop-result")
    result = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert (result["status"], result["version"]) == ("finished", 1), result["gate"]
    assert [file["quantization"] for file in result["gguf"]] == ["q8_0"]
    assert {choice["field"] for choice in result["defaults"]} >= {"training.learning_rate", "training.batch_size"}
