"""A line is made in the browser: its job file is that of `backprop init` with the answers, deployed at once."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from starlette.testclient import TestClient

from backprop_core.errors import Unexpected
from backprop_core.runtime.settings import settings
from flows.cli import lines_file
from flows.server.web import job_file, new_line, verbs
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages
from tests.flows.server.web.test_actions import HERE
from tests.flows.server.web.test_rows import GOOD

ANSWERS = {"name": "billing", "base": "qwen2.5-0.5b", "source": "file", "rows": "2", "when": "weekly", "time": "04:30"}
ANSWERS |= {"day": "Sunday", "zone": "Europe/Madrid", "goes": "ollama", "ollama": "billing", "ask": "true"}


@pytest.fixture
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client
        for line in ("billing", "other"):
            try:
                client.delete_deployment(client.read_deployment_by_name(f"retrain/{line}").id)
            except ObjectNotFound:
                continue


def token(browser: TestClient) -> str:
    [found] = {*re.findall('name="token" value="([0-9a-f]{64})"', browser.get("/new").text)}
    return str(found)


def send(browser: TestClient, **changes: str) -> Any:
    return browser.post("/new", data={"token": token(browser), **ANSWERS, **changes}, headers=HERE)


def upload(browser: TestClient, name: str = "billing", content: bytes = GOOD) -> Any:
    headers = {**HERE, "X-Backprop-Token": token(browser)}
    url = f"/api/v1/new/{name}/rows"
    return browser.post(url, params={"filename": "night.jsonl"}, content=content, headers=headers)


def test_a_line_is_made_from_an_uploaded_file(client: SyncPrefectClient, home: Path, pages: Pages) -> None:
    """Rows are checked and kept, the job file has the answers and its comments, the deployment is there to press."""
    browser = pages(str(get_current_settings().api.url))
    assert 'href="/new"' in browser.get("/").text  # an empty home leads here
    assert upload(browser, content=b'{"tex').status_code == 400
    assert upload(browser).json()["rows"] == 3
    assert send(browser).headers["location"] == "/lines/billing?done=new"
    place = home / "lines" / "billing.yaml"
    assert "# have the defaults of docs/reference.md" in place.read_text()
    job = lines_file.read(place).job
    assert job.model.name == "Qwen/Qwen2.5-0.5B-Instruct" and job.datasets[0].path == str(home / "data" / "billing")
    assert job.schedule and (job.schedule.cron, job.schedule.timezone) == ("30 4 * * 0", "Europe/Madrid")
    assert (job.publish.ollama, job.export.quantizations, job.approval.ask) == ("billing", ["q8_0"], True)
    made = client.read_deployment_by_name("retrain/billing")
    assert made.parameters["min_new_rows"] == 2 and made.schedules[0].active
    page = browser.get("/lines/billing").text
    assert 'action="/lines/billing/retrain"' in page and "data-upload" in page
    assert "already" in send(browser).text and upload(browser).status_code == 400


def test_what_prefect_refuses_is_not_there(client: SyncPrefectClient, home: Path, pages: Pages) -> None:
    """A time zone that Prefect does not know is named beside its field, and no file is left."""
    answer = send(
        pages(str(get_current_settings().api.url)), name="other", source="path", path="team/rows", zone="Mars/Base"
    )
    assert answer.status_code == 400 and 'class="fault"' in answer.text and "other" in answer.text
    assert not (home / "lines" / "other.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../etc"}, "invalid line name"),
        ({"name": EVIL}, "invalid line name"),
        ({"base": ""}, "the base model is missing"),
        ({"source": "file"}, "no file of rows was added"),
        ({"path": ""}, "the path of the rows is missing"),
        ({"path": "/etc/passwd"}, "outside the allowed directories"),
        ({"rows": "none"}, "min_new_rows"),
        ({"time": "25:00"}, "is not a time"),
        ({"day": "Funday"}, "is not a weekday"),
        ({"ollama": ""}, "the name is missing"),
        ({"ollama": "A B"}, "publish.ollama"),
    ],
    ids=str,
)
def test_what_is_wrong_stands_beside_its_field(home: Path, pages: Pages, changes: dict[str, str], said: str) -> None:
    """Nothing is written; the answers are still there, escaped, and the fault has a code."""
    answer = send(pages(), **{"source": "path", "path": "team/rows", **changes})
    assert answer.status_code == 400 and said in answer.text and "<code" in answer.text
    assert EVIL not in answer.text and 'value="Europe/Madrid"' in answer.text
    assert not (home / "lines").exists()


def test_without_prefect_nothing_is_made(home: Path, pages: Pages) -> None:
    """While Prefect is away the page says so, and the file is taken back."""
    answer = send(pages(), source="path", path="team/rows")
    assert answer.status_code == 503 and "DEP_PREFECT_UNREACHABLE" in answer.text
    assert not [*(home / "lines").glob("*.yaml")]


def test_the_api_makes_lines_too(client: SyncPrefectClient, home: Path, pages: Pages) -> None:
    """The same as JSON; what is wrong is a problem with a code, and without the token nothing is made."""
    browser = pages(str(get_current_settings().api.url))
    headers = {**HERE, "X-Backprop-Token": token(browser)}
    body = {"name": "by-api", "base": "acme/base", "path": "team/rows", "when": "daily", "ask": False}
    assert browser.post("/api/v1/lines", json=body, headers=HERE).status_code == 403
    for wrong in ({"name": "../a"}, {"base": ""}, {"zone": "Mars/Base"}, {"time": "25:00"}, {"path": ""}, {"no": 1}):
        answer = browser.post("/api/v1/lines", json=body | wrong, headers=headers)
        assert answer.status_code == 400 and answer.json()["code"] == "CONFIG_INVALID"
    assert browser.post("/api/v1/lines", json=body, headers=headers).json()["line"] == "by-api"
    assert client.read_deployment_by_name("retrain/by-api").schedules[0].schedule.cron == "0 3 * * *"  # type: ignore[union-attr]
    wrong_name = browser.delete("/api/v1/lines/by-api", params={"confirm": "otter"}, headers=headers)
    assert wrong_name.status_code == 400 and (home / "lines" / "by-api.yaml").is_file()
    moved = browser.post("/api/v1/lines/by-api/time", json={"cron": "0 5 * * *"}, headers=headers)
    assert moved.status_code == 200 and "0 5 * * *" in (home / "lines" / "by-api.yaml").read_text()
    gone = browser.delete("/api/v1/lines/by-api", params={"confirm": "by-api"}, headers=headers)
    assert gone.json() == {"line": "by-api"} and not (home / "lines" / "by-api.yaml").exists()


def test_only_a_page_can_make_a_line(home: Path, pages: Pages) -> None:
    """Without the token nothing is made, and no row is taken."""
    browser = pages()
    assert browser.post("/new", data=ANSWERS, headers=HERE).status_code == 403
    assert browser.post("/api/v1/new/billing/rows?filename=a", content=GOOD, headers=HERE).status_code == 403
    assert not (home / "data").exists()


def test_a_file_goes_beside_the_others(home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Into lines/ of the working directory if there is one, else into the home."""
    monkeypatch.chdir(tmp_path)
    assert job_file.place_of_new("a", settings()) == home / "lines" / "a.yaml"
    (tmp_path / "lines").mkdir()
    assert job_file.place_of_new("a", settings()) == tmp_path / "lines" / "a.yaml"


def test_models_that_runs_may_read_are_proposed(home: Path, pages: Pages) -> None:
    """A directory with a model below an allowed one is in the list of bases; one without weights is not."""
    for name in ("base", "half"):
        (home / "data" / name).mkdir(parents=True)
        (home / "data" / name / "config.json").write_text("{}")
    (home / "data" / "base" / "model.safetensors").write_bytes(b"")
    page = pages().get("/new").text
    assert f'<option value="{home}/data/base">' in page and "data/half" not in page


def test_a_line_of_the_terminal_gets_its_job_file(support: LineMaker, pages: Pages) -> None:
    """The form for a line that has versions and no job file begins with its name and its base."""
    page = pages().get("/new?name=support").text
    assert 'name="name" value="support"' in page and 'name="base" value="acme/base"' in page
    assert 'value="acme/base"' not in pages().get(f"/new?name={EVIL}").text.partition("<datalist")[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "--help"}, "--help"),
        ({"base": "/etc"}, "INPUT_PATH_FORBIDDEN"),
        ({"path": "/etc/passwd"}, "INPUT_PATH_FORBIDDEN"),
        ({"path": "~/../../etc/passwd"}, "INPUT_PATH_FORBIDDEN"),
    ],
    ids=str,
)
def test_choices_read_what_a_run_may_read(home: Path, pages: Pages, changes: dict[str, str], said: str) -> None:
    """A name is a name, never an option of a command; a path outside the allowed directories is not read."""
    answer = send(pages(), **{"show": "1", "source": "path", "path": "", **changes})
    assert answer.status_code == 400 and said in answer.text and "RUNTIME_UNEXPECTED" not in answer.text


def test_a_verb_has_a_time_limit() -> None:
    """A command that takes too long ends, and the page says so."""
    with pytest.raises(Unexpected, match="took longer"):
        verbs.run("info", limit=0.01)


def test_choices_are_shown_with_their_reasons(home: Path, pages: Pages) -> None:
    """What a run would choose stands below the form, and nothing is made."""
    answer = send(pages(), show="1", source="path", path="")
    assert "Chosen for you" in answer.text and "training.learning_rate" in answer.text
    assert not (home / "lines").exists() and new_line.machine_zone()
