"""`--submit`: a flow run of a deployment on a Prefect server, instead of a run in this process."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backprop_core.errors import DeploymentMissing, PathForbidden, PrefectUnreachable
from backprop_core.runtime.settings import settings
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.records import Record
from backprop_core.schema.specs import RunSpec
from flows.cli import lines_file
from flows.cli.prefect_environment import connected, refusals
from flows.parameters import differing, parameters
from flows.server.deployment_names import OLD, path_of
from flows.server.serve import Addresses, running
from tasks.runs.allowed_paths import HINT, forbidden

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

NO_SERVER = "set PREFECT_API_URL, or start a server: backprop serve"


class Submitted(Record):
    """A submitted flow run."""

    flow_run_id: str
    url: str
    deployment: str


def submit(flow: str, spec: RunSpec, *, fresh: bool, **more: Any) -> Submitted:
    """Create a run of the flow's deployment with this spec. Relative paths start at the working directory.

    The server is PREFECT_API_URL, or else that of this home's `serve`. Raises PrefectUnreachable, DeploymentMissing,
    DeploymentRefused, and PathForbidden for paths that the worker of `serve` may not read.
    """
    spec = lines_file.anchored(spec, Path.cwd())
    named, here = os.environ.get("PREFECT_API_URL"), running(settings())
    if here and named in (None, here.api):
        refuse_paths(spec, here)
        named = here.api
    return ask(named, flow, spec, fresh=fresh, **more)


def refuse_paths(spec: RunSpec, here: Addresses) -> None:
    """Raise PathForbidden for paths that the worker of `serve` refuses."""
    if outside := forbidden(spec, [Path(root) for root in here.allowed]):
        raise PathForbidden(f"{outside[0]} is outside of the allowed directories of {here.page}", hint=HINT)


def ask(api: str | None, flow: str, spec: RunSpec, *, fresh: bool, **more: Any) -> Submitted:
    """Create the run on the server at this address; None: that of Prefect's own settings."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
    from prefect.utilities.urls import url_for

    api = api or get_current_settings().api.url  # from a profile or a file that only Prefect reads
    if not api:
        raise PrefectUnreachable("PREFECT_API_URL is not set, and no `serve` runs in this home", hint=NO_SERVER)
    with temporary_settings({PREFECT_API_URL: api}), connected():
        with get_client(sync_client=True) as client, refusals("update its deployments: backprop deploy"):
            deployment = find(client, flow, spec.line)
            said = differing(parameters(flow, spec, fresh=fresh) | more, deployment.parameters)
            run = client.create_flow_run_from_deployment(deployment.id, parameters=said)
        page = url_for("flow-run", run.id) or ""
    return Submitted(flow_run_id=str(run.id), url=page, deployment=f"{flow}/{deployment.name}")


def find(client: "SyncPrefectClient", flow: str, line: str) -> "DeploymentResponse":
    """The deployment of the line's job file, or else of the flow. Raises DeploymentMissing."""
    from prefect.exceptions import ObjectNotFound

    for name in [*([line] if FLOWS[flow].per_line else []), FLOWS[flow].deployment, OLD]:
        try:
            return client.read_deployment_by_name(f"{flow}/{name}")
        except ObjectNotFound:
            continue
    raise DeploymentMissing(f"the Prefect server has no deployment {path_of(flow)}", hint="create it: backprop deploy")
