"""Approval before a release: in the Prefect UI, or at the terminal that started the run.

The question is a separate flow run inside the retrain. No process runs it: it is paused until a person fills in its
form. So it outlives every process, and a retrain that is killed and resumed continues with the same question. A paused
retrain would lose its deployment's slot, and Prefect ends a run four minutes after that. So the retrain keeps slot and
line, but not the worker.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any, Literal, TypeVar
from uuid import UUID

import httpx
from prefect import Task, flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.input import RunInput
from prefect.input.actions import read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from prefect.states import Cancelled, Completed, Paused, Running, to_state_create
from prefect.utilities.urls import url_for
from pydantic import Field

from backprop_core.errors import ApprovalUnattended, Interrupted
from backprop_core.runtime.settings import settings
from backprop_core.schema.gate_report import Decision
from backprop_core.schema.specs import ApprovalSpec
from flows.cli import terminal_prompt
from flows.cli.prefect_environment import is_temporary
from flows.run_states import WAITING
from tasks.runs import approval_questions, prefect_artifacts, worker_process
from tasks.runs.flow_run import Run
from tasks.runs.outcome import Outcome
from tasks.runs.prefect_artifacts import flow_run_id
from tasks.runs.progress import Progress, report

log = logging.getLogger(__name__)
R = TypeVar("R")
POLL = 2.0  # seconds between two checks for the answer
LATE = {"answer": "reject", "reason": "no answer in time"}
OVER = (StateType.CANCELLED, StateType.CRASHED)  # a question that no longer takes an answer
CONFLICT = 409
MARGIN = 3600  # seconds that Prefect waits longer than we do, because it fails what times out


class Approval(RunInput):
    """May this version go live?"""

    answer: Literal["approve", "reject"] = Field(
        description="approve: release it now. reject: leave the line as it is."
    )
    reason: str = Field("", max_length=1000, description="Why; kept in the record.")
    name: str = Field("", max_length=100, description="Your name; kept in the record.")

    def decision(self, by: Literal["person", "time"]) -> Decision:
        return Decision(approved=self.answer == "approve", reason=self.reason, by=by, name=self.name)


def check(spec: ApprovalSpec) -> None:
    """Raise ApprovalUnattended if approval is required and there is no way to ask for it."""
    if spec.ask and is_temporary() and not terminal_prompt.is_attended():
        raise ApprovalUnattended(
            "approval is required, but there is no terminal or Prefect server to ask on",
            hint="run it in a terminal, set PREFECT_API_URL to the server of `backprop serve`, "
            "or --set approval.ask=false",
        )


def approved(run: Run, outcome: Outcome) -> bool:
    """Whether the result of a run may go live. The question is asked once; a resumed run keeps its answer."""
    spec = run.spec.approval
    if not spec.ask:
        return True
    if decision := outcome.decision():
        return outcome.decided(decision)
    with outcome.journal.waiting("person"):
        return outcome.decided(answer(run, outcome, spec.hours))


def answer(run: Run, outcome: Outcome, hours: float) -> Decision:
    """Ask, without a worker, so that others can use the GPU. Raises Interrupted if the question is cancelled."""
    worker_process.stop()
    if is_temporary():
        return terminal_prompt.ask(outcome.so_far("running"))
    report(Progress(stage="approval", done=0, total=0))
    with get_client(sync_client=True) as client:
        asked = question(client, run, hours)
        with said_to_wait(client):
            decision = decided(client, outcome, asked, hours)
        with suppress(httpx.HTTPError):  # the answer counts even if the page cannot show it
            name = "Approved" if decision.approved else "Rejected"
            client.set_flow_run_state(asked, Completed(name=name, message=decision.sentence), force=True)
    approval_questions.forget(run.run_id, run.store)
    return decision


@contextmanager
def said_to_wait(client: SyncPrefectClient) -> Iterator[None]:
    """Mark the retrain's flow run as waiting while the block runs; it keeps process, slot and line."""
    own = flow_run_id()
    with suppress(httpx.HTTPError):
        if own:
            client.set_flow_run_state(UUID(own), Running(name=WAITING))
    yield
    with suppress(httpx.HTTPError):
        if own:
            client.set_flow_run_state(UUID(own), Running())


@flow(name="approval", persist_result=False)
def approval(line: str, run_id: str, hours: float) -> None:
    """The form that asks whether a version of a line goes live. No process runs this flow.

    Args:
        line: The line of the version.
        run_id: The run that made it.
        hours: Hours to wait; then the version is rejected.
    """


def question(client: SyncPrefectClient, run: Run, hours: float) -> UUID:
    """The flow run that asks about a run; that of an earlier process, unless it was cancelled."""
    asked = of_older_store(client, run)
    numbers = count()
    while asked is None or (asked.state and asked.state.type in OVER):
        asked = patiently(partial(begun, client, run, hours, f"{run.run_id}-{next(numbers)}"))
    approval_questions.note(run.run_id, str(asked.id), run.store)
    return asked.id


def of_older_store(client: SyncPrefectClient, run: Run) -> FlowRun | None:
    """The question about this run in the format of older versions; obsolete questions are cancelled."""
    for name, other in approval_questions.abandoned(run.spec.line, run.store):
        with suppress(ObjectNotFound):
            found = patiently(partial(client.read_flow_run, UUID(other)))
            of = str(found.parameters.get("run_id"))
            if of == run.run_id:
                return found
            if approval_questions.is_resumable(of, run.store):
                continue
            if found.state is None or not found.state.is_final():
                client.set_flow_run_state(found.id, Cancelled(message="the run that asked has ended"), force=True)
        approval_questions.forget(name, run.store)
    return None


def begun(client: SyncPrefectClient, run: Run, hours: float, key: str) -> FlowRun:
    """The flow run with this key, created if it does not exist, as a child of the retrain's flow run."""
    parent = flow_run_id()
    task = client.create_task_run(Task(approval.fn, name="approval"), UUID(parent), dynamic_key=key) if parent else None
    wanted = FlowRunCreate(
        flow_id=client.create_flow(approval),
        name=f"approval-{run.spec.line}",
        parameters={"line": run.spec.line, "run_id": run.run_id, "hours": hours},
        tags=[settings().namespace],
        parent_task_run_id=task.id if task else None,
        state=to_state_create(Running()),
        idempotency_key=key,
    )
    return FlowRun.model_validate(client.request("POST", "/flow_runs/", json=wanted.model_dump(mode="json")).json())


def decided(client: SyncPrefectClient, outcome: Outcome, asked: UUID, hours: float) -> Decision:
    """A person's answer, or a rejection after the deadline. Raises Interrupted if the question is cancelled."""
    keys: Any = keyset_from_base_key(f"paused-{outcome.made.run_id}")
    said: Any
    while (said := patiently(lambda: read_flow_run_input(keys["response"], flow_run_id=asked))) is None:
        state = state_of(client, asked)
        if state is None:
            pass
        elif state.is_running():
            patiently(lambda: show(client, outcome, asked, hours, keys))
        elif state.is_paused():
            wait(client, asked, state)
        elif state.is_failed():  # Prefect's own timeout passed while no run waited
            said = LATE
            break
        else:
            raise Interrupted(
                "the question was cancelled", hint="run it again: finished stages are cached, and it asks again"
            )
    return Approval(**said).decision(by="time" if said == LATE else "person")


def show(client: SyncPrefectClient, outcome: Outcome, asked: UUID, hours: float, keys: Any) -> None:
    """Fill in the page of the question, then pause it, so that it can be answered."""
    made = outcome.so_far("running")
    text = prefect_artifacts.ask(made, namespace=settings().namespace, flow_run=asked)
    try:
        Approval.with_initial_data(description=text).save(keys, flow_run_id=asked)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != CONFLICT:  # an earlier process has written it
            raise
    paused: State[None] = Paused(name=WAITING, timeout_seconds=int(hours * 3600) + MARGIN, pause_key=made.run_id)
    paused.state_details.run_input_keyset = keys
    client.set_flow_run_state(asked, paused)
    page = url_for("flow-run", asked)
    log.warning("run %s of line %s waits up to %g h for approval: %s", made.run_id, made.line, hours, page)
    if outcome.audience:
        outcome.audience.waits(made, asked)


def wait(client: SyncPrefectClient, asked: UUID, paused: State[Any]) -> None:
    """Wait until the question is answered. At its deadline, which a restart does not move, reject it."""
    limit = paused.state_details.pause_timeout
    deadline = limit - timedelta(seconds=MARGIN) if limit else datetime.max.replace(tzinfo=UTC)
    while (state := state_of(client, asked)) is None or state.is_paused():
        if datetime.now(UTC) > deadline:
            patiently(lambda: client.resume_flow_run(asked, run_input=LATE))
        else:
            time.sleep(POLL)


def state_of(client: SyncPrefectClient, flow_run: UUID) -> State[Any] | None:
    """The flow run's state. Raises Interrupted if it was deleted."""
    try:
        return patiently(lambda: client.read_flow_run(flow_run).state)
    except ObjectNotFound as error:
        raise Interrupted("the question was deleted", hint="run it again: it asks again") from error


def patiently(call: Callable[[], R]) -> R:
    """The result of a call, repeated until the Prefect server answers."""
    while True:
        try:
            return call()
        except httpx.TransportError:
            pass
        except PrefectHTTPStatusError as error:
            if error.response.status_code < 500:
                raise
        time.sleep(POLL)
