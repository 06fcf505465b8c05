"""Finds the code of the flows in the table `backprop_core.schema.flows`. Prefect is imported when a flow is loaded."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backprop_core.errors import RunUnknown
from backprop_core.schema.flows import FLOWS

if TYPE_CHECKING:
    from prefect import Flow

    from backprop_core.schema.refs import RunResult
    from tasks.runs.flow_run import Run


def entrypoint(name: str) -> str:
    """MODULE:FUNCTION of a flow. Raises RunUnknown for a flow that is not in the table."""
    if name not in FLOWS:
        raise RunUnknown(f"there is no flow {name}", hint=f"known flows: {', '.join(FLOWS)}")
    flow = FLOWS[name]
    return f"flows.{flow.module or flow.function}:{flow.function}"


def load(name: str) -> "Flow[..., RunResult]":
    """A flow, and Prefect with it."""
    module, _, function = entrypoint(name).partition(":")
    flow: Flow[..., Any] = getattr(importlib.import_module(module), function)
    return flow


def planned_body(name: str) -> "Callable[[Run], object]":
    """What `--plan` goes through of a flow that trains."""
    load(name)
    from flows.declared import BODIES

    return BODIES[name]
