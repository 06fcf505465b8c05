"""Who makes a version the champion by hand, and why."""

import getpass
from datetime import UTC, datetime

from prefect.context import FlowRunContext

from backprop_core.errors import ConfigInvalid
from backprop_core.schema.gate_report import Act


def act(reason: str, *, force: bool) -> Act:
    """An act of now. Raises ConfigInvalid for a force without a reason."""
    if force and not reason.strip():
        raise ConfigInvalid("--force needs a reason, which is kept in the record", hint="add --reason TEXT")
    return Act(by=author(), at=datetime.now(UTC), reason=reason.strip(), forced=force)


def author() -> str:
    """Who started this: as Prefect knows it for a flow run of a deployment, else the user of this machine."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run and run.deployment_id:
        creator = run.created_by.display_value if run.created_by else None
        return creator or f"Prefect's flow run {run.name}"
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run as a user without a name
        return "a user without a name"
