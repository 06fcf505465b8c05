"""What every list of Prefect's UI shows of a flow run: its name says what it is, its state how it ended."""

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, cast

import httpx
from prefect.context import FlowRunContext
from prefect.states import Completed

from backprop_core.schema.refs import RunResult
from flows.cli.prefect_environment import is_temporary
from flows.run_states import STATES
from tasks.runs.prefect_artifacts import sentence
from tasks.runs.sources import stem

P = ParamSpec("P")
GENERATED = re.compile(r"[A-Za-z]+-[A-Za-z]+")  # a flow run's name that Prefect made up: keen-otter, Awesome-Jaguar


def shown(name: Callable[[dict[str, Any]], str]) -> Callable[[Callable[P, RunResult]], Callable[P, RunResult]]:
    """Give the runs of a flow a `name`, out of their arguments, and end them in a state that says how they ended.

    A run that a person has named keeps that name. The state is of Prefect's type COMPLETED whatever its name is, so
    callers get the result, and a version that did not pass raises no failure alert.
    """

    def around(function: Callable[P, RunResult]) -> Callable[P, RunResult]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> RunResult:
            call: Callable[..., RunResult] = function
            called = ""
            if is_nameless():
                given = inspect.signature(call).bind(*args, **kwargs)
                given.apply_defaults()
                called = rename(name(given.arguments))
            result = call(*args, **kwargs)
            if FlowRunContext.get() is None:
                return result
            if called and (final := final_name(result, called)) != called:
                rename(final)
            ended: Any = Completed(name=STATES[result.status], message=sentence(result), data=result)
            return cast(RunResult, ended)  # Prefect hands the caller what is in it

        return run

    return around


def is_nameless() -> bool:
    """Whether people can see this flow run, and only Prefect has given it a name."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    return bool(flow_run and not is_temporary() and GENERATED.fullmatch(flow_run.name))


def rename(name: str) -> str:
    """Call this flow run so; the name."""
    context = FlowRunContext.get()
    assert context and context.flow_run
    client: Any = context.client
    with suppress(httpx.HTTPError):  # a name is not worth a run
        client.set_flow_run_name(context.flow_run.id, name)
    return name


def final_name(result: RunResult, name: str) -> str:
    """The name of a run that has ended: of a retrain, the version that it made, or the line where it made none."""
    if result.flow != "retrain" or result.status == "rejected":
        return name
    return f"{result.line} v{result.version}" if result.status == "finished" else result.line


def tasks_of(datasets: list[Any]) -> str:
    """Datasets by the names that people know them by."""
    names = [getattr(one, "task", None) or stem(str(getattr(one, "path", one))) for one in datasets]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def short(ref: str) -> str:
    """A run_id by its first digits; a line, a version or a directory as it is."""
    return ref[:8] if re.fullmatch("[0-9a-f]{32}", ref) else ref


def version_to_be(line: str) -> str:
    """A line with the number that its next version gets."""
    from tasks.runs.line_state import next_number

    return f"{line} v{next_number(line)}"
