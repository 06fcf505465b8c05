"""The next run of a line: from its champion, with a gate that lets nothing worse go live."""

import os
from typing import Annotated

from prefect.settings import get_current_settings
from pydantic import Field

from backprop_core.runtime.settings import settings
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
from tasks.runs.flow_run import Run, recorded
from tasks.runs.line_state import version_of, working_on
from tasks.runs.notifications import Audience, notifying
from tasks.runs.prune import retain
from tasks.runs.resolve import prepare
from tasks.stages.publishing import advance, hub_token


def ready(spec: RunSpec) -> None:
    """Raise now what would stop a release after hours of training: no way to ask a person, no credentials."""
    check(spec.approval)
    if spec.publish.repo:
        hub_token()


def rehearsed(run: Run) -> None:
    """A retrain as `--plan` goes through it: what would stop a release is checked first."""
    spec = run.spec
    if spec.notify or spec.approval.ask or (spec.publish.repo and not os.environ.get("HF_TOKEN")):
        if get_current_settings().api.url is None:
            start_server(settings().home_path)
        with connected():
            Audience(spec.line).invite(spec.notify)
            ready(spec)
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
    """Train a line's champion on new data; what comes out goes live if it is better on average and worse on no task.

    A line that does not exist begins with this run. Rows that the line has learned already are left out; where nothing
    is new, nothing changes.

    Args:
        line: The line that goes on.
        data: A file or an address of rows, or a dataset with all its fields. Its task is the line's name by default.
        model: Base model of a line that begins; an existing line keeps its own.
        training: How the LoRA run trains; an existing line keeps the shape of its adapter.
        merge: How the run's adapter goes into the merged one; an existing line keeps its strategy.
        evaluation: What is measured on the held-out rows.
        gate: When the candidate may go live.
        export: Which GGUF files are made of a version that goes live.
        min_new_rows: With fewer training rows that the line has not learned, the run waits for more: `unchanged`.
        publish: Where a version goes that goes live; as the champion before it, if nothing is named.
        approval: Whether a person is asked before a version goes live; meanwhile the GPU is free for other lines.
        notify: Notification blocks of Prefect, TYPE/NAME, that are told how it went and that it waits for approval.
        max_seconds: Time for the run: then it stops, in training at a step with a checkpoint, and can be resumed.
        run_id: Of an interrupted run that shall go on; everything else is then taken from its record.
        fresh: Do every stage again, whatever the cache has.
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
    return carry_out(spec, run_id=run_id, fresh=fresh)


def carry_out(spec: RunSpec, *, run_id: str | None, fresh: bool) -> RunResult:
    """Make the next version of a line; it goes live if gate and people let it. With a `run_id`, go on with that run."""
    with (
        notifying(spec.line, spec.notify) as audience,
        working_on(spec.line),
        recorded(lambda store: prepare("retrain", admitted(spec), store), run_id=run_id, fresh=fresh) as run,
    ):
        audience.invite(run.spec.notify)
        run.audience = audience
        ready(run.spec)
        if (made := next_version(run)) and approved(run):
            advance(run, version_of(run, *made), made.heldout[made.datasets[-1].task])
    retain(run)
    assert run.outcome is not None
    audience.ended(run.outcome)
    return run.outcome
