"""What the Prefect server does by itself: mark runs whose process has died."""

from collections.abc import Iterator
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

ALIVE = "prefect.flow-run.heartbeat"
NO_MORE = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "Scheduled", "AwaitingRetry")


def automations(
    client: SyncPrefectClient, namespace: str, *, silence: int, dry_run: bool
) -> Iterator[tuple[str, bool, list[str]]]:
    """Our automations, made or brought up to date; one that was switched off in the UI stays so."""
    for wanted in [dead_runs(namespace, silence)]:
        what = f"automation {wanted.name}"
        known = client.read_automations_by_name(wanted.name)
        if not known:
            if not dry_run:
                client.create_automation(wanted)
            yield what, True, []
        elif (known[0].trigger, known[0].actions) != (wanted.trigger, wanted.actions):
            if not dry_run:
                client.update_automation(known[0].id, wanted.model_copy(update={"enabled": known[0].enabled}))
            yield what, False, ["changed"]
        else:
            yield what, False, []


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
