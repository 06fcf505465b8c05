"""Runs flows in this process. The worker process starts while Prefect is imported."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from backprop_core.runtime.settings import settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, RunSpec
from flows.cli.prefect_environment import connected, quiet_prefect, start_server
from flows.parameters import parameters, to_resume
from flows.registry import load, planned_body
from tasks.runs import prestart, resolve
from tasks.runs.sources import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from backprop_core.store.artifacts import Store
    from flows.rebuild import Rebuilt
    from tasks.runs.plan import Plan
    from tasks.runs.prepared_run import Prepared
    from tasks.runs.unfinished_rebuild import UnfinishedRebuild


def run(flow: str, spec: RunSpec, *, fresh: bool = False, elsewhere: Elsewhere | None = None, **more: Any) -> RunResult:
    """Run a flow that trains: check the inputs, start the worker if a stage needs it, call the flow.

    `elsewhere` finds files of rows that are missing; `more` are parameters of the flow that are not in a spec.
    """
    with prestart.checked(files_of(flow, spec), elsewhere):
        start_server()
        prestart.start(flow, spec, fresh=fresh)
        called = load(flow)  # while Prefect's server starts
        with connected():
            made: RunResult = called(**parameters(flow, spec, fresh=fresh), **more)
            return made


def files_of(flow: str, spec: RunSpec) -> list[DatasetSpec]:
    """The datasets whose files a flow reads."""
    return [] if flow_info(flow).rows == "stored" else [*spec.datasets, *spec.evaluation.watch]


def plan(flow: str, spec: RunSpec, *, fresh: bool) -> "Plan":
    """What a flow that trains would do. Raises what the flow raises before its first stage."""
    return plan_of(flow, partial(resolve.prepare, flow, spec), fresh=fresh)


def plan_of(flow: str, start: "Callable[[Store], Prepared]", *, fresh: bool) -> "Plan":
    """What a run of a flow that starts so would do."""
    from tasks.runs.plan import planned

    return planned(start, planned_body(flow), fresh=fresh)


def call(flow: str, *, files: Sequence[DatasetSpec] = (), **arguments: Any) -> RunResult:
    """Run a flow that starts from an earlier run or a line, or reads `files`. Raises what the flow raises."""
    with prestart.checked(files):
        start_server()
        with connected():
            made: RunResult = load(flow)(**arguments)
            return made


def resume(prefix: str, *, inexact: bool = False) -> RunResult:
    """Continue an interrupted run from its record. Raises RunUnknown or RefAmbiguous."""
    start_server()
    run_id, prepared = prestart.restart(prefix, inexact=inexact)
    with connected():
        made: RunResult = load(prepared.flow)(**to_resume(prepared.flow, run_id, prepared))
        return made


def rebuild(left: "UnfinishedRebuild") -> "Rebuilt":
    """Train the versions of a line again, as the rebuild that was killed would have."""
    quiet_prefect()
    start_server()
    from flows.rebuild import rebuild

    with connected():
        return rebuild(left.line, left.rows, left.seen, settings())
