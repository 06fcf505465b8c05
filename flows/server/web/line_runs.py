"""What Prefect knows of lines: what runs, what waits for a person, what comes next, what failed."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field, ValidationError

from backprop_core.schema.flows import FLOWS
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ErrorRecord, RunResult
from flows.run_states import WAITING
from flows.server.web.prefect_api import PrefectApi
from tasks.runs.run_progress import RunProgress

APPROVAL = "approval"
OF_LINES = [name for name, flow in FLOWS.items() if flow.of_line]
CHANGING = [name for name in OF_LINES if name != "drift"]  # flows that can change what is live
GENERAL = [flow.deployment for flow in FLOWS.values() if flow.of_line]  # deployments that take any line
ACTIVE, BROKEN = ["RUNNING", "PENDING", "CANCELLING"], ["FAILED", "CRASHED"]
ENDED = ["COMPLETED", "CANCELLED", *BROKEN]
MOST, SOME = 200, 25  # flow runs of a query; the first is Prefect's own limit
MOST_FAILURES, MOST_LATELY = 5, 3
TOO_FEW = re.compile(r"\b(\d+) rows are new to line")  # as `retrain` says it
MOST_BROKEN = 10
FENCE = ("```json\n", "\n```")  # around JSON in a Markdown artifact


class Schedule(Record):
    """A schedule of the line."""

    id: str
    when: str
    active: bool


class FlowRun(Record):
    """A flow run of Prefect's."""

    id: str
    name: str
    line: str
    deployment: str | None
    type: str = Field(description="Of its state in Prefect: RUNNING, SCHEDULED, FAILED, …")
    state: str = Field(description="Its name in Prefect: Running, Late, Unchanged, Failed, …")
    failed: bool
    at: datetime | None = Field(description="When it began, ended, or is to begin.")
    message: str
    progress: RunProgress | None = None
    error: ErrorRecord | None = Field(None, description="Why it failed, from its result.")

    @property
    def new_rows(self) -> int | None:
        """How many rows were new to the line, if they were too few."""
        found = TOO_FEW.search(self.message)
        return int(found[1]) if found else None

    @property
    def outcome(self) -> str:
        """What came of it, in words that go with its state."""
        if self.error:
            return self.error.message
        if self.new_rows is not None:
            return f"nothing to do, {self.new_rows} rows were new"
        return self.message.removeprefix(f"{self.state.lower()}: ")


class Deployment(Record):
    """The deployment of a line."""

    id: str
    data: str | None = Field(description="Where its job reads rows.")
    min_new_rows: int | None = Field(description="New rows that a run needs.")
    schedules: list[Schedule]


class Question(Record):
    """A version that waits for a person."""

    id: str = Field(description="The flow run that asks.")
    line: str
    run_id: str
    asked: datetime
    until: datetime = Field(description="Then it is rejected.")
    candidate: RunResult | None = Field(description="What waits; null if an older version has asked.")


class LineRuns(Record):
    """What Prefect knows of a line."""

    deployment: Deployment | None = Field(description="Null for a line without a job file.")
    waiting: list[Question]
    running: list[FlowRun]
    queued: list[FlowRun] = Field(description="Runs that are due and have not begun.")
    next: FlowRun | None
    last: FlowRun | None = Field(description="The retrain that ended last.")
    lately: list[FlowRun] = Field(description="The retrains that ended last, the last one first.")
    failures: list[FlowRun] = Field(description="Newest first.")

    @property
    def asking(self) -> set[str]:
        """The flow runs that wait for an answer."""
        return {run.id for run in self.running if run.state == WAITING}


def line_runs(line: str, api: PrefectApi, namespace: str) -> LineRuns:
    """What Prefect knows of a line. Raises PrefectUnreachable."""
    with ThreadPoolExecutor(5) as pool:
        deployment = pool.submit(deployment_of, line, api)
        active, due = pool.submit(flow_runs, api, ACTIVE, line), pool.submit(scheduled, api, line)
        ended, asked = pool.submit(over, api, line), pool.submit(waiting, api, namespace, line)
    known, now = deployment.result(), datetime.now(UTC)
    mine = [run for run in ended.result() if known and run.deployment == known.id]
    return LineRuns(
        deployment=known,
        waiting=asked.result(),
        running=active.result(),
        queued=[run for run in due.result() if run.at and run.at <= now],
        next=next((run for run in due.result() if run.at and run.at > now), None),
        last=next(iter(mine), None),
        lately=mine[:MOST_LATELY],
        failures=[run for run in ended.result() if run.failed][:MOST_FAILURES],
    )


def deployment_of(line: str, api: PrefectApi) -> Deployment | None:
    """The deployment of a line; None for a line without a job file. Raises PrefectUnreachable."""
    known = api.query(f"/deployments/name/retrain/{line}")
    if known is None:
        return None
    given, schedules = known["parameters"], [schedule(each) for each in known["schedules"]]
    data = given.get("data")
    path = data.get("path") if isinstance(data, dict) else data
    return Deployment(id=known["id"], data=path, min_new_rows=given.get("min_new_rows"), schedules=schedules)


def flow_runs(api: PrefectApi, states: list[str], line: str | None, flows: list[str] = OF_LINES) -> list[FlowRun]:
    """The flow runs of a line, or of all lines, in these types of states."""
    wanted = {
        "flows": {"name": {"any_": flows}},
        "flow_runs": {"state": {"type": {"any_": states}}},
        "sort": "START_TIME_DESC",
        "limit": MOST,
    }
    return [run for run in map(flow_run, api.query("/flow_runs/filter", wanted)) if line in (None, run.line)]


def scheduled(api: PrefectApi, line: str) -> list[FlowRun]:
    """The runs of a line that are to begin, the first ones first."""
    return of_deployments(api, line, ["SCHEDULED"], "EXPECTED_START_TIME_ASC")


def over(api: PrefectApi, line: str) -> list[FlowRun]:
    """The runs of a line that have ended, the last ones first."""
    return of_deployments(api, line, ENDED, "END_TIME_DESC")


def of_deployments(api: PrefectApi, line: str, states: list[str], sort: str) -> list[FlowRun]:
    """The runs of a line's own deployments, and of those that take any line."""
    wanted = {
        "deployments": {"name": {"any_": [line, *GENERAL]}},
        "flow_runs": {"state": {"type": {"any_": states}}},
        "sort": sort,
        "limit": SOME,
    }
    return [run for run in map(flow_run, api.query("/flow_runs/filter", wanted)) if run.line == line]


def last_retrains(api: PrefectApi) -> list[FlowRun]:
    """The retrains that ended last, of all lines, the last ones first."""
    wanted = {
        "flows": {"name": {"any_": ["retrain"]}},
        "flow_runs": {"state": {"type": {"any_": ENDED}}},
        "sort": "END_TIME_DESC",
        "limit": SOME,
    }
    return [flow_run(known) for known in api.query("/flow_runs/filter", wanted)]


def broken(api: PrefectApi) -> list[FlowRun]:
    """The last runs that failed or crashed, of all lines, the last ones first."""
    wanted = {
        "flows": {"name": {"any_": list(FLOWS)}},
        "flow_runs": {"state": {"type": {"any_": BROKEN}}},
        "sort": "END_TIME_DESC",
        "limit": MOST_BROKEN,
    }
    return [flow_run(known) for known in api.query("/flow_runs/filter", wanted)]


def newest(api: PrefectApi, deployment: str, before: datetime) -> str:
    """The id of the last run of a deployment that was due by a time; empty if there was none."""
    wanted = {
        "deployments": {"id": {"any_": [deployment]}},
        "flow_runs": {"expected_start_time": {"before_": before.isoformat()}},
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": 1,
    }
    return "".join(known["id"] for known in api.send("POST", "/flow_runs/filter", wanted))


def at_work(api: PrefectApi, line: str) -> list[FlowRun]:
    """The runs that can change the line and have begun, or are due."""
    api.forget()  # as it is now
    now = datetime.now(UTC)
    due = [run for run in scheduled(api, line) if run.at and run.at <= now]
    return [*flow_runs(api, ACTIVE, line, CHANGING), *due]


def flow_run(known: Mapping[str, Any]) -> FlowRun:
    """A flow run as Prefect gives it."""
    state = known.get("state") or {}
    kind = known["state_type"]
    begins = known.get("start_time") or known.get("next_scheduled_start_time") or known.get("expected_start_time")
    return FlowRun(
        id=known["id"],
        name=known["name"],
        line=str(known["parameters"].get("line", "")),
        deployment=known.get("deployment_id"),
        type=kind,
        state=known["state_name"],
        failed=kind in BROKEN,
        at=(known.get("end_time") if kind in ENDED else None) or begins,
        message=state.get("message") or "",
    )


def waiting(api: PrefectApi, namespace: str, line: str | None = None) -> list[Question]:
    """The questions that wait for a person, of a line or of all lines, the oldest first."""
    wanted = {
        "flows": {"name": {"any_": [APPROVAL]}},
        "flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}, "tags": {"all_": [namespace]}},
        "sort": "START_TIME_ASC",
        "limit": MOST,
    }
    found = api.query("/flow_runs/filter", wanted)
    return [question(api, known) for known in found if line in (None, known["parameters"]["line"])]


def question(api: PrefectApi, known: Mapping[str, Any]) -> Question:
    """A question as Prefect gives it, with what it is about."""
    given = known["parameters"]
    asked = datetime.fromisoformat(known["state"]["timestamp"])
    return Question(
        id=known["id"],
        line=given["line"],
        run_id=given["run_id"],
        asked=asked,
        until=asked + timedelta(hours=given["hours"]),
        candidate=next(candidates(api, known["id"]), None),
    )


def candidates(api: PrefectApi, flow_run: str) -> Iterator[RunResult]:
    """What a question is about, from the artifact that it has written."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [flow_run]}, "key": {"like_": "%-candidate"}}}
    for artifact in api.query("/artifacts/filter", wanted):
        try:
            yield RunResult.model_validate_json(artifact["data"].removeprefix(FENCE[0]).removesuffix(FENCE[1]))
        except ValidationError:  # of another version
            continue


def schedule(known: Mapping[str, Any]) -> Schedule:
    """A schedule as Prefect gives it."""
    kind = known["schedule"]
    when = f"{kind['cron']} ({kind.get('timezone') or 'UTC'})" if "cron" in kind else "a schedule made in Prefect"
    return Schedule(id=known["id"], when=when, active=known["active"])
