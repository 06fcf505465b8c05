"""What a person does with a run: stop it, or run it again. Each is one write to Prefect."""

import threading
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

from backprop_core.errors import BackpropError, DeploymentMissing, RunActive, RunUnknown
from flows.server.web.people import Person
from flows.server.web.run_state import FLOW_RUN, RETRIABLE, STOPPABLE, unknown
from flows.server.web.state import Sources
from tasks.runs import run_report

_one_at_a_time = threading.Lock()  # a second click sees what the first one has done


def stop(id: str, by: Person, sources: Sources) -> None:
    """Have a run stop. It saves a checkpoint, and can be continued.

    Raises RunUnknown, RunActive if it has ended, PrefectUnreachable.
    """
    with _one_at_a_time:
        known = flow_run(id, sources)
        if known["state_type"] == "CANCELLING":
            return
        if known["state_type"] not in STOPPABLE:
            raise ended(known)
        set_state(known, {"type": "CANCELLING", "message": f"stopped by {by.name or 'a person'}"}, sources)


def retry(id: str, by: Person, sources: Sources) -> None:
    """Have a run begin again: it continues where it can, else it starts anew with the same parameters.

    Raises RunUnknown, DeploymentMissing, RunActive unless it has failed or was stopped, PrefectUnreachable.
    """
    with _one_at_a_time:
        known = flow_run(id, sources)
        if known["state_type"] not in RETRIABLE:
            raise RunActive(f"{known['name']} is {known['state_name'].lower()}", hint="its page says how far it is")
        if not known.get("deployment_id"):
            raise DeploymentMissing(f"{known['name']} was not started by a deployment", hint=f"backprop resume {id}")
        if sources.prefect.get(f"/deployments/{known['deployment_id']}") is None:
            raise DeploymentMissing(f"the deployment of {known['name']} is gone", hint=f"backprop resume {id}")
        due, message = datetime.now(UTC).isoformat(), f"retried by {by.name or 'a person'}"
        again = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message}
        set_state(known, {**again, "state_details": {"scheduled_time": due}}, sources)


def flow_run(id: str, sources: Sources) -> dict[str, Any]:
    """The flow run of a run. Raises RunUnknown if Prefect has none, PrefectUnreachable."""
    flow_run_id: str | None = id
    if not FLOW_RUN.fullmatch(id):
        flow_run_id = run_report.run_report(id, sources.config).flow_run
    known = sources.prefect.get(f"/flow_runs/{flow_run_id}") if flow_run_id else None
    if known is None:
        if FLOW_RUN.fullmatch(id):
            raise unknown(id)
        raise RunUnknown(f"run {id} was started in a terminal", hint=f"stop it there, or: backprop resume {id}")
    return dict(known)


def set_state(known: dict[str, Any], state: dict[str, Any], sources: Sources) -> None:
    """Change the state of a flow run, once from the state that it is `known` to have, however often it is asked for.

    Raises RunActive if Prefect does not take it, PrefectUnreachable.
    """
    transition = str(uuid5(UUID(known["state_id"]), state["type"]))
    state = {**state, "state_details": {**state.get("state_details", {}), "transition_id": transition}}
    done = sources.prefect.send("POST", f"/flow_runs/{known['id']}/set_state", {"state": state})
    if done is None:
        raise unknown(known["id"])
    if done["status"] != "ACCEPT" and not is_done(done, transition) and not is_cancelled(done, state["type"]):
        raise RunActive(
            f"Prefect did not take it: {done['details'].get('reason') or ''}"[:300], hint="load the page again"
        )


def is_done(done: dict[str, Any], transition: str) -> bool:
    """Whether Prefect has made this change before; it says that as a refusal."""
    details = (done["state"] or {}).get("state_details") or {}
    return done["status"] == "REJECT" and details.get("transition_id") == transition


def is_cancelled(done: dict[str, Any], asked: str) -> bool:
    """Whether Prefect has cancelled a run at once, as no process of it has begun; it says that as a refusal."""
    state = done["state"] or {}
    return asked == "CANCELLING" and done["status"] == "REJECT" and state.get("type") == "CANCELLED"


def ended(known: dict[str, Any]) -> BackpropError:
    return RunActive(f"{known['name']} has ended: {known['state_name'].lower()}", hint="load the page again")
