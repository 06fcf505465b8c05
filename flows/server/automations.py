"""Automations of the Prefect server: mark runs whose process has died, and retrain a line that has new data."""

import hashlib
import platform
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.filters import AutomationFilter, AutomationFilterTags
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import Event, Resource, ResourceSpecification
from prefect.exceptions import ObjectNotFound

from backprop_core.runtime.settings import Settings
from flows.cli import lines_file
from flows.cli.prefect_environment import refusals
from flows.run_states import STATES

NEW_DATA = "new-data"
ALIVE = "prefect.flow-run.heartbeat"
NO_MORE = ("Failed", "Cancelled", "Crashed", "Paused", "Suspended", "Scheduled", "AwaitingRetry", *STATES.values())
Changed = tuple[str, bool, list[str]]  # what, whether it is new, how it changes


def new_data_event(namespace: str) -> str:
    """The name of the event that starts a retrain."""
    return f"{namespace}.{NEW_DATA}"


def line_resource(namespace: str, line: str) -> str:
    """The resource of a line's events."""
    return f"{namespace}.line.{line}"


def automations(
    client: SyncPrefectClient, config: Settings, lines: Collection[str], *, silence: int, dry_run: bool
) -> Iterator[Changed]:
    """Create or update the automations; one that was switched off in the UI stays off.

    Each line with a job file has one. It is removed if its file was in one of our directories and is gone.
    """
    yield put(client, dead_runs(config.namespace, silence), dry_run=dry_run)
    for line in lines:
        yield automation(client, config, line, dry_run=dry_run)
    for _, known in left_over(client, config, lines):
        if not dry_run:
            client.delete_automation(known.id)
        yield f"automation {known.name}", False, ["removed: the job file is gone"]


def automation(client: SyncPrefectClient, config: Settings, line: str, *, dry_run: bool) -> Changed:
    """Create or update the automation of one line."""
    name, deployment = title(config.namespace, line), deployment_of(client, line)
    if deployment is None:  # in a dry run
        return f"automation {name}", True, []
    wanted = new_data(config.namespace, line, deployment, mark(lines_file.place(line, config)))
    return put(client, wanted, dry_run=dry_run)


def remove_automation(client: SyncPrefectClient, config: Settings, line: str) -> Iterator[Changed]:
    """Delete the automation of a line, if there is one."""
    for known in client.read_automations_by_name(title(config.namespace, line)):
        client.delete_automation(known.id)
        yield f"automation {known.name}", False, ["removed: the line is deleted"]


def announce(namespace: str, line: str, payload: dict[str, Any]) -> None:
    """Send the event that a line has new data. Raises DeploymentRefused, PrefectUnreachable."""
    event = Event(
        event=new_data_event(namespace),
        resource=Resource({"prefect.resource.id": line_resource(namespace, line)}),
        payload=payload,
    )
    with refusals("see /events of its API"), get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])


def put(client: SyncPrefectClient, wanted: AutomationCore, *, dry_run: bool) -> Changed:
    """Create or update one automation."""
    what = f"automation {wanted.name}"
    known = client.read_automations_by_name(wanted.name)
    if not known:
        if not dry_run:
            client.create_automation(wanted)
        return what, True, []
    if (known[0].trigger, known[0].actions, known[0].tags) == (wanted.trigger, wanted.actions, wanted.tags):
        return what, False, []
    if not dry_run:
        client.update_automation(known[0].id, wanted.model_copy(update={"enabled": known[0].enabled}))
    return what, False, ["changed"]


def left_over(client: SyncPrefectClient, config: Settings, lines: Collection[str]) -> Iterator[tuple[str, Automation]]:
    """Lines whose job file is gone from one of our directories, with their automations."""
    ours = AutomationFilter(tags=AutomationFilterTags(all_=[config.namespace, NEW_DATA]))
    for known in client.read_automations(automations=ours):
        line = known.name.removeprefix(title(config.namespace, ""))
        if line not in lines and {mark(place) for place in lines_file.places(line, config)} & set(known.tags):
            yield line, known


def deployment_of(client: SyncPrefectClient, line: str) -> UUID | None:
    try:
        return client.read_deployment_by_name(f"retrain/{line}").id
    except ObjectNotFound:
        return None


def title(namespace: str, line: str) -> str:
    return f"{namespace}: new data of line {line}"


def mark(file: Path) -> str:
    """A tag for the job file of an automation, since other machines and directories have other lines."""
    return f"file-{hashlib.sha256(f'{platform.node()}:{file}'.encode()).hexdigest()[:12]}"


def new_data(namespace: str, line: str, deployment: UUID, file: str) -> AutomationCore:
    """The event that a line has new data starts its retrain, with the parameters of its job file."""
    return AutomationCore(
        name=title(namespace, line),
        description=f"Made by backprop deploy from the job file: {new_data_event(namespace)} starts a retrain.",
        tags=[namespace, NEW_DATA, file],
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={new_data_event(namespace)},
            match=ResourceSpecification({"prefect.resource.id": [line_resource(namespace, line)]}),
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment)],
    )


def dead_runs(namespace: str, silence: int) -> AutomationCore:
    """A run that has sent heartbeats and then none for `silence` seconds, without ending, has crashed."""
    return AutomationCore(
        name=f"{namespace}: runs whose process has died",
        description="Made by backprop deploy. Run it again: finished stages are cached.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={ALIVE},
            expect={ALIVE, *(f"prefect.flow-run.{state}" for state in NO_MORE)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.id": [f"prefect.tag.{namespace}"], "prefect.resource.role": ["tag"]}
            ),
            for_each={"prefect.resource.id"},
            within=timedelta(seconds=silence),
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {silence} s: its process has died")
        ],
    )
