"""Schedules of a line's deployments: the job file decides them, unless a person has changed one in Prefect's UI.

A new or changed schedule of the file is written, a removed one is deleted. The slug of such a schedule holds a digest
of the file's schedule. So one that was paused or moved in the UI since then stays, and so does every schedule without
such a slug. Parameters of a schedule are removed: the file says what to run, a schedule when.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from backprop_core.errors import ConfigInvalid
from backprop_core.schema.specs import ScheduleSpec
from flows.server.deployment_names import OF_FILE, slug_of

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse


def scheduled(schedule: ScheduleSpec, line: str, part: str) -> DeploymentScheduleCreate:
    """The schedule in this part of a job file, with a slug that holds its digest. Raises ConfigInvalid."""
    try:
        cron = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigInvalid(
            f"invalid schedule of line {line}: {part}.{first['loc'][0]}: {first['msg']}",
            hint='write cron: "0 3 * * *" and a time zone like Europe/Berlin',
        ) from error
    return DeploymentScheduleCreate(schedule=cron, slug=slug_of(schedule))


def reconcile_schedule(
    client: SyncPrefectClient, known: "DeploymentResponse", wanted: DeploymentScheduleCreate | None, *, dry_run: bool
) -> Iterator[str]:
    """Write the schedule of the job file if it has changed; a paused one stays paused."""
    ours = [schedule for schedule in known.schedules if OF_FILE.fullmatch(schedule.slug or "")]
    if [schedule.slug for schedule in ours] == ([wanted.slug] if wanted else []):
        return
    if wanted and len(ours) == 1:
        yield f"schedule: {said(ours[0])} → {said(wanted)}"
        if not dry_run:
            client.update_deployment_schedule(known.id, ours[0].id, schedule=wanted.schedule, slug=wanted.slug)
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


def undo_parameters(client: SyncPrefectClient, known: "DeploymentResponse", *, dry_run: bool) -> Iterator[str]:
    """Remove the parameters of schedules; their times stay, and whether they are paused."""
    for schedule in known.schedules:
        if schedule.parameters:
            names = ", ".join(sorted(schedule.parameters))
            yield f"schedule: {said(schedule)}: {names} removed, the job file says what to run"
            if not dry_run:
                client.update_deployment_schedule(known.id, schedule.id, parameters={})


def said(schedule: DeploymentScheduleCreate | DeploymentSchedule) -> str:
    """A schedule as text."""
    return str(schedule.schedule.model_dump(exclude_defaults=True, exclude={"day_or"}, mode="json"))
