"""Marks runs of deployments whose process is gone, within a minute, so that they free their slot.

A run that waits for approval is retried instead, and takes the answer from its page.
"""

import logging
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled, Crashed

from backprop_core.runtime.settings import Settings
from tasks.runs.approval_questions import unattended
from tasks.runs.retried_runs import has_died

log = logging.getLogger(__name__)
YOUNG = 30.0  # seconds that a run may be pending before a worker has claimed it
PAGE = 200  # flow runs a request, the most that Prefect gives
MOST = 100  # retries of a run that waits for approval
LABEL = "prefect.worker.name"
GOING_ON = ["PENDING", "RUNNING", "CANCELLING"]
ENDED = (StateType.CRASHED, StateType.FAILED)
OPEN = (StateType.PAUSED, StateType.RUNNING)  # a question that waits or is answered


def worker_name(config: Settings) -> str:
    """A new name for the worker of a home. Earlier workers are dead, since a home has one at a time."""
    return f"{prefix(config)}{uuid.uuid4().hex[:8]}"


def prefix(config: Settings) -> str:
    """The prefix of the names of a home's workers, the same on every machine."""
    place = config.layout.serve_id
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return f"serve-{place.read_text(encoding='utf-8')}-"


def give_up(config: Settings, worker: str, *, young: float = YOUNG) -> None:
    """Mark runs whose process is gone, and retry those that wait for approval. `worker` is the live one."""
    with get_client(sync_client=True) as client:
        for run in going_on(client, config):
            if is_dead(run, config, worker, young):
                mark(client, run)
        for flow_run, question in unattended(config):
            with suppress(ObjectNotFound):
                try_again(client, UUID(flow_run), UUID(question))


def going_on(client: SyncPrefectClient, config: Settings) -> list[FlowRun]:
    """Our runs that hold a slot of their deployment."""
    wanted = {"state": {"type": {"any_": GOING_ON}}, "tags": {"all_": [config.namespace]}}
    condition = FlowRunFilter.model_validate(wanted)
    runs: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=condition, limit=PAGE, offset=len(runs)):
        runs += page
    return [run for run in runs if run.deployment_id]


def is_dead(run: FlowRun, config: Settings, worker: str, young: float) -> bool:
    """Whether the process of a run is known to be gone; for other runs the heartbeat decides."""
    assert run.state
    taken_by = str(run.labels.get(LABEL, ""))
    is_ours = taken_by.startswith(prefix(config))
    if run.state.type != StateType.PENDING:
        return (is_ours and taken_by != worker) or has_died(str(run.id), config)
    if datetime.now(UTC) - run.state.timestamp < timedelta(seconds=young):
        return False
    return taken_by != worker if is_ours else not taken_by and run.work_pool_name == config.pool


def mark(client: SyncPrefectClient, run: FlowRun) -> None:
    """Mark a run as crashed, so that its slot is free and it can be retried."""
    assert run.state
    log.warning("the process of flow run %s is gone", run.name)
    if run.state.type == StateType.CANCELLING:
        client.set_flow_run_state(run.id, Cancelled(message="its process has ended"), force=True)
    else:
        client.set_flow_run_state(run.id, Crashed(message="its process was killed; retry it to continue"), force=True)


def try_again(client: SyncPrefectClient, flow_run: UUID, question: UUID) -> None:
    """Schedule a run that ended while it waited for approval, before later runs."""
    run, asked = client.read_flow_run(flow_run), client.read_flow_run(question)
    ended = run.state and run.state.type in ENDED and run.run_count < MOST
    if ended and asked.state and asked.state.type in OPEN:
        log.warning("flow run %s is retried: it waits for approval", run.name)
        client.set_flow_run_state(flow_run, AwaitingRetry(scheduled_time=run.expected_start_time), force=True)
