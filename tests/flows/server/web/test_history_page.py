"""The history, a version, and health, as pages and as JSON."""

import re
import time
from uuid import uuid4

import pytest

from backprop_core.runtime.settings import settings
from flows.server.web.history_page import PAGE
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages, run_id

DAY = 86_400_000  # ms


@pytest.fixture
def recorded(mlflow: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow with runs of two lines, one a day, the newest now, each with a child."""
    from mlflow import MlflowClient

    namespace = f"n{uuid4().hex[:8]}"  # the server is the session's
    track = MlflowClient(mlflow)
    monkeypatch.setenv("BACKPROPAGATE_NAMESPACE", namespace)
    for line in ("support", "billing"):
        experiment = track.create_experiment(f"{namespace}.{line}", tags={"backprop.namespace": namespace})
        for age in range(30):
            root = uuid4().hex
            status = "failed" if age % 3 == 0 else "finished"
            mine = {"backprop.run_id": root, "backprop.root": root, "backprop.role": "parent"}
            mine |= {"backprop.line": line, "backprop.status": status, "backprop.datasets": f'["night{age} {EVIL}"]'}
            begin = int(time.time() * 1000) - age * DAY
            run = track.create_run(experiment, begin, mine, f"{line} v{age}")
            track.set_terminated(run.info.run_id, end_time=begin + 5000)
            track.create_run(experiment, begin, mine | {"backprop.role": "child", "backprop.run_id": uuid4().hex})
    return mlflow


def test_the_history_is_what_list_runs_lists(recorded: str, made: LineMaker, pages: Pages) -> None:
    """Newest first, without children, filtered by line, status and day, a page at a time; every run has its link."""
    browser = pages(mlflow=recorded)
    first = browser.get("/history").text
    assert len(re.findall('href="/runs/[0-9a-f]{32}"', first)) == PAGE
    assert "night0 &lt;script&gt;" in first and ">support v0<" in first
    [older] = re.findall('href="(/history\\?[^"]*after=[^"]+)"', first)
    rest = browser.get(older.replace("&amp;", "&")).text
    assert len(re.findall('href="/runs/[0-9a-f]{32}"', rest)) == 10 and "Newest runs" in rest
    some = browser.get("/api/v1/runs", params={"line": "support", "status": "failed"}).json()["runs"]
    assert {(run["line"], run["status"]) for run in some} == {("support", "failed")} and len(some) == 10
    week = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 6 * 86_400))
    assert len(browser.get("/api/v1/runs", params={"since": week}).json()["runs"]) in (12, 14)
    shown = browser.get("/history", params={"line": "support", "since": week}).text
    assert f"backprop list-runs --line support --since {week}" in shown


def test_a_run_that_only_mlflow_has_is_a_page(recorded: str, made: LineMaker, pages: Pages) -> None:
    """Every run of the history opens: without its records the page says what MLflow knows, and that it is all."""
    browser = pages(mlflow=recorded)
    for run in browser.get("/api/v1/runs", params={"line": "billing"}).json()["runs"][:2]:
        answer = browser.get(f"/runs/{run['run_id']}")
        assert answer.status_code == 200 and "Only MLflow has this run" in answer.text
        assert run["name"] in answer.text and run["status"] in answer.text and "&lt;script&gt;" in answer.text
        known = browser.get(f"/api/v1/runs/{run['run_id']}").json()
        assert (known["run"], known["recorded"]) == (None, run)
    assert browser.get(f"/runs/{'a' * 32}").status_code == 404


def test_a_run_is_not_unknown_while_mlflow_is_away(made: LineMaker, pages: Pages) -> None:
    """Without MLflow the answer for a run that the store lacks says that MLflow may have it."""
    answer = pages().get(f"/runs/{'a' * 32}")
    assert answer.status_code == 404 and "once MLflow is there" in answer.text


@pytest.mark.parametrize("query", ["line=x'%20OR%20''='", "status=gone", "since=yesterday", "line=%3Cscript%3E"])
def test_a_filter_that_is_none_is_refused(made: LineMaker, pages: Pages, query: str) -> None:
    """What is no line, status or day is refused with a code, and reaches no query."""
    answer = pages().get(f"/history?{query}")
    assert answer.status_code == 400 and "Code:" in answer.text


def test_mlflow_is_away(made: LineMaker, pages: Pages) -> None:
    """The history says that MLflow does not answer; its JSON is 503."""
    assert "Not known now: MLflow does not answer" in pages().get("/history").text
    assert pages().get("/api/v1/runs").status_code == 503


def test_a_version_has_its_own_page(support: LineMaker, pages: Pages) -> None:
    """Scores, the gate's report, what changed, digests of the files, and everything that it has learned."""
    text = pages().get("/versions/support/2").text
    for part in (
        "approved by a person: good",
        "90.0 %",
        "The gate's report",
        "10 → 20",
        "night1&lt;script&gt;",
        "live",
    ):
        assert part in text, part
    known = pages().get("/api/v1/lines/support/versions/2").json()
    assert all(file["sha256"] in text for file in known["version"]["files"])
    assert known["gate"]["accepted"] and known["is_live"] and known["version"]["run_id"] == run_id(2)
    assert f'href="/runs/{run_id(2)}"' in text
    assert 'href="/lines/support/rollback?to=1"' in pages().get("/versions/support/1").text


@pytest.mark.parametrize("path", ["support/9", "support/0", "support/-1", "support/..%2f1", "none/1", "support/1e3"])
def test_unknown_versions(support: LineMaker, pages: Pages, path: str) -> None:
    """404, never a path."""
    assert pages().get(f"/versions/{path}").status_code == 404


def test_health_is_json_for_monitoring_and_a_page_for_people(made: LineMaker, pages: Pages) -> None:
    """A browser is led to the page, which asks for the password; monitoring gets JSON without one."""
    browser = pages(password="team:horse staple")
    assert browser.get("/health").json() == {"status": "ok", "prefect": True, "mlflow": True, "worker": True}
    asked = browser.get("/health", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (asked.status_code, asked.headers["location"]) == (303, "/health/page")
    assert browser.get("/health/page").status_code == 401
    text = pages().get("/health/page").text
    for part in (
        "MLflow has been told everything",
        "transformers",
        "backprop doctor",
        "free",
        str(settings().home_path),
    ):
        assert part in text, part
