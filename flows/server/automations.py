"""What the Prefect server does by itself: mark runs whose process has died, and retrain a line that has new data."""

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
    """A line as the resource of an event."""
    return f"{namespace}.line.{line}"


def automations(
    client: SyncPrefectClient, config: Settings, lines: Collection[str], *, silence: int, dry_run: bool
) -> Iterator[Changed]:
    """Our automations, made or brought up to date; one that was switched off in the UI stays so.

    Each line with a file has one. It is removed where its file was in a place that we look in, and is gone.
    """
    yield put(client, dead_runs(config.namespace, silence), dry_run=dry_run)
    for line in lines:
        name, deployment = title(config.namespace, line), deployment_of(client, line)
        if deployment is None:  # in a dry run
            yield f"automation {name}", True, []
        else:
            wanted = new_data(config.namespace, line, deployment, mark(lines_file.place(line, config)))
            yield put(client, wanted, dry_run=dry_run)
    for _, known in left_over(client, config, lines):
        if not dry_run:
            client.delete_automation(known.id)
        yield f"automation {known.name}", False, ["removed: the line's file is gone"]


def announce(namespace: str, line: str, payload: dict[str, Any]) -> None:
    """Tell the Prefect server that a line has new data. Raises DeploymentRefused, PrefectUnreachable."""
    event = Event(
        event=new_data_event(namespace),
        resource=Resource({"prefect.resource.id": line_resource(namespace, line)}),
        payload=payload,
    )
    with refusals("see /events of its API"), get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])


def put(client: SyncPrefectClient, wanted: AutomationCore, *, dry_run: bool) -> Changed:
    """Make one automation what it shall be."""
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
    """Lines, and their automations, whose file was where we look for files, and is gone."""
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
    """What says of an automation which file made it: another machine or directory has other lines."""
    return f"file-{hashlib.sha256(f'{platform.node()}:{file}'.encode()).hexdigest()[:12]}"


def new_data(namespace: str, line: str, deployment: UUID, file: str) -> AutomationCore:
    """An event that says of a line that there is new data starts its retrain, with the parameters of its file."""
    return AutomationCore(
        name=title(namespace, line),
        description=f"Made by backprop deploy, of the line's file: {new_data_event(namespace)} starts its retrain.",
        tags=[namespace, NEW_DATA, file],
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={new_data_event(namespace)},
            match=ResourceSpecification({"prefect.resource.id": [line_resource(namespace, line)]}),
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment)],
    )


def dead_runs(namespace: str, silence: int) -> AutomationCore:
    """A run of ours that was alive and then neither ends nor gives a sign of life for `silence` seconds has crashed."""
    return AutomationCore(
        name=f"{namespace}: runs whose process has died",
        description="Made by backprop deploy. Run it again: what was finished is taken from the cache.",
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
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"no sign of life for {silence} s: its process has died"
            )
        ],
    )
