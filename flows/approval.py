"""A person's word before a release: in the Prefect UI, or at the terminal of whoever started the run.

The question is a flow run of its own inside the retrain. A retrain that paused itself would give its deployment's slot
away, and Prefect ends a run four minutes after it has lost that. So the retrain keeps slot and line, without a worker.
"""

import logging
import time
from contextlib import suppress
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.input import RunInput, keyset_from_paused_state
from prefect.input.actions import read_flow_run_input
from prefect.states import Cancelled, Paused
from prefect.utilities.urls import url_for
from pydantic import Field

from backprop_core.errors import ApprovalUnattended, Interrupted
from backprop_core.specs import ApprovalSpec
from backprop_core.verdicts import Decision
from flows import terminal
from flows.environment import is_temporary
from tasks import artifacts, worker
from tasks.line import last_question, note_question
from tasks.progress import Progress, report
from tasks.run import Run, current

log = logging.getLogger(__name__)
POLL = 2.0  # seconds between two looks for the answer
LATE = {"answer": "reject", "reason": "nobody answered in time"}
MARGIN = 3600  # seconds that Prefect would wait longer than we do: what it ends itself, it calls a failure


class Approval(RunInput):
    """May this version go live?"""

    answer: Literal["approve", "reject"] = Field(
        description="approve: it is released now. reject: the line stays as it is."
    )
    reason: str = Field("", max_length=1000, description="Why; kept in the record.")

    def decision(self, by: Literal["person", "time"]) -> Decision:
        return Decision(approved=self.answer == "approve", reason=self.reason, by=by)


def check(spec: ApprovalSpec) -> None:
    """Raise ApprovalUnattended if somebody shall be asked and nobody can be."""
    if spec.ask and is_temporary() and not terminal.is_attended():
        raise ApprovalUnattended(
            "nobody can be asked: this is no terminal, and no Prefect server is named",
            hint="run it in a terminal, name the server of `backprop serve` in PREFECT_API_URL, "
            "or --set approval.ask=false",
        )


def approved(run: Run) -> bool:
    """Whether what a run made may go live. It is asked once, if at all: a run that goes on keeps its answer."""
    spec = run.spec.approval
    if not spec.ask:
        return True
    return run.decided(run.decision() or answer(run, spec.hours))


def answer(run: Run, hours: float) -> Decision:
    """Ask, without a worker: the GPU is for others meanwhile."""
    worker.stop()
    if is_temporary():
        return terminal.ask(run.result("running", None))
    report(Progress(stage="approval", done=0, total=0))
    return approval(run.spec.line, run.run_id, hours)


@flow(name="approval", flow_run_name="approval-{line}", persist_result=False)
def approval(line: str, run_id: str, hours: float) -> Decision:
    """Wait for a person who says in a form whether a version goes live. Raises Interrupted if that is cancelled.

    Args:
        line: The line that the version is of.
        run_id: The run that made it.
        hours: How long to wait; then it is rejected.
    """
    context = FlowRunContext.get()
    assert context and context.flow_run
    run, own = current(), context.flow_run.id
    made = run.result("running", None)
    form = Approval.with_initial_data(description=artifacts.ask(made, namespace=run.settings.namespace))
    paused: State[None] = Paused(timeout_seconds=int(hours * 3600) + MARGIN, pause_key=run_id)
    keys: Any = keyset_from_paused_state(paused)
    paused.state_details.run_input_keyset = keys
    with get_client(sync_client=True) as client:
        if late := answered_late(client, line, keys["response"]):
            return late
        form.save(keys)
        note_question(line, str(own))
        client.set_flow_run_state(own, paused)
        log.warning("run %s of line %s waits %g h for approval: %s", run_id, line, hours, url_for("flow-run", own))
        if run.audience:
            run.audience.waits(made, own)
        in_time = wait(client, own, time.monotonic() + hours * 3600)
    said: Any = read_flow_run_input(keys["response"])  # typed as if it could be a coroutine here
    return Approval(**said).decision(by="person" if in_time else "time")


def answered_late(client: SyncPrefectClient, line: str, key: str) -> Decision | None:
    """The answer to this run's last question, if it came when the run's process was dead already.

    A question of the line that is still open is withdrawn: whoever asked it is dead, or this run would not have the
    line.
    """
    if (earlier := last_question(line)) is None:
        return None
    flow_run = UUID(earlier)
    with suppress(ObjectNotFound):
        state = client.read_flow_run(flow_run).state
        if state is None or not state.is_final():
            client.set_flow_run_state(flow_run, Cancelled(message="the run that asked has ended"), force=True)
        said: Any = read_flow_run_input(key, flow_run_id=flow_run)
        return Approval(**said).decision(by="person") if said else None
    return None


def wait(client: SyncPrefectClient, flow_run: UUID, deadline: float) -> bool:
    """Until the flow run goes on; whether somebody let it. After the deadline it is rejected here."""
    in_time = True
    while (state := state_of(client, flow_run)) is None or state.is_paused():
        if time.monotonic() > deadline:
            in_time = client.resume_flow_run(flow_run, run_input=LATE).status != SetStateStatus.ACCEPT
        else:
            time.sleep(POLL)
    if not state.is_running():
        raise Interrupted("the question was cancelled", hint="run it again: nothing is done twice, and it asks again")
    return in_time


def state_of(client: SyncPrefectClient, flow_run: UUID) -> State | None:
    """The flow run's state; None while the server does not answer."""
    with suppress(httpx.TransportError):
        return client.read_flow_run(flow_run).state
    return None
