"""What comes next and what came of the last nights is read at one look; a failure says what to do."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from backprop_core.lines.versions import Move
from backprop_core.runtime.settings import settings
from backprop_core.schema.gate_report import Act
from backprop_core.schema.refs import ErrorRecord, RowsRef
from backprop_core.schema.specs import RunSpec
from backprop_core.store.artifacts import write_atomic
from flows.server.web import text
from tasks.runs.line_report import line_row
from tasks.runs.unchanged import too_few_new
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages, run_id
from tests.flows.server.web.test_run_page import ended
from tests.wire.stand_in import Request, Service

DEPLOYMENT = str(uuid4())
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


class NightlyPrefect(Service):
    """A Prefect with the line's deployment and these runs that have ended, the last one first."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        super().__init__()
        self.runs = runs

    def answer(self, request: Request) -> None:
        if request.path == "/api/deployments/name/retrain/support":
            parameters = {"line": "support", "min_new_rows": 50}
            request.reply(200, {"id": DEPLOYMENT, "parameters": parameters, "schedules": []})
        elif request.path == "/api/flow_runs/filter":
            request.reply(200, self.runs if "COMPLETED" in request.body().decode() else [])
        else:
            request.body()
            request.reply(404, {})


def run(state: str, kind: str, message: str, at: datetime = NOON) -> dict[str, Any]:
    """A flow run that has ended."""
    return {
        "id": str(uuid4()),
        "name": f"support {state}",
        "parameters": {"line": "support"},
        "deployment_id": DEPLOYMENT,
        "state_name": state,
        "state_type": kind,
        "state": {"message": message},
        "end_time": at.isoformat(),
    }


FAILED = run("Failed", "FAILED", "Flow run encountered an exception: Traceback")


@pytest.fixture
def browser(support: LineMaker, pages: Pages) -> Iterator[TestClient]:
    few = too_few_new(
        RowsRef(digest="a" * 64, rows=12), RunSpec(line="support", datasets=[{"path": "night.jsonl"}], min_new_rows=50)
    )
    last = run("Unchanged", "COMPLETED", f"unchanged: {few}")
    before = run("Rejected", "COMPLETED", f"rejected: routing fell {EVIL}")
    with NightlyPrefect([last, before, FAILED]).running() as service:
        yield pages(f"{service.url}/api")


def test_why_last_night_did_nothing(browser: TestClient) -> None:
    """How many of the rows that are needed there were, and what came of the runs before, in one line each."""
    said = browser.get("/lines/support").text
    assert "<b>12</b> of 50 new rows needed" in said
    assert "unchanged</a>, nothing to do, 12 rows were new" in said
    assert "rejected</a>, routing fell &lt;script&gt;" in said


def test_a_failure_is_in_a_persons_words(browser: TestClient, support: LineMaker) -> None:
    """The message and the hint of its result, not Prefect's traceback; it can be retried."""
    assert "encountered an exception" in browser.get("/lines/support").text  # nothing else is known
    error = ErrorRecord(code="INPUT_X", message=f"night.jsonl, line 241: {EVIL}", hint="mend it", retryable=False)
    ended(support, run_id(7), status="failed", error=error)
    write_atomic(support.store.layout.flow_run(FAILED["id"]), run_id(7))
    said = browser.get("/lines/support").text
    assert "night.jsonl, line 241: &lt;script&gt;" in said and "What to do: mend it." in said
    assert "encountered an exception" not in said and f'action="/runs/{FAILED["id"]}/retry"' in said


def test_nights() -> None:
    """The hours around midnight are last night; other times are as usual."""
    now = datetime(2026, 11, 30, 9).astimezone()
    for hours, said in ((6, "last night 03:00"), (11, "last night 22:00"), (1, "today 08:00"), (15, "yesterday 18:00")):
        assert text.lately(now - timedelta(hours=hours), now) == said


def test_live_since_is_when_a_person_made_it_live(support: LineMaker) -> None:
    """By the record of the rollback; the file's own time counts only where no person has moved the champion."""
    store = support.store
    act = Act(by="kim", at=datetime(2026, 1, 2, tzinfo=UTC), reason="worse")
    support.lines.note_move("support", Move(number=1, before=2, run_id=run_id(5), act=act))
    support.lines.set_champion("support", 1)
    config = settings()
    row = line_row("support", config)
    assert row.live and row.live.since == act.at
    support.lines.set_champion("support", 2)
    row = line_row("support", config)
    written = store.layout.line("support").champion.stat().st_mtime
    assert row.live and row.live.since == datetime.fromtimestamp(written, UTC)
