"""Settings of a line: a save changes what was changed in its job file, and deploys it; or it changes nothing."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from starlette.testclient import TestClient
from werkzeug import Request, Response
from werkzeug.serving import make_server

from backprop_core.runtime.settings import settings
from flows.cli import lines_file
from flows.cli.spec_fields import spec_fields
from flows.server.deploy import deploy_line
from flows.server.web.line_settings import shown_fields
from tests.flows.server.web.conftest import BUSY, EVIL, LineMaker, Pages, people, sign_in
from tests.flows.server.web.test_actions import HERE

TEXT = """\
# the job of support
model: {name: acme/base}
datasets:
  - path: DATA  # every night
schedule:
  cron: "0 3 * * *"  # at night
training:
  lora: {rank: 16}
"""


@pytest.fixture
def file(support: LineMaker, home: Path) -> Path:
    """The job file of the line."""
    path = home / "lines" / "support.yaml"
    path.parent.mkdir()
    path.write_text(TEXT.replace("DATA", str(home / "data" / "support")))
    return path


@pytest.fixture
def deployed(client: SyncPrefectClient, file: Path) -> Iterator[DeploymentResponse]:
    """The deployment of the line, with its schedule paused."""
    config = settings()
    deploy_line(config, lines_file.read(file).job, pool="pool-of-settings", dry_run=False)
    made = client.read_deployment_by_name("retrain/support")
    client.update_deployment_schedule(made.id, made.schedules[0].id, active=False)
    yield client.read_deployment_by_name("retrain/support")
    client.delete_deployment(made.id)


@pytest.fixture
def browser(deployed: DeploymentResponse, pages: Pages) -> TestClient:
    """A browser, with Prefect there."""
    return pages(str(get_current_settings().api.url))


def fields_of(browser: TestClient, path: str = "settings") -> dict[str, str]:
    """Token and digest of the form."""
    text = browser.get(f"/lines/support/{path}").text
    return dict(re.findall('name="(token|digest)" value="([0-9a-f]{64})"', text))


def save(browser: TestClient, known: dict[str, str] | None = None, **values: str) -> Any:
    fields = (known or fields_of(browser)) | {name.replace("__", "."): value for name, value in values.items()}
    return browser.post("/lines/support/settings", data=fields, headers=HERE)


def test_every_field_can_be_set(file: Path, pages: Pages) -> None:
    """Each field of a job file is in the form, alone or as a part of a list; those that are set come first."""
    page = pages().get("/lines/support/settings").text
    names = re.findall('(?:input|select|textarea) id="[^"]+" name="([^"]+)"', page)
    assert len(names) == len(set(names)) and names[:2] == ["model.name", "datasets.0.path"]
    for path in spec_fields():
        place = path.replace("datasets.N", "datasets.0").partition(".N")[0]
        assert place in ("line", "datasets") or any(name == place or name.startswith(f"{place}.") for name in names)
    assert "Learning rate" in page or "learning rate" in page


def test_an_open_field_shows_what_happens(file: Path, pages: Pages) -> None:
    """A field that a run chooses shows no number that it may not get, on the page and in the API."""
    browser = pages()
    page, known = browser.get("/lines/support/settings").text, browser.get("/api/v1/lines/support/settings").json()
    defaults = {setting["path"]: setting["default"] for setting in known["settings"]}
    for path in ("training.replay_rows", "training.learning_rate"):
        assert re.search(f'name="{path}" value="" placeholder="chosen"', page) and defaults[path] == "chosen"
    assert re.search('name="merge.merge_a"><option value="">default: chosen<', page)
    assert (
        defaults["training.weight_decay"] == "0.01"
        and 'name="training.weight_decay" value="" placeholder="0.01"' in page
    )


def test_a_save_changes_what_was_changed(browser: TestClient, client: SyncPrefectClient, file: Path) -> None:
    """Values are set and removed, comments and order stay, the deployment has them, the schedule stays paused."""
    before, text = client.read_deployment_by_name("retrain/support"), file.read_text()
    values = {"training__lora__rank": "32", "export__quantizations": "[q8_0, f16]", "export__system": "Be: kind # yes"}
    assert save(browser, **values).headers["location"] == "/lines/support?done=settings"
    after = client.read_deployment_by_name("retrain/support")
    job = lines_file.read(file).job
    assert (job.training.lora.rank, job.export.quantizations) == (32, ["q8_0", "f16"])
    assert job.export.system == "Be: kind # yes" and file.read_text().startswith(text[: text.index("training")])
    assert after.parameters["training"]["lora"]["rank"] == 32
    assert after.schedules == before.schedules and not after.schedules[0].active
    assert save(browser, export__quantizations="", export__system="", training__lora__rank="16").status_code == 303
    assert file.read_text() == text


def test_of_two_people_one_saves(browser: TestClient, file: Path) -> None:
    """Whoever saves from a form of an older file is told, and changes nothing."""
    known = fields_of(browser)
    assert save(browser, known, min_new_rows="5").status_code == 303
    text = file.read_text()
    late = save(browser, known, min_new_rows="6")
    assert late.status_code == 409 and "STATE_FILE_CHANGED" in late.text and file.read_text() == text


def test_what_prefect_refuses_is_taken_back(browser: TestClient, file: Path) -> None:
    """A schedule that Prefect does not take stands beside its field, and the file is as it was."""
    text = file.read_text()
    answer = save(browser, schedule__cron="99 99 * * *")
    assert answer.status_code == 400 and "invalid schedule" in answer.text and 'value="99 99 * * *"' in answer.text
    assert file.read_text() == text


def test_a_refused_change_is_not_deployed(browser: TestClient, client: SyncPrefectClient, file: Path) -> None:
    """One field that Prefect does not take: the fault stands at it, and the deployment is as it was, in all fields."""
    before, text = client.read_deployment_by_name("retrain/support"), file.read_text()
    answer = save(browser, min_new_rows="77", drift__cron="99 * * * *")
    beside = answer.text.partition('name="drift.cron"')[2].partition('name="')[0]
    assert answer.status_code == 400 and 'class="fault"' in beside and file.read_text() == text
    assert client.read_deployment_by_name("retrain/support") == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_new_rows": "none"}, "min_new_rows takes"),
        ({"training__lora__rank": "-1"}, "training.lora.rank"),
        ({"datasets__0__path": ""}, "datasets"),
        ({"datasets__0__path": "/etc/passwd"}, "outside the allowed directories"),
        ({"gate__canaries": "[{prompt: a}]"}, "gate.canaries.0.expect"),
        ({"export__quantizations": "[*alias]"}, "alias"),
        ({"export__quantizations": "[q9]"}, "CONFIG_QUANTIZATION_UNKNOWN"),
        ({"schedule__cron": "", "schedule__timezone": "UTC"}, "schedule.cron"),
        ({"export__system": f'{EVIL}"""'}, "export.system"),
        ({"no__such": "1"}, "unknown field"),
    ],
    ids=str,
)
def test_what_is_wrong_stands_beside_its_field(file: Path, pages: Pages, values: dict[str, str], said: str) -> None:
    """The spec's own errors are in the form with the values, escaped; the file stays, Prefect is not asked."""
    text = file.read_text()
    answer = save(pages(), **values)
    assert answer.status_code == 400 and said in answer.text and 'class="fault"' in answer.text
    assert EVIL not in answer.text and file.read_text() == text


def test_without_prefect_nothing_is_saved(file: Path, pages: Pages) -> None:
    """While Prefect is away the form says so, keeps the values, and the file is as it was."""
    text = file.read_text()
    answer = save(pages(), min_new_rows="5")
    assert answer.status_code == 503 and "DEP_PREFECT_UNREACHABLE" in answer.text and file.read_text() == text


def test_only_a_page_can_save(file: Path, pages: Pages) -> None:
    """Without the token nothing is written; a line without a job file has no settings."""
    browser = pages()
    assert browser.post("/lines/support/settings", data={"min_new_rows": "5"}, headers=HERE).status_code == 403
    assert browser.post("/lines/support/time", data={"time": "05:00"}, headers=HERE).status_code == 403
    file.unlink()
    assert "INPUT_NOT_FOUND" in browser.get("/lines/support/settings").text


def test_the_api_does_the_same(file: Path, pages: Pages) -> None:
    """The settings are JSON, too; a wrong value is a problem with a code."""
    browser = pages()
    known = browser.get("/api/v1/lines/support/settings").json()
    assert {each["path"]: each["value"] for each in known["settings"]}["training.lora.rank"] == "16"
    assert len(known["settings"]) == len(list(shown_fields()))
    headers = {**HERE, "X-Backprop-Token": fields_of(browser)["token"]}
    body = {"digest": known["digest"], "values": {"min_new_rows": "none"}}
    answer = browser.post("/api/v1/lines/support/settings", json=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["code"] == "CONFIG_INVALID"


def move(browser: TestClient, **fields: str) -> Any:
    return browser.post("/lines/support/time", data={**fields_of(browser, "time"), **fields}, headers=HERE)


def test_only_the_time_of_a_schedule_changes(browser: TestClient, client: SyncPrefectClient, file: Path) -> None:
    """The same schedule, still paused, has another time; the file keeps it, so that deploying again changes nothing."""
    before = client.read_deployment_by_name("retrain/support")
    [schedule] = before.schedules
    page = browser.get("/lines/support/time", params={"schedule": str(schedule.id)}).text
    assert 'type="time" value="03:00"' in page
    fields = {"schedule": str(schedule.id), "when": "weekly", "day": "Friday", "time": "05:30", "zone": "Europe/Madrid"}
    assert move(browser, **fields).headers["location"] == "/lines/support?done=time"
    after = client.read_deployment_by_name("retrain/support")
    [moved] = after.schedules
    assert (moved.id, moved.active, moved.schedule.cron) == (schedule.id, False, "30 5 * * 5")  # type: ignore[union-attr]
    same = {"updated": None, "schedules": None}
    assert before.model_copy(update=same) == after.model_copy(update=same)
    job = lines_file.read(file).job
    assert job.schedule and (job.schedule.cron, job.schedule.timezone) == ("30 5 * * 5", "Europe/Madrid")
    assert "# at night" in file.read_text()
    assert not [change for change in deploy_line(settings(), job, pool="p", dry_run=True) if "schedule" in str(change)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"when": "other", "cron": "99 99 * * *"}, "Prefect knows no such time"),
        ({"when": "other", "cron": "x"}, "CONFIG_INVALID"),
        ({"when": "daily", "time": "soon"}, "is not a time"),
        ({"when": "daily", "time": "03:00", "zone": "Mars/Base"}, "Prefect knows no such time"),
    ],
    ids=str,
)
def test_a_time_that_cannot_be_is_refused(browser: TestClient, file: Path, fields: dict[str, str], said: str) -> None:
    """It stands in the form with its code, and the file is as it was."""
    text = file.read_text()
    [id] = re.findall("time[?]schedule=([0-9a-f-]{36})", browser.get("/lines/support").text)
    answer = move(browser, schedule=id, **fields)
    assert answer.status_code == 400 and said in answer.text and file.read_text() == text


def test_the_api_moves_the_schedule_that_is_there(browser: TestClient, client: SyncPrefectClient, file: Path) -> None:
    """Without an id, the schedule of the job file gets the time and stays paused; what is no time is 400."""
    headers = {**HERE, "X-Backprop-Token": fields_of(browser)["token"]}
    path, text = "/api/v1/lines/support/time", file.read_text()
    for wrong in ({"cron": "99 99 * * *"}, {"cron": "0 5 * * *", "zone": "Mars/Base"}):
        answer = browser.post(path, json=wrong, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "CONFIG_INVALID") and file.read_text() == text
    assert browser.post(path, json={"cron": "0 5 * * *"}, headers=headers).status_code == 200
    [moved] = client.read_deployment_by_name("retrain/support").schedules
    assert (moved.schedule.cron, moved.active) == ("0 5 * * *", False)  # type: ignore[union-attr]


def test_half_a_deployment_is_taken_back(
    client: SyncPrefectClient, deployed: DeploymentResponse, file: Path, home: Path, pages: Pages
) -> None:
    """Prefect takes the deployment and refuses the automation: a line is as it was, and a new one is not there."""
    text = file.read_text()
    with refusing("/automations") as api:
        browser = pages(api)
        assert save(browser, min_new_rows="77").status_code == 503 and file.read_text() == text
        form = {"token": fields_of(browser)["token"], "name": "half", "base": "a/b", "source": "path", "path": "a/b"}
        assert browser.post("/new", data=form, headers=HERE).status_code == 502
    assert client.read_deployment_by_name("retrain/support").parameters == deployed.parameters
    assert not (home / "lines" / "half.yaml").exists()
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("retrain/half")


@contextmanager
def refusing(part: str) -> Iterator[str]:
    """The address of a Prefect that refuses what concerns this part, and does all else."""
    real = str(get_current_settings().api.url)

    def answer(environ: Any, start: Any) -> Any:
        request = Request(environ)
        if part in request.path:
            return Response("{}", 422)(environ, start)
        kept = {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}
        url = f"{real}{request.full_path.removeprefix('/api')}"
        known = httpx.request(request.method, url, content=request.get_data(), headers=kept, timeout=BUSY)
        return Response(known.content, known.status_code, content_type=known.headers.get("content-type"))(
            environ, start
        )

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    thread.join()


def test_who_may_only_look_sees_no_secret(file: Path, pages: Pages) -> None:
    """The signature of an address and a password in one are blank for them, and there for who may act."""
    people(ann="act", eve="look")
    app = pages().app
    ann, eve = (TestClient(app, follow_redirects=False) for _ in range(2))
    sign_in(ann, "ann")
    sign_in(eve, "eve")
    address = "https://joe:hunter2hunter@example.org/rows.jsonl?X-Amz-Signature=abc123def456"
    file.write_text(TEXT.replace("DATA", address))
    for path in ("/api/v1/lines/support/settings", "/lines/support/settings"):
        assert "hunter2hunter" in ann.get(path).text
        seen = eve.get(path)
        assert seen.status_code == 200 and "hunter2" not in seen.text and "abc123" not in seen.text


def test_a_line_gets_its_first_schedule(browser: TestClient, client: SyncPrefectClient, file: Path) -> None:
    """A schedule made in Prefect is moved there alone; a line without one gets it in its file and in Prefect."""
    known = client.read_deployment_by_name("retrain/support")
    client.delete_deployment_schedule(known.id, known.schedules[0].id)
    file.write_text(file.read_text().replace('schedule:\n  cron: "0 3 * * *"  # at night\n', ""))
    assert "set a time" in browser.get("/lines/support").text
    assert move(browser, schedule="", when="daily", time="01:00", zone="UTC").status_code == 303
    [made] = client.read_deployment_by_name("retrain/support").schedules
    assert made.active and "0 1 * * *" in file.read_text()
    client.update_deployment_schedule(known.id, made.id, slug="mine")
    text = file.read_text()
    assert move(browser, schedule=str(made.id), when="daily", time="02:00", zone="UTC").status_code == 303
    [moved] = client.read_deployment_by_name("retrain/support").schedules
    assert moved.slug == "mine" and file.read_text() == text
