"""Deployments, schedules and automations: made once, kept as they shall be, and nobody's own work undone."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.settings import get_current_settings
from prefect.states import Pending

from backprop_core.errors import BackpropError, ConfigInvalid
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.specs import LineSpec, ScheduleSpec, StalenessSpec
from flows.registry import load
from flows.server.deploy import Change, deploy, deploy_line
from flows.server.deployment_names import path_of
from tests.wire.prefect_server import PrefectServer, wait_until

CONFIG = Settings(namespace="deploytest")
POOL = "pool-of-deploytest"
NIGHT, NOON = ScheduleSpec(cron="0 3 * * *", timezone="Europe/Berlin"), ScheduleSpec(cron="0 12 * * *")
JOB = LineSpec.model_validate(
    {
        "line": "support",
        "datasets": [{"path": "/data/night.jsonl"}],
        "training": {"epochs": 5},
        "approval": {"ask": True},  # Prefect drops properties that are called as a word of JSON schema is: "required"
        "schedule": NIGHT,
    }
)


@pytest.fixture(scope="module")
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def line(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    """`retrain/support` as its file says it, gone afterwards."""
    put(JOB)
    yield (made := read(client))
    client.delete_deployment(made.id)


def put(*jobs: LineSpec, dry_run: bool = False) -> list[Change]:
    """Deploy these lines."""
    return deploy(CONFIG, {job.line: job for job in jobs}, pool=POOL, dry_run=dry_run)


def changed(*jobs: LineSpec, dry_run: bool = False) -> list[tuple[str, bool, list[str]]]:
    """What deploying these lines changes, or would change."""
    changes = put(*jobs, dry_run=dry_run)
    return [(change.what, change.new, change.details) for change in changes if change.new or change.details]


def read(client: SyncPrefectClient) -> DeploymentResponse:
    return client.read_deployment_by_name("retrain/support")


def crons(client: SyncPrefectClient) -> list[tuple[str, bool]]:
    """The line's schedules, and whether they are active."""
    return sorted((schedule.schedule.cron, schedule.active) for schedule in read(client).schedules)


def job(**changes: object) -> LineSpec:
    return JOB.model_copy(update=changes)


def test_deploying_again_changes_nothing(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """One deployment a flow, one a line, one automation, and one a line; a second time all is as it was."""
    names = [change.what for change in put(JOB)]
    flows = [f"deployment {path_of(flow)}" for flow in FLOWS]
    own = ["automation deploytest: runs whose process has died", "automation deploytest: new data of line support"]
    assert names == [f"work pool {POOL}", *flows, "deployment retrain/support", *own]
    assert changed(JOB) == []
    assert line.parameters == {
        "line": "support",
        "data": {"path": "/data/night.jsonl"},
        "approval": {"ask": True},
        "training": {"epochs": 5},
        "min_new_rows": 200,
    }
    assert read(client) == line


def test_a_dry_run_only_says(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """What would be made or changed is said, field by field, and nothing is touched."""
    other = LineSpec.model_validate({"line": "other", "datasets": [{"path": "a"}]})
    half = job(training=JOB.training.model_copy(update={"epochs": 2}), schedule=NOON)
    expected = [
        ("deployment retrain/support", False, ["parameters.training.epochs: 5.0 → 2.0"]),
        ("deployment retrain/other", True, []),
        ("automation deploytest: new data of line other", True, []),
    ]
    [(what, new, [first, schedule]), *made] = changed(half, other, dry_run=True)
    assert [(what, new, [first]), *made] == expected
    assert "0 3" in schedule.partition("→")[0] and "0 12" in schedule.partition("→")[2]
    assert read(client) == line


def test_the_file_decides_the_schedule(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """Written when new, replaced when changed, removed when gone; one without a file's slug is nobody's business."""
    client.create_deployment_schedules(line.id, [(CronSchedule(cron="5 5 * * *"), True)])
    assert crons(client) == [("0 3 * * *", True), ("5 5 * * *", True)]
    [before] = [each.id for each in line.schedules]
    put(job(schedule=NOON))
    assert crons(client) == [("0 12 * * *", True), ("5 5 * * *", True)]
    assert before in [each.id for each in read(client).schedules]  # the same one, at another time
    put(job(schedule=None))
    assert crons(client) == [("5 5 * * *", True)]


def test_one_line_is_deployed_alone(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """Deploying one line updates its deployment and automation; no other line and no flow is looked at."""
    changes = deploy_line(CONFIG, job(min_new_rows=7), pool=POOL, dry_run=False)
    assert [change.what for change in changes if change.details] == ["deployment retrain/support"]
    assert not [change.what for change in changes if "support" not in change.what and "pool" not in change.what]
    assert read(client).parameters["min_new_rows"] == 7 and crons(client) == [("0 3 * * *", True)]


def test_a_persons_slug_may_look_like_ours(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """A schedule that a person calls file-… is theirs: it stays, and the file's keeps the time that was set."""
    [schedule] = line.schedules
    client.update_deployment_schedule(line.id, schedule.id, schedule=CronSchedule(cron="7 7 * * *"))
    own = {"active": True, "schedule": {"cron": "5 5 * * *"}, "slug": "file-import"}
    assert client._client.post(f"/deployments/{line.id}/schedules", json=[own]).status_code == 201
    assert changed(JOB) == [] and crons(client) == [("5 5 * * *", True), ("7 7 * * *", True)]


def test_what_was_done_in_the_ui_stays(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """A schedule that was edited or paused survives, as does a paused deployment; what replaces it is paused too."""
    [schedule] = line.schedules
    client.update_deployment_schedule(line.id, schedule.id, schedule=CronSchedule(cron="7 7 * * *"))
    client.update_deployment_schedule(line.id, schedule.id, active=False)
    client.pause_deployment(line.id)
    put(job(min_new_rows=5))
    assert crons(client) == [("7 7 * * *", False)]
    assert read(client).paused and read(client).parameters["min_new_rows"] == 5
    put(job(schedule=NOON))
    assert crons(client) == [("0 12 * * *", False)]


def test_what_was_changed_by_hand_in_a_deployment_is_put_right(
    client: SyncPrefectClient, line: DeploymentResponse
) -> None:
    """Parameters, pool and entrypoint are the file's and ours."""
    client._client.patch(f"/deployments/{line.id}", json={"parameters": {"line": "else"}, "entrypoint": "a:b"})
    put(JOB)
    assert (read(client).parameters, read(client).entrypoint) == (line.parameters, "flows.retrain:retrain")


@pytest.mark.parametrize("name", ["runs whose process has died", "new data of line support"])
def test_an_automation_that_was_switched_off_stays_off(
    client: SyncPrefectClient, line: DeploymentResponse, name: str
) -> None:
    """Deploying again neither makes a second one nor switches it on."""
    [automation] = client.read_automations_by_name(f"deploytest: {name}")
    client.pause_automation(automation.id)
    put(JOB)
    [again] = client.read_automations_by_name(automation.name)
    assert (again.id, again.enabled) == (automation.id, False)
    client.resume_automation(automation.id)


def test_an_event_starts_a_retrain(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """One POST of new data makes one run of the line with its file's parameters; the same event again makes none."""
    put(JOB, LineSpec(line="later", datasets=JOB.datasets))
    wait_until(lambda: heard(client, "later"), 180, "run of the line that the server learns of last")
    first, second = uuid4(), uuid4()
    for event in (first, first, second):
        tell(client, "support", event)
    wait_until(lambda: len(runs_of(client, "support")) >= 2, 180, "flow runs")
    runs = runs_of(client, "support")  # events are taken in their order: all of them have been
    assert len(runs) == 2 and all(run.parameters == line.parameters for run in runs)
    assert all(run.state and run.state.is_scheduled() for run in runs)
    client.delete_deployment(client.read_deployment_by_name("retrain/later").id)


def heard(client: SyncPrefectClient, line: str) -> bool:
    """Whether the server, told again, has begun to start the line's runs: it learns of an automation in a while."""
    tell(client, line, uuid4())
    return bool(runs_of(client, line))


def runs_of(client: SyncPrefectClient, line: str) -> list[FlowRun]:
    deployment = client.read_deployment_by_name(f"retrain/{line}").id
    ours = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    return client.read_flow_runs(flow_run_filter=ours)


def tell(client: SyncPrefectClient, line: str, event: UUID) -> None:
    """Another service has new data for a line."""
    resource = {"prefect.resource.id": f"deploytest.line.{line}"}
    now = datetime.now(UTC).isoformat()
    told = {"id": str(event), "event": "deploytest.new-data", "occurred": now, "resource": resource}
    assert client._client.post("/events", json=[told]).status_code == 204


def test_a_lines_automation_goes_with_its_file(
    client: SyncPrefectClient, line: DeploymentResponse, tmp_path: Path
) -> None:
    """With what its file had started by the clock, once the file is gone from where it was; elsewhere nothing goes."""
    elsewhere = CONFIG.model_copy(update={"home": tmp_path})
    assert [change.details for change in deploy(elsewhere, {}, pool=POOL, dry_run=False) if change.details] == []
    put(job(drift=StalenessSpec(cron="0 * * * *")))
    client.create_deployment_schedules(line.id, [(CronSchedule(cron="5 5 * * *"), True)])
    gone = changed(dry_run=True)
    assert [what for what, *_ in gone] == [
        "deployment drift/support",
        "deployment retrain/support",
        "automation deploytest: new data of line support",
    ]
    assert all(details[0].startswith("removed") or details[0].endswith("removed") for *_, details in gone)
    assert (changed(), changed()) == (gone, [])
    assert crons(client) == [("5 5 * * *", True)]
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("drift/support")


def test_a_line_asks_for_looks_at_fresh_rows(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """`drift:` in its file makes `drift/support` on that schedule, with the line's data; without it that is removed."""
    looks = job(drift=StalenessSpec(cron="0 * * * *", max_loss_ratio=2), schedule=None)
    put(looks)
    made = client.read_deployment_by_name("drift/support")
    assert [schedule.schedule.cron for schedule in made.schedules] == ["0 * * * *"]
    assert made.parameters == {"line": "support", "data": {"path": "/data/night.jsonl"}, "max_loss_ratio": 2}
    assert changed(looks) == []
    removed = ("deployment drift/support", False, ["removed: the job file does not ask for it"])
    assert removed in changed(JOB, dry_run=True) and removed in changed(JOB) and changed(JOB) == []


def test_a_schedule_makes_the_runs_to_come(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """What the server's scheduler does by itself it does when it is asked: the next nights are in its database."""
    address = get_current_settings().api.url
    assert address
    status, said = PrefectServer(address, {}).call("POST", f"/deployments/{line.id}/schedule", {"min_runs": 2})
    assert status == 200, said
    of_line = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[line.id]))
    runs = client.read_flow_runs(flow_run_filter=of_line)
    times = {run.expected_start_time.astimezone(ZoneInfo("Europe/Berlin")).hour for run in runs}
    assert len(runs) >= 2 and times == {3}
    assert all(run.auto_scheduled and run.state and run.state.is_scheduled() for run in runs)


def test_a_schedule_that_cannot_be_is_named(prefect: None) -> None:
    """Nothing is deployed of a line whose cron nobody can read."""
    with pytest.raises(ConfigInvalid, match="schedule of line support"):
        put(job(schedule=ScheduleSpec(cron="0 25 * * *")), dry_run=True)


EDITED = {  # what Prefect's UI sends when nothing but the time of a schedule was edited in a form with defaults
    "notify": None,
    "max_seconds": None,
    "run_id": None,
    "model": {"revision": None},
    "training": {"steps": None, "checkpoint_steps": None, "lora_plus": None},
    "export": {"ollama": None, "num_ctx": None, "system": None, "license": None},
}


def edit(client: SyncPrefectClient, deployment: DeploymentResponse, cron: str, parameters: dict[str, Any]) -> None:
    """Edit the line's one schedule as Prefect's UI does."""
    [schedule] = read(client).schedules
    body = {"parameters": parameters, "active": True, "schedule": {"cron": cron, "timezone": "UTC", "day_or": True}}
    answer = client._client.patch(f"/deployments/{deployment.id}/schedules/{schedule.id}", json=body)
    assert answer.status_code == 204


def test_a_schedule_says_when_and_the_file_what(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """The time that was edited in the UI stays; parameters that came with it are undone, and said."""
    edit(client, line, "7 7 * * *", EDITED)
    for dry_run in (True, False):
        [(what, _, [undone])] = changed(JOB, dry_run=dry_run)
        assert what == "deployment retrain/support" and "7 7 * * *" in undone and "export, max_seconds, model" in undone
    [schedule] = read(client).schedules
    assert (schedule.schedule, schedule.parameters) == (CronSchedule(cron="7 7 * * *", timezone="UTC"), {})
    assert changed(JOB) == []


def test_parameters_of_any_schedule_of_a_line_are_undone(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """One that a person made keeps its time, and is paused if it was; of a flow's own deployment nothing is undone."""
    looks = job(drift=StalenessSpec(cron="0 * * * *"))
    put(looks)
    paths = ("retrain/support", "drift/support", path_of("retrain"))
    own = [client.read_deployment_by_name(path) for path in paths]
    for each in own:
        body = {"active": False, "schedule": {"cron": "5 5 * * *"}, "parameters": {"fresh": True}, "slug": "mine"}
        assert client._client.post(f"/deployments/{each.id}/schedules", json=[body]).status_code == 201
    assert [what for what, *_ in changed(looks)] == ["deployment retrain/support", "deployment drift/support"]
    found = [one for path in paths for one in client.read_deployment_by_name(path).schedules if one.slug == "mine"]
    assert [(one.active, one.parameters) for one in found] == [(False, {}), (False, {}), (False, {"fresh": True})]
    client.delete_deployment_schedule(own[2].id, found[2].id)
    client.delete_deployment(own[1].id)


@pytest.mark.parametrize("flow", ["retrain", "drift"])
def test_a_scheduled_run_does_what_the_file_says(
    client: SyncPrefectClient, line: DeploymentResponse, home: Path, page: list[str], flow: str
) -> None:
    """Parameters that an edited schedule brought into a run are left out, and named, before anything uses them."""
    put(job(drift=StalenessSpec(cron="0 3 * * *")))
    made = client.read_deployment_by_name(f"{flow}/support")
    body = {"parameters": {"data": {"path": "/data/other.jsonl"}}, "active": True, "schedule": {"cron": "7 7 * * *"}}
    client._client.patch(f"/deployments/{made.id}/schedules/{made.schedules[0].id}", json=body)
    client._client.post(f"/deployments/{made.id}/schedule", json={"min_runs": 1})
    of_line = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[made.id]))
    run = client.read_flow_runs(flow_run_filter=of_line)[0]
    assert run.auto_scheduled and run.parameters["data"] == {"path": "/data/other.jsonl"}
    client.set_flow_run_state(run.id, Pending(), force=True)
    error = run_flow(load(flow), flow_run=client.read_flow_run(run.id), return_type="state")
    told = error.result(raise_on_failure=False)
    assert isinstance(told, BackpropError) and "/data/other.jsonl" not in told.message, told
    assert any(said.startswith("data of the schedule left out") for said in page)
    client.delete_deployment(client.read_deployment_by_name("drift/support").id)


@pytest.mark.parametrize(
    ("flow", "brought"),
    [("retrain", {"training": None, "evaluation": {"heldout_max": None}, "line": "other"}), ("drift", {"data": None})],
)
def test_what_no_run_could_take_is_left_out_of_a_schedule(
    client: SyncPrefectClient,
    line: DeploymentResponse,
    home: Path,
    page: list[str],
    flow: str,
    brought: dict[str, Any],
) -> None:
    """A scheduled run does what the file says, under its own name, though its schedule has null for whole parts."""
    put(job(drift=StalenessSpec(cron="0 3 * * *")))
    made = client.read_deployment_by_name(f"{flow}/support")
    body = {"parameters": brought, "active": True, "schedule": {"cron": "7 7 * * *"}}
    client._client.patch(f"/deployments/{made.id}/schedules/{made.schedules[0].id}", json=body)
    client._client.post(f"/deployments/{made.id}/schedule", json={"min_runs": 1})
    of_line = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[made.id]))
    run = client.read_flow_runs(flow_run_filter=of_line)[0]
    client.set_flow_run_state(run.id, Pending(), force=True)
    error = run_flow(load(flow), flow_run=client.read_flow_run(run.id), return_type="state")
    assert isinstance(told := error.result(raise_on_failure=False), BackpropError), told
    assert "other" not in client.read_flow_run(run.id).name and "support" in client.read_flow_run(run.id).name
    left_out = ", ".join(sorted(brought))
    assert any(said.startswith(f"{left_out} of the schedule left out") for said in page)
    client.delete_deployment(client.read_deployment_by_name("drift/support").id)


def test_an_old_name_is_kept_where_it_is(client: SyncPrefectClient, line: DeploymentResponse) -> None:
    """A server that has FLOW/default from before keeps it, up to date, with its schedules; none is made anew."""
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("export/default")
    own = client.read_deployment_by_name(path_of("export"))
    old = client.create_deployment(flow_id=own.flow_id, name="default", entrypoint="flows.export:old")
    client.create_deployment_schedules(old, [(CronSchedule(cron="5 5 * * *"), True)])
    assert [what for what, *_ in changed(JOB)] == ["deployment export/default"]
    kept = client.read_deployment_by_name("export/default")
    assert (kept.id, kept.entrypoint, len(kept.schedules)) == (old, own.entrypoint, 1)
    assert path_of("export") in (kept.description or "") and changed(JOB) == []
    client.delete_deployment(old)
