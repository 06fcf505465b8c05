"""A line on another base: its stored datasets are trained anew, and the line continues on it if the gate accepts."""

from functools import partial
from typing import Annotated

from pydantic import Field

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import (
    ApprovalSpec,
    BlockName,
    EvaluationSpec,
    ExportSpec,
    GateSpec,
    ModelSpec,
    PublishSpec,
    TrainSpec,
)
from flows.declared import declared
from flows.pipeline import lora_runs
from flows.retrain import checked_first, version_of_line
from flows.steps.files import exports
from flows.steps.rows import held_out, part
from flows.steps.stored_rows import stored
from flows.steps.two_bases import judged_on_two_bases
from tasks.runs.allowed_paths import admit_model
from tasks.runs.flow_run import Run
from tasks.runs.line_state import Made
from tasks.runs.rebase import moved
from tasks.runs.unchanged import too_few_held_out


def rehearsed(run: Run) -> None:
    """The body of a rebase for `--plan`, with the checks that come before its first stage."""
    checked_first(run)
    on_another_base(run)


@declared("rebase", title=lambda given: f"rebase {given['line']}", body=rehearsed)
def rebase(
    line: LineName,
    model: str | ModelSpec,
    training: TrainSpec = TrainSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    gate: GateSpec = GateSpec(),
    export: ExportSpec = ExportSpec(),
    publish: PublishSpec = PublishSpec(),
    approval: ApprovalSpec = ApprovalSpec(),
    notify: list[BlockName] | None = None,
    max_seconds: Annotated[float, Field(gt=0)] | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Train the stored datasets of a line on another base. The line continues on it if the gate accepts the result.

    The datasets are trained in the order in which the line learned them, by its merge strategy. The result is scored on
    all held-out rows of the line, and compared with the champion on its own base and with the untouched new base.
    Fields that are not given are as in the run behind the champion.

    Args:
        line: The line to move.
        model: Hub id or local directory of the other base, or all its fields.
        training: How each LoRA run trains.
        evaluation: What to measure on the held-out rows of the line.
        gate: When the candidate may go live.
        export: Which GGUF files to write when the version goes live.
        publish: Where to publish the version; default: where the champion was published.
        approval: Whether to ask a person before the version goes live.
        notify: Notification blocks of Prefect, TYPE/NAME, that get the outcome and requests for approval.
        max_seconds: Time limit: the run then stops, in training after a checkpoint, and can be resumed.
        run_id: The interrupted run to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    given = {
        "training": training,
        "evaluation": evaluation,
        "gate": gate,
        "export": export,
        "publish": publish,
        "approval": approval,
        "notify": notify,
        "max_seconds": max_seconds,
    }
    base = ModelSpec(name=model) if isinstance(model, str) else model
    admit_model(base)  # the rows are in the store
    return version_of_line(
        line, notify or [], partial(moved, line, base, given), on_another_base, run_id=run_id, fresh=fresh
    )


def on_another_base(run: Run) -> Made | None:
    """All datasets of the line on another base, through the gate; None if there is no version to go live."""
    rows = stored(run)
    scored = part(run, held_out(run, rows), rows.datasets, to_choose_by=False)
    if reason := too_few_held_out(scored, run.prepared):
        run.notes.concludes(reason, "unchanged")
        return None
    made = lora_runs(run, rows)
    report = judged_on_two_bases(run, made.merged, scored)
    run.notes.gated(report)
    if not report.accepted:
        return None
    exports(run, made.merged, made.last_heldout)
    return made
