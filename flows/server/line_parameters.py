"""Scheduled runs of a line ignore parameters of the schedule: the job file says what to run, a schedule only when.

When a schedule's time is edited in Prefect's UI, the UI also writes parameters into it. They would replace whole parts
of the job, and some are invalid, like null for a whole part. So they are dropped before validation.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

P = ParamSpec("P")
R = TypeVar("R")


def as_deployed(function: Callable[P, R]) -> Callable[P, R]:
    """Drop, and log, a schedule's parameters in a flow with a deployment per line.

    It wraps all else and validates the parameters itself: the flow has `validate_parameters=False`.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        body: Callable[..., R] = function
        context = FlowRunContext.get()
        if not (context and context.flow):
            return body(*args, **kwargs)
        given = inspect.signature(body).bind(*args, **kwargs).arguments
        return body(**context.flow.validate_parameters(parameters_of_the_line() or given))

    return run


def parameters_of_the_line() -> dict[str, Any] | None:
    """The parameters of the line's deployment, for a run that a schedule started; None if the run has the same."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    if not (context and flow_run and flow_run.auto_scheduled and flow_run.deployment_id):
        return None
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment(flow_run.deployment_id)
    own, ran = deployment.parameters, flow_run.parameters
    if own.get("line") != deployment.name or own == ran:
        return None
    names = sorted(name for name in {*own, *ran} if own.get(name) != ran.get(name))
    said = "%s of the schedule left out: the job file says what to run, a schedule only when"
    get_run_logger().warning(said, ", ".join(names))
    return own
