"""Deployments, schedules and automations on a Prefect server: what is wanted, how it differs, and the update.

Schedules are in `schedules`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.exceptions import ObjectNotFound

from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.records import Record
from backprop_core.schema.specs import LineSpec, ScheduleSpec, StalenessSpec
from flows.cli.prefect_environment import refusals
from flows.parameters import differing, parameters
from flows.registry import entrypoint, load
from flows.server.automations import automation, automations, left_over, remove_automation
from flows.server.deployment_forms import form_of
from flows.server.deployment_names import OLD, path_of
from flows.server.schedules import reconcile_schedule, said, scheduled, undo_parameters
from flows.server.work_pools import Place, place_of, work_pools

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

OF_A_JOB_FILE = [name for name, flow in FLOWS.items() if flow.per_line]
PAGE = 200  # deployments that Prefect's server returns at once
HEARTBEAT = 30  # seconds between heartbeats of a flow run, Prefect's minimum


class Change(Record):
    """The update of one object on the server; without `details` it is unchanged."""

    what: str
    new: bool
    details: list[str]


@dataclass(frozen=True)
class Deployment:
    """A wanted deployment. `fields` are its fields in Prefect, without schedules."""

    flow: str
    name: str
    fields: Mapping[str, Any]
    limit: int | None
    schedule: DeploymentScheduleCreate | None = None
    of_file: bool = False  # made from the job file of a line

    @property
    def path(self) -> str:
        return f"{self.flow}/{self.name}"


def deploy(config: Settings, jobs: Mapping[str, LineSpec], *, pool: str, dry_run: bool) -> list[Change]:
    """Update deployments, schedules and automations on the server. Returns what changed or would change.

    Raises ConfigInvalid for an invalid schedule, DeploymentRefused for what the server refuses.
    """
    every = list(deployments(config, jobs, pool))
    with get_client(sync_client=True) as client, refusals("check the work pool's variables"):
        known = those_of(client, FLOWS)
        every += with_old_name(known, config, pool, [wanted.path for wanted in every])
        changes = [
            *work_pools(client, pools_of(every), dry_run=dry_run),
            *(reconcile(client, wanted, known.get(wanted.path), dry_run=dry_run) for wanted in every),
            *(gone for line, job in jobs.items() if not job.drift for gone in remove(client, f"drift/{line}", dry_run)),
            *(gone for line, _ in left_over(client, config, jobs) for gone in forget(client, line, dry_run)),
            *automations(client, config, jobs.keys(), silence=3 * HEARTBEAT, dry_run=dry_run),
        ]
    return [Change(what=what, new=new, details=details) for what, new, details in changes]


def deploy_line(config: Settings, job: LineSpec, *, pool: str, dry_run: bool) -> list[Change]:
    """Update the deployments, schedules and automation of one line. Raises what `deploy` raises."""
    every = list(of_job(job, config, pool))  # all are valid before the first is written
    with get_client(sync_client=True) as client, refusals("check the work pool's variables"):
        known = those_of(client, [wanted.flow for wanted in every])
        changes = [
            *work_pools(client, pools_of(every), dry_run=dry_run),
            *(reconcile(client, wanted, known.get(wanted.path), dry_run=dry_run) for wanted in every),
            *(() if job.drift else remove(client, f"drift/{job.line}", dry_run)),
            automation(client, config, job.line, dry_run=dry_run),
        ]
    return [Change(what=what, new=new, details=details) for what, new, details in changes]


def deployments(config: Settings, jobs: Mapping[str, LineSpec], pool: str) -> Iterator[Deployment]:
    """One for every flow, and those of every job file."""
    for name in FLOWS:
        yield of_flow(name, FLOWS[name].deployment, config, pool)
    for job in jobs.values():
        yield from of_job(job, config, pool)


def of_job(job: LineSpec, config: Settings, pool: str) -> Iterator[Deployment]:
    """`retrain/NAME` of a job file and, if it sets drift, `drift/NAME`."""
    yield of_line("retrain", job, parameters_of(job), job.schedule, config, pool)
    if job.drift:
        yield of_line("drift", job, fresh_rows(job, job.drift), job.drift, config, pool)


def of_flow(flow: str, name: str, config: Settings, pool: str) -> Deployment:
    """The deployment of a flow, without parameters of its own."""
    return Deployment(
        flow, name, fields_of(flow, config, place_of(config, pool, flow), {}), 1 if FLOWS[flow].alone else None
    )


def pools_of(wanted: Iterable[Deployment]) -> Iterator[str]:
    """The work pools of deployments."""
    return (each.fields["work_pool_name"] for each in wanted)


def those_of(client: SyncPrefectClient, flows: Collection[str]) -> "dict[str, DeploymentResponse]":
    """The server's deployments of these flows, by FLOW/NAME."""
    of_these = FlowFilter(name=FlowFilterName(any_=list(flows)))
    names = {flow.id: flow.name for flow in client.read_flows(flow_filter=of_these)}
    found: list[DeploymentResponse] = []
    while len(page := client.read_deployments(flow_filter=of_these, limit=PAGE, offset=len(found))) == PAGE:
        found += page
    return {f"{names[each.flow_id]}/{each.name}": each for each in [*found, *page]}


def with_old_name(known: Collection[str], config: Settings, pool: str, taken: Collection[str]) -> Iterator[Deployment]:
    """The old deployments FLOW/default that the server still has, for callers that use them."""
    for flow in FLOWS:
        if f"{flow}/{OLD}" in known and f"{flow}/{OLD}" not in taken:
            made = of_flow(flow, OLD, config, pool)
            note = f"The old name of {path_of(flow)}. Delete it when nothing calls it any more."
            yield replace(made, fields={**made.fields, "description": note})


def of_line(
    name: str, job: LineSpec, given: Mapping[str, Any], schedule: ScheduleSpec | None, config: Settings, pool: str
) -> Deployment:
    """A deployment from the job file of a line."""
    fields = fields_of(name, config, place_of(config, pool, name, job), given)
    made = scheduled(schedule, job.line, "schedule" if schedule is job.schedule else "drift") if schedule else None
    return Deployment(name, job.line, fields, 1, made, of_file=True)


def fields_of(name: str, config: Settings, place: Place, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a deployment. Its entrypoint is a module of the worker's environment, so nothing is downloaded."""
    flow = load(name)
    variables: dict[str, Any] = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT)}}
    return {
        "entrypoint": entrypoint(name),
        "description": flow.description,
        "parameters": dict(parameters),
        "parameter_openapi_schema": form_of(flow, parameters.keys()),
        "enforce_parameter_schema": True,
        "tags": sorted({config.namespace, flow.name}),
        "work_pool_name": place.pool,
        "work_queue_name": place.queue,
        "job_variables": variables | ({"image": config.image} if config.image else {}),
        "pull_steps": [],
    }


def parameters_of(job: LineSpec) -> dict[str, Any]:
    """A line's job as parameters of `retrain`, without defaults."""
    return differing(parameters("retrain", job.run(), fresh=False), {})


def fresh_rows(job: LineSpec, spec: StalenessSpec) -> dict[str, Any]:
    """A line's job as parameters of `drift`."""
    return differing({"line": job.line, "data": job.datasets[0], "max_loss_ratio": spec.max_loss_ratio}, {})


def reconcile(
    client: SyncPrefectClient, wanted: Deployment, known: "DeploymentResponse | None", *, dry_run: bool
) -> tuple[str, bool, list[str]]:
    """Create one deployment, or update the `known` one."""
    what = f"deployment {wanted.path}"
    if known is None:
        if not dry_run:
            create(client, wanted)
        return what, True, [f"schedule: {said(wanted.schedule)}"] if wanted.schedule else []
    differing = {name: value for name, value in wanted.fields.items() if getattr(known, name) != value}
    details = [text for name, value in differing.items() for text in difference(name, getattr(known, name), value)]
    if not dry_run and differing:
        client.update_deployment(known.id, DeploymentUpdate(**differing))
    if wanted.of_file:
        details += undo_parameters(client, known, dry_run=dry_run)
    return what, False, [*details, *reconcile_schedule(client, known, wanted.schedule, dry_run=dry_run)]


def remove(client: SyncPrefectClient, path: str, dry_run: bool) -> Iterator[tuple[str, bool, list[str]]]:
    """Delete a deployment that the job file no longer asks for, if it exists."""
    try:
        known = client.read_deployment_by_name(path)
    except ObjectNotFound:
        return
    if not dry_run:
        client.delete_deployment(known.id)
    yield f"deployment {path}", False, ["removed: the job file does not ask for it"]


def undeploy_line(config: Settings, line: str) -> list[Change]:
    """Delete the deployments of a line, with their schedules, and its automation. Raises what `deploy` raises."""
    with get_client(sync_client=True) as client, refusals("delete them in Prefect"):
        gone = [each for flow in OF_A_JOB_FILE for each in remove(client, f"{flow}/{line}", False)]
        gone += remove_automation(client, config, line)
    return [Change(what=what, new=new, details=details) for what, new, details in gone]


def is_paused(line: str) -> bool:
    """Whether the deployment of a line has schedules, and all of them are paused."""
    with get_client(sync_client=True) as client, refusals("look at it in Prefect"), suppress(ObjectNotFound):
        schedules = client.read_deployment_by_name(f"retrain/{line}").schedules
        return bool(schedules) and not any(schedule.active for schedule in schedules)
    return False


def pause_line(line: str) -> None:
    """Pause every schedule of a line."""
    with get_client(sync_client=True) as client, refusals("pause it in Prefect"):
        known = client.read_deployment_by_name(f"retrain/{line}")
        for schedule in known.schedules:
            client.update_deployment_schedule(known.id, schedule.id, active=False)


def forget(client: SyncPrefectClient, line: str, dry_run: bool) -> Iterator[tuple[str, bool, list[str]]]:
    """Remove what starts runs of a line whose job file is gone; `retrain/LINE` and its runs stay."""
    yield from remove(client, f"drift/{line}", dry_run)
    with suppress(ObjectNotFound):
        known = client.read_deployment_by_name(f"retrain/{line}")
        if details := list(reconcile_schedule(client, known, None, dry_run=dry_run)):
            yield f"deployment retrain/{line}", False, details


def create(client: SyncPrefectClient, wanted: Deployment) -> None:
    client.create_deployment(
        flow_id=client.create_flow_from_name(wanted.flow),
        name=wanted.name,
        schedules=[wanted.schedule] if wanted.schedule else [],
        concurrency_limit=wanted.limit,
        **wanted.fields,
    )


def difference(path: str, known: Any, wanted: Any) -> Iterator[str]:
    """The differences between two values, field by field; for the schema of a form only that it differs."""
    if path == "parameter_openapi_schema":
        yield "form: changed"
    elif isinstance(known, dict) and isinstance(wanted, dict):
        for name in sorted({*known, *wanted}):
            if known.get(name) != wanted.get(name):
                yield from difference(f"{path}.{name}", known.get(name), wanted.get(name))
    else:
        yield f"{path}: {known} → {wanted}"
