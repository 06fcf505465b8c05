"""The tutorial as a reader does it: its commands, its form, the buttons that it names, and its pictures."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import OUTPUT
from tests.e2e.looks import WIDE
from tests.e2e.test_browser import LONG
from tests.wire.prefect_server import FOREIGN, ROOT, Served, served

DOCS = ROOT / "docs"
TUTORIAL = (DOCS / "tutorial.md").read_text()
NAMED = re.findall(r"\*\*([^*\n]+)\*\*", TUTORIAL)  # buttons and links, in the order in which they are pressed
LARGEST = 150_000  # bytes of a picture


def section(name: str) -> str:
    """The text of a section of the tutorial."""
    return TUTORIAL.partition(f"## {name}")[2].partition("\n## ")[0]


def blocks(name: str) -> list[str]:
    """The indented blocks of a section, each a text."""
    found = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", section(name), re.MULTILINE)
    return [re.sub("^ {4}", "", block, flags=re.MULTILINE).strip("\n") for block in found]


def form(name: str) -> dict[str, str]:
    """The fields and values of a section's table."""
    return dict(re.findall(r"^\| ([\w ]+) \| `([^`]+)` \|$", section(name), re.MULTILINE))


class Reader:
    """Does what the tutorial says, button by button."""

    def __init__(self, page: Page, home: Path) -> None:
        self.page, self.home, self.left = page, home, list(NAMED)

    def press(self, name: str) -> None:
        """Press what the tutorial names next."""
        assert self.left.pop(0) == name
        either = self.page.get_by_role("button", name=name).or_(self.page.get_by_role("link", name=name))
        either.first.click(timeout=LONG)

    def find(self, name: str) -> None:
        """Find what the tutorial names next, without pressing it."""
        assert self.left.pop(0) == name
        either = self.page.get_by_role("button", name=name).or_(self.page.get_by_role("link", name=name))
        expect(either.first).to_be_visible(timeout=LONG)

    def fill(self, fields: dict[str, str]) -> None:
        """Fill in a form; a file is chosen."""
        for label, value in fields.items():
            field = self.page.get_by_label(label).first
            if field.get_attribute("type") == "file":
                field.set_input_files(self.home / "checkout" / value)
            else:
                field.fill(value)

    def picture(self, name: str) -> None:
        """Take a picture of the tutorial; `docs/images` has it as it was when the pages changed last."""
        assert (DOCS / "images" / name).stat().st_size < LARGEST
        assert f"](images/{name})" in TUTORIAL
        self.page.screenshot(path=OUTPUT / name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A reader's home directory, after the commands of section 1."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "examples").symlink_to(ROOT / "examples")
    [_, commands, _] = blocks("1. Install and start")
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    files = commands.replace(". .venv/bin/activate\n", "")
    subprocess.run(["bash", "-euc", files], cwd=checkout, env=own | {"HOME": str(tmp_path)}, check=True)
    return tmp_path


@pytest.fixture
def service(home: Path) -> Iterator[Served]:
    """What the reader serves."""
    with served(home / ".backpropagate", place=home / "checkout", OMP_NUM_THREADS="1") as service:
        yield service


def test_the_tutorial_in_the_browser(page: Page, service: Served, home: Path) -> None:
    """Two versions go live and one is rolled back with the buttons that the tutorial names, in its order."""
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    reader = Reader(page, home)
    page.goto(service.addresses["page"])
    reader.press("Make the first line")
    fields = form("2. A line")
    reader.fill(fields)
    reader.picture("tutorial-1-new.png")
    reader.fill({"Base model": fields["Base model"].replace("/home/you", str(home))})
    reader.press("Make the line")
    expect(page.get_by_text("The line is deployed")).to_be_visible()
    first_version(reader, page)
    second_version(reader, page)
    reader.find("change")
    reader.press("Pause")
    reader.press("Resume")
    reader.find("Settings")
    reader.picture("tutorial-4-line.png")
    reader.press("Roll back to v1")
    reader.press("Make version 1 live")
    expect(page.get_by_text("Version 1 is live since")).to_be_visible(timeout=LONG)
    assert reader.left == []


def first_version(reader: Reader, page: Page) -> None:
    """Section 3."""
    reader.press("Retrain now")
    reader.press("Show")
    expect(page.get_by_role("button", name="Approve")).to_be_visible(timeout=LONG)
    page.get_by_label("Reason").fill("the answers are right")
    reader.picture("tutorial-2-waits.png")
    reader.press("Approve")
    expect(page.get_by_text("Version 1 is live since")).to_be_visible(timeout=LONG)
    expect(page.get_by_text("Nothing runs.")).to_be_visible(timeout=LONG)
    reader.left.remove("Reject")


def second_version(reader: Reader, page: Page) -> None:
    """Section 4."""
    reader.press("Retrain now")
    expect(page.locator("#next").get_by_text("unchanged").first).to_be_visible(timeout=LONG)
    page.get_by_label("A file of rows").set_input_files(reader.home / "checkout" / "tuesday.jsonl")
    reader.press("Add")
    expect(page.get_by_text("80 rows were added")).to_be_visible()
    reader.press("Retrain now")
    page.get_by_role("button", name="Show").click(timeout=LONG)
    expect(page.get_by_role("button", name="Approve")).to_be_visible(timeout=LONG)
    reader.picture("tutorial-3-changed.png")
    reader.press("Approve")
    expect(page.get_by_text("Version 2 is live since")).to_be_visible(timeout=LONG)
    expect(page.get_by_text("Nothing runs.")).to_be_visible(timeout=LONG)
