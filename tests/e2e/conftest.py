"""A browser, and where its pictures go: `build/e2e`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

OUTPUT = Path(__file__).parents[2] / "build" / "e2e"
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium (`BACKPROP_CHROMIUM` names another)."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        program = os.environ.get("BACKPROP_CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        expect.set_options(timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page(browser: Browser) -> Page:
    """A tab of it."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(PATIENCE)
    return page
