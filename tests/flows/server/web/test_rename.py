"""A line gets another name on its page, in the API and in a terminal: schedule, job file and pages go with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Running

from backprop_core.runtime.settings import settings
from flows import retrain
from flows.cli import line as cli_line
from flows.cli import lines_file, main
from flows.server.deploy import deploy_line, is_paused, pause_line
from tasks.runs.line_renaming import directory_of_rows, rename
from tests.flows.cli.test_cli import same_signals
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages, run_id
from tests.flows.server.web.test_actions import HERE, token

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(support: LineMaker, home: Path) -> Path:
    """The job file of the line, with a schedule."""
    path = home / "lines" / "support.yaml"
    schedule = '\nschedule: {cron: "0 3 * * *", timezone: UTC}\n'
    lines_file.create(path, lines_file.template("support", home / "data" / "support") + schedule)
    return path


def send(browser: Any, to: str) -> Any:
    return browser.post("/lines/support/rename", data={"token": token(browser), "to": to}, headers=HERE)


def test_a_line_with_its_schedule_has_another_name(
    client: SyncPrefectClient, support: LineMaker, file: Path, home: Path, pages: Pages
) -> None:
    """Deployment and job file have the new name, what was paused is; rows go where they went; old links say it."""
    job = lines_file.read(file).job
    deploy_line(settings(), job, pool=settings().pool, dry_run=False)
    pause_line("support")
    browser = pages(str(get_current_settings().api.url))
    assert "backprop line rename support NEW" in browser.get("/lines/support/rename").text
    for wrong in (EVIL, "support", "-x", "../x"):
        assert send(browser, wrong).status_code == 400 and file.is_file()
    assert send(browser, "helpdesk").headers["location"] == "/lines/helpdesk?done=rename"
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("retrain/support")
    assert client.read_deployment_by_name("retrain/helpdesk").parameters["line"] == "helpdesk" and is_paused("helpdesk")
    new = file.with_name("helpdesk.yaml")
    assert not file.exists() and "support" not in new.read_text().replace(str(home / "data" / "support"), "")
    renamed = lines_file.read(new).job
    assert renamed.model_copy(update={"line": "support"}) == job
    assert directory_of_rows("helpdesk", settings()) == home / "data" / "support"
    text = browser.get("/lines/helpdesk").text
    assert "Version 2 is live" in text and "routing fell" in text and "good &lt;script&gt;" in text
    assert browser.get(f"/api/v1/runs/{run_id(3)}").json()["run"]["line"] == "helpdesk"
    old = browser.get("/lines/support")
    assert old.status_code == 404 and "it was renamed: its page is /lines/helpdesk" in old.text
    client.delete_deployment(client.read_deployment_by_name("retrain/helpdesk").id)


def test_while_a_run_works_it_keeps_its_name(
    client: SyncPrefectClient, support: LineMaker, file: Path, pages: Pages
) -> None:
    """A run that has begun in Prefect refuses it with a code; so does Prefect being away."""
    browser = pages(str(get_current_settings().api.url))
    run = client.create_flow_run(retrain.retrain, parameters={"line": "support"}, state=Running())
    answer = send(browser, "helpdesk")
    client.delete_flow_run(run.id)
    assert answer.status_code == 409 and "STATE_RUN_ACTIVE" in answer.text
    assert send(pages(), "helpdesk").status_code == 503
    assert file.is_file() and support.lines.names() == ["support"]


@pytest.mark.usefixtures(same_signals.__name__)
def test_the_verb_says_and_does(support: LineMaker, file: Path, capsys: Capture, monkeypatch: Any) -> None:
    """--dry-run says what happens to each part; a name that is taken by a job file alone, and no line, are errors."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main.main(["line", "rename", "support", "helpdesk", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("Store: 2 versions", "Job file:", "Prefect:", "MLflow:", "Ollama", "Data:"))
    other = file.with_name("billing.yaml")
    other.write_text(file.read_text())
    assert main.main(["line", "rename", "support", "billing"]) == 1 and "[CONFIG_INVALID]" in capsys.readouterr().err
    assert main.main(["line", "rename", "nothing", "x"]) == 1 and "[INPUT_REF_UNKNOWN]" in capsys.readouterr().err
    assert support.lines.names() == ["support"] and file.is_file()
    assert main.main(["line", "rename", "support", "helpdesk", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["renamed"] is True
    assert support.lines.names() == ["helpdesk"] and file.with_name("helpdesk.yaml").is_file() and not file.exists()


@pytest.mark.parametrize("cut", ["before", "between"])
def test_a_kill_at_the_job_file_is_made_good(support: LineMaker, file: Path, cut: str, monkeypatch: Any) -> None:
    """Before the file is renamed, or with both files there: the same command does the rest."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    planned = cli_line.renaming("support", "desk", "ann", settings(), None)

    def die() -> None:
        if cut == "between":
            text = file.read_text()
            cli_line.rename_job_file(file, "support", "desk")
            file.write_text(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rename("support", "desk", "ann", settings(), last=die)
    again = cli_line.renaming("support", "desk", "ann", settings(), None)
    assert again.versions == planned.versions == [1, 2]
    cli_line.move(again, "ann", settings(), None)
    assert not file.exists() and file.with_name("desk.yaml").is_file() and support.lines.names() == ["desk"]


def test_a_name_in_the_file_is_written_again(tmp_path: Path) -> None:
    """A file that says `line:` says the new name; comments and everything else stay."""
    job = tmp_path / "support.yaml"
    job.write_text("line: support  # ours\nmin_new_rows: 5\n")
    cli_line.rename_job_file(job, "support", "desk")
    assert (tmp_path / "desk.yaml").read_text() == "line: desk  # ours\nmin_new_rows: 5\n" and not job.exists()
