"""Names of flow runs and of their final states, as Prefect's UI lists them."""

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
from tasks.runs.record_names import listed
from tasks.runs.sources import stem

P = ParamSpec("P")
LINE = "line:"  # prefix of a tag
GENERATED = re.compile(r"[A-Za-z]+-[A-Za-z]+")  # a name that Prefect made up: keen-otter, Awesome-Jaguar


def shown(name: Callable[[dict[str, Any]], str]) -> Callable[[Callable[P, RunResult]], Callable[P, RunResult]]:
    """Name the runs of a flow by their arguments, and their final state by their result.

    A run that a person has named keeps its name. The state always has Prefect's type COMPLETED, so that callers get the
    result, and a rejected version raises no failure alert.
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
                tag(given.arguments.get("line"))
            result = call(*args, **kwargs)
            if FlowRunContext.get() is None:
                return result
            if called and (final := final_name(result, called)) != called:
                rename(final)
            ended: Any = Completed(name=STATES[result.status], message=sentence(result), data=result)
            return cast(RunResult, ended)  # Prefect returns its data to the caller

        return run

    return around


def is_nameless() -> bool:
    """Whether this flow run is visible in a UI and has a name that Prefect made up."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    return bool(flow_run and not is_temporary() and GENERATED.fullmatch(flow_run.name))


def rename(name: str) -> str:
    """Rename this flow run; returns the name."""
    context = FlowRunContext.get()
    assert context and context.flow_run
    client: Any = context.client
    with suppress(httpx.HTTPError):  # a run does not fail for its name
        client.set_flow_run_name(context.flow_run.id, name)
    return name


def tag(line: str | None) -> None:
    """Give this flow run the tag of its line, by which Prefect's lists are filtered."""
    context = FlowRunContext.get()
    if line and context and context.flow_run:
        client: Any = context.client
        with suppress(httpx.HTTPError):
            client.update_flow_run(context.flow_run.id, tags=sorted({*context.flow_run.tags, f"{LINE}{line}"}))


def final_name(result: RunResult, name: str) -> str:
    """The name of a finished run; a retrain is named after its version, or after its line if it made none."""
    if result.flow != "retrain" or result.status == "rejected":
        return name
    return f"{result.line} v{result.version}" if result.status == "finished" else result.line


def tasks_of(datasets: list[Any]) -> str:
    """The names of datasets, the first three."""
    return listed([getattr(one, "task", None) or stem(str(getattr(one, "path", one))) for one in datasets])


def short(ref: str) -> str:
    """A run_id shortened; any other reference as it is."""
    return ref[:8] if re.fullmatch("[0-9a-f]{32}", ref) else ref


def version_to_be(line: str) -> str:
    """A line and the number of its next version."""
    from tasks.runs.line_state import next_number

    return f"{line} v{next_number(line)}"
