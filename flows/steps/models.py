"""The model that a stage sees: the base, with an adapter or without."""

from typing import Any

from backprop_core.schema.refs import AdapterRef
from tasks.runs.flow_run import Run


def model(run: Run, adapter: AdapterRef | None) -> dict[str, Any]:
    """The base with an adapter, or without, in the precision and on the device of training."""
    return {**base_model(run), "adapter": adapter}


def base_model(run: Run) -> dict[str, Any]:
    """The base, in the precision and on the device of training."""
    spec = run.spec.training
    return {"base": run.base, "precision": spec.precision, "device": spec.device}
