"""What a person does on a page: start a retrain, answer a question, roll back, pause. Prefect's deployments do it.

Nothing is kept here: an action is one write to Prefect, the same as in its own pages or from the command line.
"""

from datetime import UTC, datetime, timedelta

from backprop_core.errors import AlreadyAnswered, BackpropError, ConfigInvalid, DeploymentMissing, RunActive, RunUnknown
from backprop_core.schema.flows import BY, FLOWS
from flows.server.web import line_runs
from flows.server.web.people import Person
from flows.server.web.state import Sources, checked
from tasks.runs import line_report

AT_ONCE = 2  # seconds in which the same click is one run; its run takes longer
LONGEST_REASON = 1000  # characters
ANSWERS = ("approve", "reject")


def retrain(line: str, by: Person, sources: Sources) -> None:
    """Start the line's deployment with its own parameters.

    Raises RunUnknown, DeploymentMissing, PrefectUnreachable; RunActive if a run of the line has begun or is due.
    """
    checked(line, sources)
    if busy := line_runs.at_work(sources.prefect, line):
        raise RunActive(f"{busy[0].name} of line {line} has not ended", hint="wait for it, or cancel it in Prefect")
    start(f"retrain/{line}", {}, line, by, sources)


def roll_back(line: str, to: str, reason: str, by: Person, sources: Sources) -> None:
    """Start a rollback to a version. Raises RunUnknown, ConfigInvalid, DeploymentMissing, PrefectUnreachable."""
    parameters = {"line": line, "to": target(line, to, sources), "reason": short(reason)}
    start(f"rollback/{FLOWS['rollback'].deployment}", parameters, f"{line}-v{to}", by, sources)


def target(line: str, to: str, sources: Sources) -> int:
    """The number of a version that a rollback can make live. Raises RunUnknown, ConfigInvalid."""
    row = line_report.line_row(checked(line, sources), sources.config)
    number = number_of(to)
    line_report.version(line, number, sources.config)
    if row.live and row.live.number == number:
        raise ConfigInvalid(f"version {number} of line {line} is live already", hint="choose another version")
    return number


def number_of(text: str) -> int:
    """The number of a version; 0, which no version has, for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0


def start(path: str, parameters: dict[str, object], key: str, by: Person, sources: Sources) -> None:
    """Create a flow run of a deployment, once for clicks in quick succession.

    Raises DeploymentMissing, PrefectUnreachable; RunActive if the run of the same click has ended already.
    """
    deployment = sources.prefect.get(f"/deployments/name/{path}")
    if deployment is None:
        raise DeploymentMissing(
            f"Prefect has no deployment {path}", hint="create the job file (backprop init), and start `serve` again"
        )
    before = line_runs.newest(sources.prefect, deployment["id"], datetime.now(UTC) - timedelta(seconds=AT_ONCE))
    body = {
        "state": {"type": "SCHEDULED"},
        "tags": [f"{BY}{by.name}"] if by.name else [],
        "idempotency_key": f"page-{path}-{key}-after-{before}",
        **({"parameters": parameters} if parameters else {}),
    }
    made = sources.prefect.send("POST", f"/deployments/{deployment['id']}/create_flow_run", body)
    if made and made["state_type"] in line_runs.ENDED:
        raise RunActive(
            f"{made['name']} has ended just now: nothing more was started", hint=f"press again in {AT_ONCE} seconds"
        )


def answer(line: str, question: str, said: str, reason: str, by: Person, sources: Sources) -> None:
    """Approve or reject what waits. Raises AlreadyAnswered if it no longer waits, ConfigInvalid, PrefectUnreachable."""
    if said not in ANSWERS:
        raise ConfigInvalid("the answer is neither approve nor reject", hint="use the buttons on the page")
    sources.prefect.forget()  # as it is now
    waiting = line_runs.waiting(sources.prefect, sources.config.namespace, line)
    if question not in [each.id for each in waiting]:
        raise answered(line)
    given = {"answer": said, "reason": short(reason), **({"name": by.name} if by.name else {})}
    done = sources.prefect.send("POST", f"/flow_runs/{question}/resume", {"run_input": given})
    if done is None or done["status"] != "ACCEPT":
        raise refusal(line, done)


def answered(line: str) -> BackpropError:
    return AlreadyAnswered(
        f"this question of line {line} was answered before, or its time is over",
        hint="the page of the line says what was decided",
    )


def refusal(line: str, done: dict[str, dict[str, str]] | None) -> BackpropError:
    """Why Prefect did not take an answer."""
    reason = done["details"].get("reason") or "" if done else ""
    if done is None or "not paused" in reason or "timed out" in reason:
        return answered(line)
    return ConfigInvalid(f"Prefect did not take the answer: {reason[:300]}", hint="answer in Prefect")


def pause(line: str, schedule: str, active: bool, sources: Sources) -> None:
    """Pause or resume a schedule of the line; nothing else of it changes. Raises RunUnknown, PrefectUnreachable."""
    known = line_runs.deployment_of(checked(line, sources), sources.prefect)
    if known is None or schedule not in [each.id for each in known.schedules]:
        raise RunUnknown(f"line {line} has no such schedule", hint="load the page again")
    sources.prefect.send("PATCH", f"/deployments/{known.id}/schedules/{schedule}", {"active": active})


def short(reason: str) -> str:
    """A reason as it is kept. Raises ConfigInvalid if it is too long."""
    if len(reason) > LONGEST_REASON:
        raise ConfigInvalid(f"a reason may have {LONGEST_REASON} characters", hint="shorten it")
    return reason.strip()
