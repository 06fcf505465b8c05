"""Rows that come from a browser are checked, then stand beside the others of the line, or nowhere."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from starlette.testclient import TestClient

from flows.server.web import rows
from flows.server.web.rows import cleaned
from tests.flows.server.web.conftest import LineMaker, Pages
from tests.flows.server.web.test_actions import HERE, token

GOOD = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(3)).encode()


@pytest.fixture
def place(support: LineMaker) -> Path:
    """The directory of the line's rows."""
    return support.store.root.parent / "data" / "support"


@pytest.fixture
def browser(prefect: None, place: Path, pages: Pages) -> Iterator[TestClient]:
    """A browser at a line whose job reads that directory."""
    with at(str(place), pages) as browser:
        yield browser


@contextmanager
def at(data: str, pages: Pages) -> Iterator[TestClient]:
    """A browser at a line whose job reads `data`."""
    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("retrain")
        made = client.create_deployment(flow, "support", parameters={"data": {"path": data}})
        yield pages(str(get_current_settings().api.url))
        client.delete_deployment(made)


def send(browser: TestClient, content: bytes, name: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status, and the error's code or the file's name."""
    own = {**HERE, "X-Backprop-Token": token(browser)} if headers is None else headers
    url = "/api/v1/lines/support/rows"
    answer = browser.post(url, params={"filename": name}, content=content, headers=own)
    return answer.status_code, answer.json().get("code") or answer.json()["file"]


def test_rows_are_checked_and_added(browser: TestClient, place: Path) -> None:
    """Good rows are a file beside the others; what cannot be read is told with its line, and leaves nothing."""
    assert "data-upload" in browser.get("/lines/support").text
    status, file = send(browser, GOOD, "../../etc/night one.jsonl")
    assert status == 200 and (place / file).read_bytes() == GOOD and file.startswith("night-one-")
    assert send(browser, b'{"text": "a"}\n{"tex', "bad.jsonl") == (400, "INPUT_VALIDATION_FAILED")
    assert [path.name for path in place.iterdir()] == [file]


def test_too_much_is_refused(browser: TestClient, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the limit is refused while it comes, and leaves nothing."""
    monkeypatch.setattr(rows, "LARGEST", 20)
    assert send(browser, GOOD, "a.jsonl") == (413, "INPUT_TOO_LARGE")
    assert not place.exists()


def test_only_a_page_can_send_rows(browser: TestClient, place: Path) -> None:
    """Without the token or the Origin, nothing is read."""
    known = token(browser)
    for headers in ({}, HERE, {"X-Backprop-Token": known}, {**HERE, "X-Backprop-Token": "0" * 64}):
        assert send(browser, GOOD, "a.jsonl", headers) == (403, "INPUT_FORM_EXPIRED")
    assert not place.exists()


def test_a_line_that_reads_elsewhere_gets_none(prefect: None, support: LineMaker, pages: Pages, place: Path) -> None:
    """Rows that no run would read are refused, and the page does not offer it."""
    with at(str(place.with_suffix(".jsonl")), pages) as browser:
        assert send(browser, GOOD, "a.jsonl") == (400, "CONFIG_INVALID")
        assert "data-upload" not in browser.get("/lines/support").text


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\rows\\a b.csv", "a-b.csv"),
        ("..", "rows"),
        ("", "rows"),
        (".hidden.jsonl", "hidden.jsonl"),
        ("--to.jsonl", "to.jsonl"),
        ("a\0b\n.jsonl", "a-b-.jsonl"),
        ("ü.jsonl.gz", "jsonl.gz"),
        (f"a.{'b' * 113}.jsonl", f"{'b' * 113}.jsonl"),  # cut, and not a hidden file
    ],
)
def test_names_are_cleaned(name: str, clean: str) -> None:
    """No directory and no special character of a browser's name is left."""
    assert cleaned(name) == clean
