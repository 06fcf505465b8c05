"""Records who promotes a version manually, and why."""

from datetime import UTC, datetime

from prefect.context import FlowRunContext

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.local_user import local_user
from backprop_core.schema.flows import BY
from backprop_core.schema.gate_report import Act


def act(reason: str, *, force: bool) -> Act:
    """A manual promotion at the current time. Raises ConfigInvalid for --force without a reason."""
    if force and not reason.strip():
        raise ConfigInvalid("--force needs a reason for the record", hint="add --reason TEXT")
    return Act(by=author(), at=datetime.now(UTC), reason=reason.strip(), forced=force)


def author() -> str:
    """Who started this: the page's user or the creator of a deployed flow run in Prefect, else the local user."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run and run.deployment_id:
        if named := [tag.removeprefix(BY) for tag in run.tags if tag.startswith(BY)]:
            return named[0]
        creator = run.created_by.display_value if run.created_by else None
        return creator or f"Prefect's flow run {run.name}"
    return local_user()
