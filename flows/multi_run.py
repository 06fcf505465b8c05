"""One LoRA run per dataset, merged and evaluated after each."""

from typing import Annotated

from pydantic import Field

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, ExportSpec, MergeSpec, ModelSpec, RunSpec, TrainSpec
from flows.declared import declared
from flows.pipeline import pipeline
from flows.run_names import tasks_of
from tasks.runs.allowed_paths import admitted
from tasks.runs.flow_run import recorded
from tasks.runs.resolve import prepare


@declared("multi-run", title=lambda given: f"train {tasks_of(given['datasets'])}", body=pipeline)
def multi_run(
    datasets: Annotated[list[DatasetSpec], Field(min_length=1)],
    line: LineName = "default",
    model: str | ModelSpec = ModelSpec(),
    training: TrainSpec = TrainSpec(),
    merge: MergeSpec = MergeSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    export: ExportSpec = ExportSpec(),
    max_seconds: Annotated[float, Field(gt=0)] | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Train on one dataset after another, merge after each, and score the merged adapter on every task so far.

    Args:
        datasets: One LoRA run per dataset, in this order.
        line: Name to record the run under.
        model: Hub id or local directory of the base model, or all its fields.
        training: How each LoRA run trains.
        merge: How to merge each run's adapter into the merged one.
        evaluation: What to measure on the held-out rows.
        export: Which GGUF files to write.
        max_seconds: Time limit: the run then stops, in training after a checkpoint, and can be resumed.
        run_id: The interrupted run to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    spec = RunSpec(
        line=line,
        model=ModelSpec(name=model) if isinstance(model, str) else model,
        datasets=datasets,
        training=training,
        merge=merge,
        evaluation=evaluation,
        export=export,
        max_seconds=max_seconds,
    )
    return carry_out("multi-run", spec, run_id=run_id, fresh=fresh)


def carry_out(name: str, spec: RunSpec, *, run_id: str | None, fresh: bool) -> RunResult:
    """The body of `train` and `multi-run`."""
    with recorded(lambda store: prepare(name, admitted(spec), store), run_id=run_id, fresh=fresh) as (run, outcome):
        pipeline(run)
    return outcome.result
