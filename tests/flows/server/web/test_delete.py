"""A line is deleted by its name: it says what goes and what stays, and while a run works nothing goes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Late, Pending, Running

from backprop_core.errors import RunActive
from backprop_core.lines import votes
from backprop_core.runtime.settings import settings
from backprop_core.store.artifacts import write_atomic
from backprop_core.store.leases import Lease
from flows import retrain
from flows.cli import line as cli_line
from flows.cli import lines_file, main
from flows.server.deploy import deploy_line
from tasks.runs import line_deletion
from tests.flows.cli.test_cli import same_signals
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages, run_id, vote
from tests.flows.server.web.test_actions import HERE, token

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(support: LineMaker, home: Path) -> Path:
    """The job file of the line."""
    path = home / "lines" / "support.yaml"
    lines_file.create(path, lines_file.template("support", home / "data" / "support"))
    return path


def send(browser: Any, confirm: str) -> Any:
    return browser.post("/lines/support/delete", data={"token": token(browser), "confirm": confirm}, headers=HERE)


def test_a_line_goes_with_everything_that_starts_it(
    client: SyncPrefectClient, support: LineMaker, file: Path, home: Path, pages: Pages
) -> None:
    """Deployment, schedules and job file go; its records lie aside, its artifacts stay; the name is free again."""
    deploy_line(settings(), lines_file.read(file).job, pool="pool-of-delete", dry_run=False)
    browser = pages(str(get_current_settings().api.url))
    page = browser.get("/lines/support/delete").text
    assert "2 versions of support can no longer be used" in page and "retrain/support" in page
    assert send(browser, EVIL).status_code == 400 and file.is_file()
    kept = support.store.count()
    assert send(browser, "support").headers["location"] == "/?done=delete"
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("retrain/support")
    assert not file.exists() and file.with_suffix(".yaml.deleted").is_file()
    assert support.lines.names() == [] and support.store.count() == kept
    [gone] = support.store.layout.deletions()
    assert json.loads(gone.tombstone.read_text())["versions"] == [1, 2]
    assert sorted(path.name for path in (gone.records / "versions").iterdir()) == ["000001.json", "000002.json"]
    assert browser.get("/lines/support").status_code == 404
    assert support.version(1, 0.5) and support.lines.versions("support") == [1]


def test_while_a_run_works_nothing_goes(
    client: SyncPrefectClient, support: LineMaker, file: Path, pages: Pages
) -> None:
    """A run in Prefect, in the store, or of a release refuses it with a code."""
    browser = pages(str(get_current_settings().api.url))
    run = client.create_flow_run(retrain.retrain, parameters={"line": "support"}, state=Running())
    answer = send(browser, "support")
    client.delete_flow_run(run.id)
    assert answer.status_code == 409 and "STATE_RUN_ACTIVE" in answer.text
    assert file.is_file() and support.lines.versions("support") == [1, 2]


@pytest.mark.usefixtures(same_signals.__name__)
@pytest.mark.parametrize("state", [Pending(), Late()], ids=["starting", "due"])
def test_a_terminal_asks_prefect_too(
    client: SyncPrefectClient, support: LineMaker, file: Path, monkeypatch: Any, capsys: Capture, state: Any
) -> None:
    """A run that is due or starts would make a version of the line again: the verb refuses as the page does."""
    monkeypatch.setenv("PREFECT_API_URL", str(get_current_settings().api.url))
    deployment = client.create_deployment(client.create_flow_from_name("retrain"), "support")
    run = client.create_flow_run_from_deployment(deployment, parameters={"line": "support"}, state=state)
    status = main.main(["line", "delete", "support", "--yes"])
    client.delete_flow_run(run.id)
    assert status == 1 and "[STATE_RUN_ACTIVE]" in capsys.readouterr().err
    assert client.read_deployment(deployment) and file.is_file() and support.lines.versions("support") == [1, 2]
    client.delete_deployment(deployment)


def test_what_works_in_the_store_refuses_it(support: LineMaker) -> None:
    """The lock of the line, a live run, a question that waits and an unfinished release each refuse it."""
    store, run = support.store, "9" * 32
    with FileLock(store.lock("line-support").lock_file), pytest.raises(RunActive, match="is working"):
        line_deletion.delete("support", "ann", settings())
    write_atomic(store.layout.run(run).spec, json.dumps({"flow": "retrain", "spec": {"line": "support"}}))
    lease = Lease(run, store)
    with pytest.raises(RunActive, match="has not ended"):
        line_deletion.delete("support", "ann", settings())
    lease.end(finished=True)
    write_atomic(store.layout.question(run), "id")
    with pytest.raises(RunActive, match="answer its question"):
        line_deletion.would_delete("support", "ann", settings())
    store.layout.question(run).unlink()
    write_atomic(store.layout.line("support").transaction, "{}")
    with pytest.raises(RunActive, match="release"):
        line_deletion.would_delete("support", "ann", settings())
    assert support.lines.versions("support") == [1, 2]


def test_a_run_that_begins_while_a_person_decides_keeps_the_line(support: LineMaker, file: Path) -> None:
    """Between what was said and the name that is typed, a run begins: neither job file nor records go."""
    planned = cli_line.plan("support", "ann", settings(), None)
    with FileLock(support.store.lock("line-support").lock_file), pytest.raises(RunActive, match="is working"):
        cli_line.carry_out(planned, "ann", settings(), None)
    assert file.is_file() and support.lines.versions("support") == [1, 2]
    cli_line.carry_out(planned, "ann", settings(), None)
    assert not file.is_file() and support.lines.names() == []


def test_a_new_line_of_the_name_has_no_rejected_candidates(support: LineMaker, file: Path, pages: Pages) -> None:
    """The page of a new line shows what was rejected since the deletion, and nothing of the line before."""
    assert "routing fell" in pages().get("/lines/support").text
    line_deletion.delete("support", "ann", settings())
    assert "routing fell" not in pages().get("/lines/support").text
    support.rejected(4, "sorting fell")
    assert "sorting fell" in pages().get("/lines/support").text


@pytest.mark.usefixtures(same_signals.__name__)
def test_what_has_no_version_is_deleted(made: LineMaker, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A line of which the store has votes alone is deleted with them; then there is no such line."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    votes.add("first", vote(run_id(1)), made.store)
    assert main.main(["line", "delete", "first", "--yes"]) == 0
    [gone] = made.store.layout.deletions()
    assert [path.name for path in (gone.records / "votes").iterdir()] == [run_id(1)]
    assert not made.store.layout.line("first").root.exists()
    assert main.main(["line", "delete", "first", "--yes"]) == 1 and "[INPUT_REF_UNKNOWN]" in capsys.readouterr().err


def test_without_prefect_or_token_nothing_goes(support: LineMaker, file: Path, pages: Pages) -> None:
    """While Prefect is away the page says so; a forged form is refused."""
    browser = pages()
    assert send(browser, "support").status_code == 503
    assert browser.post("/lines/support/delete", data={"confirm": "support"}, headers=HERE).status_code == 403
    assert file.is_file() and support.lines.versions("support") == [1, 2]


@pytest.mark.usefixtures(same_signals.__name__)
def test_the_verb_says_and_asks(support: LineMaker, file: Path, capsys: Capture, monkeypatch: Any) -> None:
    """--dry-run says everything; without a terminal it needs --yes; an unknown line is an error."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main.main(["line", "delete", "support", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("Store:", "Job file:", "Prefect:", "MLflow:", "Ollama", "Data:"))
    assert main.main(["line", "delete", "support"]) == 1 and "[CONFIG_CONFIRMATION_REQUIRED]" in capsys.readouterr().err
    assert main.main(["line", "delete", "nothing"]) == 1 and "[INPUT_REF_UNKNOWN]" in capsys.readouterr().err
    assert main.main(["line", "delete", "../support", "--yes"]) == 1 and file.is_file()
    assert main.main(["line", "delete", "support", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["versions"] == [1, 2]
    assert "PREFECT_API_URL" not in os.environ and not file.exists()
