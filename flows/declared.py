"""`@declared` makes a Prefect flow of a function and its row in `backprop_core.schema.flows`."""

from collections.abc import Callable
from typing import Any, ParamSpec

from prefect import Flow, flow

from backprop_core.schema.flows import FLOWS
from backprop_core.schema.refs import RunResult
from flows.run_names import shown
from flows.server.line_parameters import as_deployed
from tasks.runs.flow_run import Run

P = ParamSpec("P")
BODIES: dict[str, Callable[[Run], object]] = {}  # by the name of the flow, filled as the flows are imported


def declared(
    name: str, *, title: Callable[[dict[str, Any]], str], body: Callable[[Run], object] | None = None
) -> Callable[[Callable[P, RunResult]], Flow[P, RunResult]]:
    """The flow `name` of the table; its parameters are its spec, its docstring the help of its form.

    `title` names a flow run after its arguments. `body` is what `--plan` goes through; a flow that trains needs one.
    """
    per_line = FLOWS[name].per_line
    if body:
        BODIES[name] = body

    def make(function: Callable[P, RunResult]) -> Flow[P, RunResult]:
        called = shown(title)(function)
        whole = as_deployed(called) if per_line else called
        made: Flow[P, RunResult] = flow(name=name, persist_result=False, validate_parameters=not per_line)(whole)
        return made

    return make
