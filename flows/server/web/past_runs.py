"""A run as MLflow has recorded it: what the history lists, and all that is known of a run whose records are gone."""

from datetime import datetime
from typing import Any

from pydantic import Field

from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.schema.refs import RunId, Status
from flows.server.web.mlflow_api import TrackedRun
from tasks.tracking.history import summary

REASONS = ("backprop.reason", "backprop.gate.reason")  # tags: why a run ended as it did


class PastRun(Record):
    """A run in the history."""

    run_id: RunId
    name: str
    line: str
    status: Status
    started: datetime
    seconds: float | None = Field(description="At work, without waits; null while it runs.")
    datasets: list[str]
    average: float | None
    error: str | None = Field(description="Its code.")


def past_run(run: TrackedRun, config: Settings) -> PastRun:
    """A run as `list-runs` has it, and its name."""
    known: dict[str, Any] = {**summary(run.tags, run.metrics, run.started, run.ended, config.layout.journal)}
    return PastRun(**known, name=run.name)


def reason_of(run: TrackedRun) -> str:
    """Why a run ended as it did; empty if MLflow does not have it."""
    return next((run.tags[name] for name in REASONS if name in run.tags), "")
