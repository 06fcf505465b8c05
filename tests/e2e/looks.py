"""How a page looks and reads: its pictures, axe's findings, what moves while it refreshes, what Tab reaches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.e2e.conftest import OUTPUT

WIDE, NARROW = {"width": 1280, "height": 720}, {"width": 390, "height": 844}
GRAVE = ("serious", "critical")
TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
COUNT_CLICKS = "addEventListener('click', () => sessionStorage.clicks = 1 + Number(sessionStorage.clicks ?? 0), true)"
MOVED = """new Promise(done => {
  let sum = 0;
  new PerformanceObserver(list => list.getEntries().forEach(each => sum += each.hadRecentInput ? 0 : each.value))
    .observe({type: "layout-shift", buffered: true});
  setTimeout(() => done(sum), 500);
})"""
ACTIONS = """
const name = (each) => `${each.tagName} ${each.getAttribute("href") ?? each.id} ${each.textContent.trim()}`;
const isSeen = (each) => each.checkVisibility({ visibilityProperty: true });
"""
ALL = "a[href], button:enabled, input:not([type=hidden], [type=radio]), select, textarea, summary, [type=radio]:checked"


def look(page: Page, name: str) -> None:
    """Picture a page on a laptop and a telephone, light and dark; nothing is too wide, and axe finds nothing grave."""
    for scheme, size, label in (
        ("light", WIDE, ""),
        ("light", NARROW, "-narrow"),
        ("dark", NARROW, "-narrow-dark"),
        ("dark", WIDE, "-dark"),
    ):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size(size)  # type: ignore[arg-type]
        page.screenshot(path=OUTPUT / f"{name}{label}.png", full_page=size is NARROW)
        assert not page.evaluate(TOO_WIDE), f"{name}{label} is wider than the screen"
        if size is WIDE:
            assert grave(page) == [], f"{name}{label}"
    page.emulate_media(color_scheme="light")


def grave(page: Page) -> list[tuple[str, str, list[Any]]]:
    """What axe finds serious or critical: the rule, what is wrong, and where."""
    found = Axe().run(page).response["violations"]
    return [
        (each["id"], each["help"], [(node["html"][:120], node["failureSummary"][:200]) for node in each["nodes"][:3]])
        for each in found
        if each["impact"] in GRAVE
    ]


@contextmanager
def clicks(page: Page, count: int, start: str) -> Iterator[None]:
    """From the start page, this takes so many clicks."""
    page.goto(start)
    page.evaluate("sessionStorage.clicks = 0")
    yield
    assert int(page.evaluate("sessionStorage.clicks")) == count


def moved(page: Page) -> float:
    """How much of the page has moved by itself since it was loaded: the cumulative layout shift."""
    return float(page.evaluate(MOVED))


def not_reached_by_tab(page: Page) -> set[str]:
    """What can be pressed or filled in, and is not reached by Tab with a visible focus."""
    every = set(page.evaluate(f"{ACTIONS}[...document.querySelectorAll({ALL!r})].filter(isSeen).map(name)"))
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(2 * len(every) + 10):
        page.keyboard.press("Tab")
        at = page.evaluate(
            f"""(() => {{ {ACTIONS}
            const style = getComputedStyle(document.activeElement);
            return parseFloat(style.outlineWidth) >= 2 && style.outlineStyle !== "none" && name(document.activeElement)
            }})()"""
        )
        reached.add(at)
    return every - reached
