"""Our deployments, schedules and automations on a Prefect server: what shall be, how it differs, and making it so.

The file of a line decides its schedule: written when it is new or changed there, removed when it is gone there.
The slug of a schedule that came from a file says what the file said, so one that was paused or moved in the UI since
then is left alone, and so is every schedule without such a slug. Parameters of a schedule are undone: the file says
what is run, a schedule when.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.records import Record
from backprop_core.schema.specs import LineSpec, ScheduleSpec, StalenessSpec
from flows.cli.prefect_environment import refusals
from flows.parameters import differing, parameters
from flows.registry import entrypoint, load
from flows.server.automations import automations, left_over
from flows.server.deployment_forms import form_of
from flows.server.deployment_names import OLD, path_of

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

FROM_FILE = "file-"  # how the slug of a schedule begins that came from a line's file
OF_FILE = re.compile(FROM_FILE + "[0-9a-f]{12}")  # the whole of it; a person may call a schedule file-import
HEARTBEAT = 30  # seconds between the signs of life of a flow run, Prefect's shortest


class Change(Record):
    """What is done to one thing on the server; `details` is empty where it is as it shall be."""

    what: str
    new: bool
    details: list[str]


@dataclass(frozen=True)
class Deployment:
    """One deployment as it shall be. `fields` are those that Prefect keeps of it, its schedules aside."""

    flow: str
    name: str
    fields: Mapping[str, Any]
    limit: int | None
    schedule: DeploymentScheduleCreate | None = None
    of_file: bool = False  # whether it is of one line, by the line's file

    @property
    def path(self) -> str:
        return f"{self.flow}/{self.name}"


def deploy(config: Settings, jobs: Mapping[str, LineSpec], *, pool: str, dry_run: bool) -> list[Change]:
    """Make the server's deployments, schedules and automations what they shall be; what was, or would be, changed.

    Raises ConfigInvalid for a schedule that Prefect cannot read, DeploymentRefused for what the server refuses.
    """
    every = list(deployments(config, jobs, pool))
    with get_client(sync_client=True) as client, refusals("check the work pool's variables"):
        every += with_old_name(client, config, pool, [wanted.path for wanted in every])
        changes = [
            work_pool(client, pool, dry_run=dry_run),
            *(reconcile(client, wanted, dry_run=dry_run) for wanted in every),
            *(gone for line, job in jobs.items() if not job.drift for gone in remove(client, f"drift/{line}", dry_run)),
            *(gone for line, _ in left_over(client, config, jobs) for gone in forget(client, line, dry_run)),
            *automations(client, config, jobs.keys(), silence=3 * HEARTBEAT, dry_run=dry_run),
        ]
    return [Change(what=what, new=new, details=details) for what, new, details in changes]


def deployments(config: Settings, jobs: Mapping[str, LineSpec], pool: str) -> Iterator[Deployment]:
    """One of every flow, and of every line with a file `retrain/NAME` and, if it asks for it, `drift/NAME`."""
    for name in FLOWS:
        yield of_flow(name, FLOWS[name].deployment, config, pool)
    for job in jobs.values():
        yield of_line("retrain", job, parameters_of(job), job.schedule, config, pool)
        if job.drift:
            yield of_line("drift", job, fresh_rows(job, job.drift), job.drift, config, pool)


def of_flow(flow: str, name: str, config: Settings, pool: str) -> Deployment:
    """A flow's own deployment, whose runs say all that they need."""
    return Deployment(flow, name, fields_of(flow, config, pool, {}), 1 if FLOWS[flow].alone else None)


def with_old_name(
    client: SyncPrefectClient, config: Settings, pool: str, taken: Collection[str]
) -> Iterator[Deployment]:
    """The deployments FLOW/default that the server has from before, for callers that still use them."""
    for flow in FLOWS:
        if f"{flow}/{OLD}" in taken:
            continue
        with suppress(ObjectNotFound):
            client.read_deployment_by_name(f"{flow}/{OLD}")
            made = of_flow(flow, OLD, config, pool)
            note = f"The old name of {path_of(flow)}. Delete it once nothing calls it."
            yield replace(made, fields={**made.fields, "description": note})


def of_line(
    name: str, job: LineSpec, given: Mapping[str, Any], schedule: ScheduleSpec | None, config: Settings, pool: str
) -> Deployment:
    """One deployment of a line's file."""
    fields = fields_of(name, config, pool, given)
    return Deployment(name, job.line, fields, 1, scheduled(schedule, job.line) if schedule else None, of_file=True)


def fields_of(name: str, config: Settings, pool: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What Prefect keeps of a deployment: a module of the worker's environment, so that nothing is fetched."""
    flow = load(name)
    variables: dict[str, Any] = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT)}}
    return {
        "entrypoint": entrypoint(name),
        "description": flow.description,
        "parameters": dict(parameters),
        "parameter_openapi_schema": form_of(flow, parameters.keys()),
        "enforce_parameter_schema": True,
        "tags": sorted({config.namespace, flow.name}),
        "work_pool_name": pool,
        "work_queue_name": config.queue,
        "job_variables": variables | ({"image": config.image} if config.image else {}),
        "pull_steps": [],
    }


def parameters_of(job: LineSpec) -> dict[str, Any]:
    """A line's job as parameters of `retrain`; what is at its default is left to the flow."""
    return differing(parameters("retrain", job.run(), fresh=False), {})


def fresh_rows(job: LineSpec, spec: StalenessSpec) -> dict[str, Any]:
    """A line's job as parameters of `drift`."""
    return differing({"line": job.line, "data": job.datasets[0], "max_loss_ratio": spec.max_loss_ratio}, {})


def scheduled(schedule: ScheduleSpec, line: str) -> DeploymentScheduleCreate:
    """The schedule of a line's file, under a slug that says what it is. Raises ConfigInvalid."""
    digest = hashlib.sha256(f"{schedule.cron} {schedule.timezone}".encode()).hexdigest()
    try:
        cron = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    except ValidationError as error:
        raise ConfigInvalid(
            f"the schedule of line {line} is not possible: {error.errors()[0]['msg']}",
            hint='write cron: "0 3 * * *" and a time zone like Europe/Berlin',
        ) from error
    return DeploymentScheduleCreate(schedule=cron, slug=FROM_FILE + digest[:12])


def work_pool(client: SyncPrefectClient, name: str, *, dry_run: bool) -> tuple[str, bool, list[str]]:
    """A process pool of this name, unless there is a pool already."""
    what = f"work pool {name}"
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        if not dry_run:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        return what, True, ["type: process"]
    return what, False, []


def reconcile(client: SyncPrefectClient, wanted: Deployment, *, dry_run: bool) -> tuple[str, bool, list[str]]:
    """Make one deployment what it shall be."""
    what = f"deployment {wanted.path}"
    try:
        known = client.read_deployment_by_name(wanted.path)
    except ObjectNotFound:
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
    """Delete a deployment that a line's file no longer asks for, if there is one."""
    try:
        known = client.read_deployment_by_name(path)
    except ObjectNotFound:
        return
    if not dry_run:
        client.delete_deployment(known.id)
    yield f"deployment {path}", False, ["removed: the line's file does not ask for it"]


def forget(client: SyncPrefectClient, line: str, dry_run: bool) -> Iterator[tuple[str, bool, list[str]]]:
    """Remove what starts runs of a line whose file is gone; `retrain/LINE` itself, and its runs, stay."""
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


def undo_parameters(client: SyncPrefectClient, known: "DeploymentResponse", *, dry_run: bool) -> Iterator[str]:
    """Take away what schedules say of a line's job; their times stay, and whether they are paused."""
    for schedule in known.schedules:
        if schedule.parameters:
            names = ", ".join(sorted(schedule.parameters))
            yield f"schedule: {said(schedule)}: {names} removed, the line's file says what is run"
            if not dry_run:
                client.update_deployment_schedule(known.id, schedule.id, parameters={})


def reconcile_schedule(
    client: SyncPrefectClient, known: "DeploymentResponse", wanted: DeploymentScheduleCreate | None, *, dry_run: bool
) -> Iterator[str]:
    """Write the file's schedule if the file says another than before; paused stays paused."""
    ours = [schedule for schedule in known.schedules if OF_FILE.fullmatch(schedule.slug or "")]
    if [schedule.slug for schedule in ours] == ([wanted.slug] if wanted else []):
        return
    for schedule in ours:
        yield f"schedule: {said(schedule)} removed"
        if not dry_run:
            client.delete_deployment_schedule(known.id, schedule.id)
    if wanted:
        active = all(schedule.active for schedule in ours)
        yield f"schedule: {said(wanted)}{'' if active else ' (paused)'}"
        if not dry_run:
            client.create_deployment_schedules(known.id, [wanted.model_copy(update={"active": active})])


def said(schedule: DeploymentScheduleCreate | DeploymentSchedule) -> str:
    """A schedule in a few words."""
    return str(schedule.schedule.model_dump(exclude_defaults=True, exclude={"day_or"}, mode="json"))


def difference(path: str, known: Any, wanted: Any) -> Iterator[str]:
    """What differs between two values, field by field; of a form's schema only that it does."""
    if path == "parameter_openapi_schema":
        yield "form: changed"
    elif isinstance(known, dict) and isinstance(wanted, dict):
        for name in sorted({*known, *wanted}):
            if known.get(name) != wanted.get(name):
                yield from difference(f"{path}.{name}", known.get(name), wanted.get(name))
    else:
        yield f"{path}: {known} → {wanted}"
