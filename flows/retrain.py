"""The next run of a line: it trains the champion on new data, and the result goes live if it passes the gate."""

import os
from collections.abc import Callable
from typing import Annotated

from prefect.settings import get_current_settings
from pydantic import Field

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import (
    ApprovalSpec,
    BlockName,
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    GateSpec,
    MergeSpec,
    ModelSpec,
    PublishSpec,
    RunSpec,
    TrainSpec,
)
from flows.approval import approved, check
from flows.cli.prefect_environment import connected, start_server
from flows.declared import declared
from flows.pipeline import next_version
from flows.run_names import version_to_be
from tasks.runs.allowed_paths import admitted
from tasks.runs.flow_run import Run, Start, recorded
from tasks.runs.line_state import Made, working_on
from tasks.runs.notifications import Audience, notifying
from tasks.runs.prune import retain
from tasks.runs.resolve import prepare
from tasks.stages.publishing import advance, hub_token


def ready(spec: RunSpec) -> None:
    """Raise now what would stop a release after training: no way to ask for approval, no credentials."""
    check(spec.approval)
    if spec.publish.repo:
        hub_token()


def checked_first(run: Run) -> None:
    """Raise for `--plan` what a run raises before its first stage."""
    spec = run.spec
    if spec.notify or spec.approval.ask or (spec.publish.repo and not os.environ.get("HF_TOKEN")):
        if not get_current_settings().api.url:
            start_server()
        with connected():
            Audience(spec.line).invite(spec.notify)
            ready(spec)


def rehearsed(run: Run) -> None:
    """The body of a retrain for `--plan`, with the checks that come before its first stage."""
    checked_first(run)
    next_version(run)


@declared("retrain", title=lambda given: version_to_be(given["line"]), body=rehearsed)
def retrain(
    line: LineName,
    data: str | DatasetSpec,
    model: str | ModelSpec = ModelSpec(),
    training: TrainSpec = TrainSpec(),
    merge: MergeSpec = MergeSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    gate: GateSpec = GateSpec(),
    export: ExportSpec = ExportSpec(),
    min_new_rows: Annotated[int, Field(ge=1)] = 1,
    publish: PublishSpec = PublishSpec(),
    approval: ApprovalSpec = ApprovalSpec(),
    notify: list[BlockName] | None = None,
    max_seconds: Annotated[float, Field(gt=0)] | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Train a line's champion on new data. The result goes live if it is better on average and worse on no task.

    A line that does not exist starts with this run. Rows that the line has learned are skipped; without new rows,
    nothing changes.

    Args:
        line: The line to continue.
        data: File or URL of rows, or a dataset with all its fields. Its task is the line's name by default.
        model: Base model of a new line; an existing line keeps its own.
        training: How the LoRA run trains; an existing line keeps its LoRA shape.
        merge: How to merge the run's adapter; an existing line keeps its strategy.
        evaluation: What to measure on the held-out rows.
        gate: When the candidate may go live.
        export: Which GGUF files to write when a version goes live.
        min_new_rows: With fewer new training rows, the run does nothing: `unchanged`.
        publish: Where to publish a version that goes live; default: where the champion was published.
        approval: Whether to ask a person before a version goes live. Meanwhile other lines can use the GPU.
        notify: Notification blocks of Prefect, TYPE/NAME, that get the outcome and requests for approval.
        max_seconds: Time limit: the run then stops, in training after a checkpoint, and can be resumed.
        run_id: The interrupted run to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    spec = RunSpec(
        line=line,
        model=ModelSpec(name=model) if isinstance(model, str) else model,
        datasets=[DatasetSpec(path=data) if isinstance(data, str) else data],
        training=training,
        merge=merge,
        evaluation=evaluation,
        gate=gate,
        export=export,
        min_new_rows=min_new_rows,
        publish=publish,
        approval=approval,
        notify=notify or [],
        max_seconds=max_seconds,
    )
    return version_of_line(
        line,
        spec.notify,
        lambda store: prepare("retrain", admitted(spec), store),
        next_version,
        run_id=run_id,
        fresh=fresh,
    )


def version_of_line(
    line: LineName,
    notify: list[BlockName],
    start: Start,
    body: Callable[[Run], Made | None],
    *,
    run_id: str | None,
    fresh: bool,
) -> RunResult:
    """Make a version of a line with `body`. It goes live if the gate, and a person if asked, accept it."""
    with (
        notifying(line, notify) as audience,
        working_on(line),
        recorded(start, run_id=run_id, fresh=fresh) as (run, outcome),
    ):
        audience.invite(run.spec.notify)
        outcome.audience = audience
        ready(run.spec)
        if (made := body(run)) and approved(run, outcome):
            advance(run, outcome, made)
    retain(run.spec, outcome.result)
    audience.ended(outcome.result)
    return outcome.result
